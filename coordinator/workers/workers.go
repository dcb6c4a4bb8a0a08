// Package workers knows a cluster's workers: who they are by its membership, the connections to them, and what they say of
// themselves. Jobs and sessions ask it the same way, each with connections of its own, so that the bulk of a job never
// stands before a session's step in one socket.
package workers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/attention"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// Timeout is how long a worker may take to answer Ask.
const Timeout = 5 * time.Second

// strangerTimeout is how long Describe waits for workers that have never answered, once another has: gossip may name any
// number of them.
const strangerTimeout = time.Second

// View says who is in the cluster; a membership.View does. Both methods may be called concurrently and do not block.
type View interface {
	// Members returns the members now, sorted by name. The slice is the caller's.
	Members() []membership.Member
	// Changed returns a channel that is closed at the next change of Members. Get it before Members is read.
	Changed() <-chan struct{}
}

// Workers are a cluster's workers. Safe for concurrent use.
type Workers struct {
	View
	conns *rpc.Conns

	mu       sync.Mutex
	answered map[string][16]byte // by name, the boot that has answered
}

// New returns the workers of a view. Calls to them go over the connections.
func New(view View, conns *rpc.Conns) *Workers {
	return &Workers{View: view, conns: conns, answered: map[string][16]byte{}}
}

// Outsiders returns the workers that announce themselves and are left out, for people to see.
func (w *Workers) Outsiders() []membership.Outsider {
	return slices.DeleteFunc(membership.Outsiders(w.View), func(o membership.Outsider) bool { return o.Role == membership.RoleCoordinator })
}

// List returns the members of the view that are workers, sorted by name. The slice is the caller's.
func (w *Workers) List() []membership.Member {
	return slices.DeleteFunc(w.Members(), func(m membership.Member) bool { return m.Role != membership.RoleWorker })
}

// Keep keeps the connections to the workers, until ctx ends. A connection to anyone else ends with the calls that use it.
func (w *Workers) Keep(ctx context.Context) {
	var kept rpc.Kept
	defer kept.Set(w.conns)
	for {
		changed := w.Changed()
		var peers []rpc.Peer
		for _, m := range w.List() {
			peers = append(peers, peer(m))
		}
		kept.Set(w.conns, peers...)
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Ask calls do for every member, all at once, with a context that ends after Timeout, and waits for all. It returns their errors,
// in the order of the members.
func Ask(ctx context.Context, members []membership.Member, do func(ctx context.Context, i int, m membership.Member) error) []error {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	errs := make([]error, len(members))
	var tasks sync.WaitGroup
	for i, m := range members {
		tasks.Go(func() {
			errs[i] = rpc.Guard(nil, "asking worker "+m.Name, func() error { return do(ctx, i, m) })
		})
	}
	tasks.Wait()
	return errs
}

// peer is whom a connection to a worker is to.
func peer(m membership.Member) rpc.Peer { return rpc.Peer{Name: m.Name, Address: m.Address} }

// Use returns the connection to a worker. The caller releases it.
func (w *Workers) Use(m membership.Member) (*rpc.Conn, error) {
	conn, err := w.conns.Use(peer(m))
	if err != nil {
		return nil, fmt.Errorf("worker %q at %s: %w", m.Name, m.Address, err)
	}
	return conn, nil
}

// Description is a worker's description of itself, or why it gave none.
type Description struct {
	membership.Member
	Said *headwaterv1.DescribeResponse // nil if Err is not
	Err  error                         // names the worker
}

// errStranger ends the asking of workers that have never answered.
var errStranger = fmt.Errorf("it has never answered, nor within %v after another did", strangerTimeout)

// Describe asks each member for its identity and its memory. A worker of another protocol version is an error.
// It waits for those that have answered before; for the others only a moment once one answers.
func (w *Workers) Describe(ctx context.Context, members []membership.Member) []Description {
	described := make([]Description, len(members))
	patience, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	var once sync.Once
	var timer *time.Timer
	errs := Ask(ctx, members, func(ctx context.Context, i int, m membership.Member) error {
		d := &described[i]
		d.Member = m
		stranger := !w.known(m)
		if stranger {
			var cancel context.CancelFunc
			ctx, cancel = context.WithCancel(ctx)
			defer context.AfterFunc(patience, cancel)()
			defer cancel()
		}
		d.Said, d.Err = w.describe(ctx, m)
		switch {
		case d.Err == nil:
			w.meet(m)
			once.Do(func() { timer = time.AfterFunc(strangerTimeout, func() { giveUp(errStranger) }) })
		case stranger && context.Cause(patience) == errStranger:
			d.Err = fmt.Errorf("worker %q at %s: %w", m.Name, m.Address, status.Error(codes.Unavailable, errStranger.Error()))
		}
		return d.Err
	})
	for i, err := range errs {
		described[i].Err = err
	}
	if timer != nil {
		timer.Stop()
	}
	return described
}

// known reports whether this start of a worker has answered before.
func (w *Workers) known(m membership.Member) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	boot, ok := w.answered[m.Name]
	return ok && boot == m.Boot
}

// meet notes that a worker has answered, and forgets those that are gone.
func (w *Workers) meet(m membership.Member) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.answered) > 2*shard.MaxWorkers {
		clear(w.answered)
	}
	w.answered[m.Name] = m.Boot
}

