// Package stillnet is a network in memory on which nothing moves by itself. Clients make gRPC calls over it with the options of
// Dial, servers are registered with it as with a grpc.Server, and each message, in the bytes of the real codec, is held until the
// test lets it go on, breaks its connection, or ends the server's process.
//
// It is made for bubbles of testing/synctest: once nothing runs there any more, Calls has all that is held, in an order that
// follows from what is sent and not from who ran first.
package stillnet

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Net is a network. Its calls are those of one goroutine, which drives it while nothing else runs; clients and servers use it
// concurrently.
type Net struct {
	mu      sync.Mutex
	nodes   map[string]*node // by address, the last process there
	calls   []*Call
	fresh   []*Call        // of calls, that have no number yet
	numbers map[string]int // how many calls there have been of one kind
}

// New makes a network without servers.
func New() *Net { return &Net{nodes: map[string]*node{}, numbers: map[string]int{}} }

// node is one process of a server.
type node struct {
	methods map[string]method // by full name
	open    bool              // its messages are not held
	ctx     context.Context   // of all that it serves
	end     context.CancelFunc
	serving sync.WaitGroup
	dead    bool
}

type method struct {
	service any
	unary   *grpc.MethodDesc
	stream  *grpc.StreamDesc
}

// RegisterService implements grpc.ServiceRegistrar.
func (d *node) RegisterService(desc *grpc.ServiceDesc, service any) {
	for i := range desc.Methods {
		d.methods["/"+desc.ServiceName+"/"+desc.Methods[i].MethodName] = method{service: service, unary: &desc.Methods[i]}
	}
	for i := range desc.Streams {
		d.methods["/"+desc.ServiceName+"/"+desc.Streams[i].StreamName] = method{service: service, stream: &desc.Streams[i]}
	}
}

// Serve starts a server at an address, where there is none or one that was stopped.
func (n *Net) Serve(address string, register func(grpc.ServiceRegistrar)) {
	n.serve(address, register, false)
}

// ServeOpen is Serve for a server whose messages are not held: it is as near to its clients as if it were a part of them.
func (n *Net) ServeOpen(address string, register func(grpc.ServiceRegistrar)) {
	n.serve(address, register, true)
}

func (n *Net) serve(address string, register func(grpc.ServiceRegistrar), open bool) {
	d := &node{methods: map[string]method{}, open: open}
	d.ctx, d.end = context.WithCancel(context.Background())
	register(d)
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.nodes[address]; old != nil && !old.dead {
		panic("stillnet: two servers at " + address)
	}
	n.nodes[address] = d
}

// Stop ends the process of a server, if it runs, and waits for what it serves. Its clients learn of it as messages do: a request that
// is delivered to where nobody is fails.
func (n *Net) Stop(address string) {
	n.mu.Lock()
	d := n.nodes[address]
	if d == nil || d.dead {
		n.mu.Unlock()
		return
	}
	d.dead = true
	n.mu.Unlock()
	d.end()
	d.serving.Wait()
}

// Break breaks all connections of a client to a server. What the client has sent stays on its way, and may be delivered later; what
// comes back is lost.
func (n *Net) Break(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.calls {
		if c.from == from && c.to == to && !c.ended {
			c.answers = nil
			c.fail(errBroken)
		}
	}
}

var (
	errBroken  = status.Error(codes.Unavailable, "the connection broke")
	errRefused = status.Error(codes.Unavailable, "connection refused")
)

// Calls returns all calls that there have been and whose messages are held, by name. It names those that are new.
func (n *Net) Calls() []*Call {
	n.mu.Lock()
	defer n.mu.Unlock()
	slices.SortStableFunc(n.fresh, func(a, b *Call) int {
		return cmp.Or(strings.Compare(a.kind, b.kind), bytes.Compare(first(a.requests), first(b.requests)))
	})
	for _, c := range n.fresh {
		n.numbers[c.kind]++
		c.name = fmt.Sprintf("%s %d", c.kind, n.numbers[c.kind])
	}
	if len(n.fresh) > 0 {
		slices.SortFunc(n.calls, func(a, b *Call) int { return strings.Compare(a.name, b.name) })
		n.fresh = n.fresh[:0]
	}
	return n.calls
}

func first(messages [][]byte) []byte {
	if len(messages) == 0 {
		return nil
	}
	return messages[0]
}

