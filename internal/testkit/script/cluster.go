package script

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"headwater.example/coordinator"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/testkit/plainholder"
	"headwater.example/worker"
)

// budget is the memory of each worker: scripts are small.
const budget = 64 << 20

// Cluster is a coordinator and holders in this process, which can fail as they are told.
type Cluster struct {
	t           testing.TB
	plain       bool
	view        *view
	holders     []*holder
	coordinator *coordinator.Coordinator
	server      *server
	ran         chan error
	end         context.CancelFunc
}

// holder is one worker, or reference holder, of a cluster.
type holder struct {
	name   string
	post   *post
	server *server // nil while it is stopped
	worker *worker.Worker
}

// server is a gRPC server on loopback.
type server struct {
	*grpc.Server
	address  string
	listener *breakable
	done     chan struct{}
}

// breakable is a listener whose connections can be broken.
type breakable struct {
	net.Listener

	mu    sync.Mutex
	conns []net.Conn
}

// Accept implements net.Listener.
func (b *breakable) Accept() (net.Conn, error) {
	conn, err := b.Listener.Accept()
	if err == nil {
		b.mu.Lock()
		b.conns = append(b.conns, conn)
		b.mu.Unlock()
	}
	return conn, err
}

// cut breaks every connection there is. New ones are taken.
func (b *breakable) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, conn := range b.conns {
		_ = conn.Close() // that is what it is for
	}
	b.conns = nil
}

func listen(t testing.TB, register func(grpc.ServiceRegistrar), opts ...grpc.ServerOption) *server {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Server: grpc.NewServer(append(rpc.ServerOptions(), opts...)...), address: listener.Addr().String(), done: make(chan struct{})}
	s.listener = &breakable{Listener: listener}
	register(s.Server)
	go func() { defer close(s.done); _ = s.Serve(s.listener) }() // ends with stop
	return s
}

func (s *server) stop() { s.Stop(); <-s.done }

// Start starts a coordinator and n holders: w1, w2 and so on.
func Start(t testing.TB, n int, plain bool) *Cluster {
	c := &Cluster{t: t, plain: plain, view: newView(), ran: make(chan error, 1)}
	for i := range n {
		c.holders = append(c.holders, &holder{name: fmt.Sprintf("w%d", i+1), post: newPost()})
		c.start(c.holders[i])
	}
	var err error
	c.coordinator, err = coordinator.Open(coordinator.Config{Name: "coord", DataDir: t.TempDir(), View: c.view})
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	c.end = end
	go func() { c.ran <- c.coordinator.Run(ctx) }()
	c.server = listen(t, c.coordinator.Register)
	return c
}

// Address returns the coordinator's.
func (c *Cluster) Address() string { return c.server.address }

// start starts a holder, with a boot of its own and nothing held.
func (c *Cluster) start(h *holder) {
	register := (&plainholder.Holder{Name: h.name, Boot: uuid.New()}).Register
	if !c.plain {
		w, err := worker.New(worker.Config{Name: h.name, Boot: uuid.New(), Weight: 1, Budget: budget, Threads: 1})
		if err != nil {
			c.t.Fatal(err)
		}
		h.worker, register = w, w.Register
	}
	h.server = listen(c.t, register, grpc.ChainUnaryInterceptor(h.post.unary), grpc.ChainStreamInterceptor(h.post.stream))
	h.post.cut = h.server.listener.cut
	c.view.set(membership.Member{Name: h.name, Role: membership.RoleWorker, Address: h.server.address, Weight: 1})
}

// stop ends a holder as kill does: it answers nothing any more, and nothing is left of what it held.
func (c *Cluster) stop(h *holder) {
	h.post.resume()
	h.server.stop()
	h.server = nil
	if h.worker != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // its streams have ended
		_ = h.worker.Drain(ctx)
		h.worker.Close()
		h.worker = nil
	}
}

// Do obeys a command about the cluster; known says whether it is one.
func (c *Cluster) Do(command Command) (out string, known bool, err error) {
	switch command.Verb {
	case "told":
		return c.told(), true, nil
	case "fault", "hang", "resume", "stop", "start":
	default:
		return "", false, nil
	}
	h, err := c.find(command.Name)
	if err != nil {
		return "", true, err
	}
	switch command.Verb {
	case "fault":
		err = h.post.fault(command.Args)
	case "hang":
		h.post.hang()
	case "resume":
		h.post.resume()
	case "stop":
		if h.server == nil {
			return "", true, fmt.Errorf("%s is stopped already", h.name)
		}
		c.stop(h)
	case "start":
		c.start(h)
	}
	return "", true, err
}

func (c *Cluster) find(name string) (*holder, error) {
	for _, h := range c.holders {
		if h.name == name {
			return h, nil
		}
	}
	return nil, fmt.Errorf("the cluster has no holder %q", name)
}

// told returns what each holder was told since it was asked last, a line for each message.
func (c *Cluster) told() string {
	out := ""
	for _, h := range c.holders {
		for _, line := range h.post.told() {
			out += h.name + ": " + line + "\n"
		}
	}
	if out == "" {
		return "nothing"
	}
	return out
}

// Close ends all.
func (c *Cluster) Close() {
	c.server.stop()
	c.end()
	if err := <-c.ran; err != nil && !errors.Is(err, context.Canceled) {
		c.t.Errorf("the coordinator ended with %v", err)
	}
	for _, h := range c.holders {
		if h.server != nil {
			c.stop(h)
		}
	}
}

// view is a membership that changes as it is told.
type view struct {
	mu      sync.Mutex
	members map[string]membership.Member
	changed chan struct{}
}

func newView() *view {
	return &view{members: map[string]membership.Member{}, changed: make(chan struct{})}
}

func (v *view) set(m membership.Member) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.members[m.Name] = m
	close(v.changed)
	v.changed = make(chan struct{})
}

// Members implements membership.View.
func (v *view) Members() []membership.Member {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.SortedFunc(maps.Values(v.members), func(a, b membership.Member) int { return strings.Compare(a.Name, b.Name) })
}

// Changed implements membership.View.
func (v *view) Changed() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changed
}

// Close implements membership.View.
func (v *view) Close(context.Context) error { return nil }