func (w *Workers) describe(ctx context.Context, m membership.Member) (*headwaterv1.DescribeResponse, error) {
	conn, err := w.Use(m)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	var header metadata.MD
	ctx, stop := w.conns.Heed(ctx, func() bool { return true }, peer(m))
	said, err := headwaterv1.NewWorkerServiceClient(conn).Describe(ctx, &headwaterv1.DescribeRequest{}, grpc.Header(&header))
	if silent := stop(); err != nil && silent != (rpc.Peer{}) {
		err = rpc.ErrSilent
	}
	if err == nil {
		err = rpc.CheckHeader(m.Address, header)
	}
	if err == nil && said.GetName() != m.Name {
		err = fmt.Errorf("it says that it is %q", said.GetName())
	}
	if err == nil && said.GetWeight() > shard.MaxWeight {
		err = fmt.Errorf("left out: its weight %d is not in 1 to %d", said.GetWeight(), shard.MaxWeight)
	}
	if err != nil {
		return nil, fmt.Errorf("worker %q at %s: %w", m.Name, m.Address, err)
	}
	return said, nil
}

// Answering returns those that answer, at least one. If a worker speaks another protocol version, that is the error: it
// would be left out without a word.
func Answering(described []Description) ([]Description, error) {
	var answering []Description
	var silent error
	for _, d := range described {
		switch {
		case d.Err == nil:
			answering = append(answering, d)
		case status.Code(d.Err) == codes.FailedPrecondition:
			return nil, status.Error(codes.FailedPrecondition, OneLine(d.Err))
		case silent == nil:
			silent = d.Err
		}
	}
	switch {
	case len(answering) > 0:
		return answering, nil
	case silent != nil:
		return nil, status.Errorf(codes.Unavailable, "no worker answers: %s", OneLine(silent))
	}
	return nil, status.Error(codes.Unavailable, "no worker has joined the cluster")
}

// Placeable returns those that answer and are not drained, at least one: they may be given more.
func Placeable(described []Description) ([]Description, error) {
	answering, err := Answering(described)
	if err != nil {
		return nil, err
	}
	placeable := slices.DeleteFunc(answering, func(d Description) bool { return d.Said.GetDraining() })
	if len(placeable) == 0 {
		return nil, status.Error(codes.Unavailable, "all workers that answer are drained: add some, or undo it with coord drain --undo")
	}
	return placeable, nil
}

// Arithmetic is what attention.Auto is taken for in what these workers, which answer, are to hold: Tiles if each of them has a matrix
// unit, since Tiles takes longer than Chain without one.
func Arithmetic(holders []Description) attention.Arithmetic {
	if len(holders) == 0 || slices.ContainsFunc(holders, func(d Description) bool { return !d.Said.GetMatrixUnit() }) {
		return attention.Chain
	}
	return attention.Tiles
}

// OneLine is an error without gRPC's own prefix, which repeats the code.
func OneLine(err error) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(err.Error()), " "), "rpc error: code = ", "")
}