// Call is one call: a unary one, or a stream.
type Call struct {
	net         *Net
	node        *node
	from, to    string
	kind, name  string
	method      string
	lane        bool // its answers come one by one
	free        bool // nothing of it is held
	ctx         context.Context
	mu          *sync.Mutex // of net
	requests    [][]byte    // held
	requestsEnd bool        // no more are sent
	answers     [][]byte    // held
	answersEnd  bool        // the server has ended the call
	result      error       // with that
	server      *serverStream
	got         [][]byte // delivered to the client, and not read yet
	wake        chan struct{}
	ended       bool  // for the client
	err         error // why
	past        uint64
}

// Name names the call by who calls whom for what, and how many alike there have been.
func (c *Call) Name() string { return c.name }

// From returns who calls.
func (c *Call) From() string { return c.from }

// To returns the address of the called.
func (c *Call) To() string { return c.to }

// Method returns the full name of the method.
func (c *Call) Method() string { return c.method }

// Orphan reports whether the client has given the call up. A request of it may still be delivered.
func (c *Call) Orphan() bool { return c.ended }

// Requests returns how many requests are held.
func (c *Call) Requests() int { return len(c.requests) }

// Answers returns how many answers are held, with the end of the call.
func (c *Call) Answers() int {
	if c.ended {
		return 0
	}
	if c.answersEnd {
		return len(c.answers) + 1
	}
	return len(c.answers)
}

var seed = maphash.MakeSeed()

// note adds to what the client has sent and received.
func (c *Call) note(kind byte, message []byte) {
	var h maphash.Hash
	h.SetSeed(seed)
	maphash.WriteComparable(&h, c.past)
	_ = h.WriteByte(kind)
	_, _ = h.Write(message)
	c.past = h.Sum64()
}

// Hash writes the state of the call: what its client has sent and received, and what is held.
func (c *Call) Hash(h *maphash.Hash) {
	_, _ = h.WriteString(c.name)
	maphash.WriteComparable(h, [...]uint64{c.past, uint64(len(c.requests)), uint64(len(c.answers))})
	maphash.WriteComparable(h, [...]bool{c.ended, c.requestsEnd, c.answersEnd, c.node != nil && c.node.dead, c.server != nil})
	for _, list := range [][][]byte{c.requests, c.answers} {
		for _, m := range list {
			maphash.WriteComparable(h, len(m))
			_, _ = h.Write(m)
		}
	}
}

// Deliver hands the first held request to the server that is there. If there is none, or another one than had the requests before, the
// call fails.
func (c *Call) Deliver() {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.requests[0]
	c.requests = c.requests[1:]
	if err := c.reach(); err != nil {
		c.requests = nil
		c.fail(err)
		return
	}
	c.serve()
	c.server.take(m)
	if len(c.requests) == 0 && c.requestsEnd {
		c.server.takeEnd()
	}
}

// reach finds the server of a call.
func (c *Call) reach() error {
	if c.node == nil {
		d := c.net.nodes[c.to]
		if d == nil || d.dead {
			return errRefused
		}
		if _, ok := d.methods[c.method]; !ok {
			return status.Errorf(codes.Unimplemented, "%s at %s", c.method, c.to)
		}
		c.node = d
	}
	if c.node.dead {
		return errBroken
	}
	return nil
}

// Broken reports whether the server has ended without an answer, which the client does not know yet.
func (c *Call) Broken() bool {
	return !c.ended && c.node != nil && c.node.dead && len(c.requests) == 0 && c.Answers() == 0
}

// Notice tells the client that the connection is broken.
func (c *Call) Notice() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail(errBroken)
}

// Answer hands held answers to the client: the first of a lane, all of another call.
func (c *Call) Answer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.answers)
	if c.lane {
		n = min(n, 1)
	}
	c.hand(c.answers[:n])
	c.answers = c.answers[n:]
	if c.answersEnd && len(c.answers) == 0 {
		c.fail(c.result)
	}
}

// hand gives answers to the client.
func (c *Call) hand(answers [][]byte) {
	if c.ended {
		return
	}
	for _, m := range answers {
		c.note('<', m)
	}
	c.got = append(c.got, answers...)
	c.notify()
}

func (c *Call) notify() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// fail ends the call for the client.
func (c *Call) fail(err error) {
	if c.ended {
		return
	}
	c.ended, c.err = true, err
	c.note('!', fmt.Append(nil, err))
	c.notify()
}
