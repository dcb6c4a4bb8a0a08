package client

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Copies says how many copies sessions lack, as one coordinator has found it.
type Copies struct {
	LackingShards   uint64    // copies of shards that are missing: of a session with one replica, one for each shard with one holder
	LackingSessions uint64    // that lack some
	LostSessions    uint64    // of which some shards have no holder that answers
	TwiceSessions   uint64    // that went on twice: SessionState.OtherSides has what workers have of the other side
	Made            uint64    // copies that the coordinator has made since it started
	CopiedBytes     uint64    // of keys and values
	Looked          time.Time // when it last looked at all sessions; zero if it has not
}

// Copies asks the coordinator what copies sessions lack.
func (c *Client) Copies(ctx context.Context) (*Copies, error) {
	m, err := unary(ctx, c, "ask for copies", c.cluster.Copies, &headwaterv1.CopiesRequest{})
	if err != nil {
		return nil, err
	}
	return &Copies{m.GetLackingShards(), m.GetLackingSessions(), m.GetLostSessions(), m.GetTwiceSessions(), m.GetCopies(), m.GetCopiedBytes(), instant(m.GetLooked())}, nil
}

// Event is something that happened to the cluster.
type Event struct {
	Number uint64 // at this coordinator since its start, from 1; an event that goes on comes again under a new number
	Time   time.Time
	Kind   string // a word for programs: joined, gone, restarted, moved, copied, job, lacking, whole, stale, twice, draining, ...
	Worker string // that it is about, or ""
	Count  uint64 // sessions, shards, copies or jobs that it touched
	Text   string // one line for people
}

// Events calls do with each event that the coordinator has kept after a number (0 is all), and with follow also with those to come,
// until ctx ends or do fails.
func (c *Client) Events(ctx context.Context, after uint64, follow bool, do func(Event) error) error {
	return streamed(ctx, c, "watch events", func(ctx context.Context) (grpc.ServerStreamingClient[headwaterv1.WatchEventsResponse], error) {
		return c.cluster.WatchEvents(ctx, &headwaterv1.WatchEventsRequest{After: after, Follow: follow})
	}, func(m *headwaterv1.WatchEventsResponse) error {
		e := m.GetEvent()
		return do(Event{e.GetNumber(), instant(e.GetTime()), e.GetKind(), e.GetWorker(), e.GetCount(), e.GetText()})
	})
}

// Moves is how far a drain or a rebalance has come.
type Moves struct {
	Left        uint64 // sessions that are to be moved still
	Moved       uint64 // that were moved, once for each worker that they moved to
	CopiedBytes uint64
	LeftBytes   uint64 // about how many bytes the sessions that are left still have there; 0 of coordinators before 1.4
	Error       string // why the newest move failed; it is tried again. "" if it did not
	Done        bool
	// Silent are workers that did not answer a rebalance: what they hold is not counted, and nothing is moved to them.
	Silent []SilentWorker
}

func newMoves(m *headwaterv1.Moves) Moves {
	moves := Moves{Left: m.GetLeft(), Moved: m.GetMoved(), CopiedBytes: m.GetCopiedBytes(), LeftBytes: m.GetLeftBytes(), Error: m.GetError(), Done: m.GetDone()}
	for _, w := range m.GetSilent() {
		moves.Silent = append(moves.Silent, SilentWorker{w.GetWorker(), w.GetAddress(), w.GetError()})
	}
	return moves
}

// Drain moves all sessions away from a worker, while they go on, and keeps new sessions and jobs from it. It calls progress, unless
// nil, as it comes on, and returns when the worker holds no sessions. If ctx ends earlier, the worker stays drained.
func (c *Client) Drain(ctx context.Context, worker string, progress func(Moves)) error {
	return c.drain(ctx, "drain worker "+worker, &headwaterv1.DrainWorkerRequest{Worker: worker}, progress)
}

// Undrain lets a worker that was drained have sessions and jobs again.
func (c *Client) Undrain(ctx context.Context, worker string) error {
	return c.drain(ctx, "undrain worker "+worker, &headwaterv1.DrainWorkerRequest{Worker: worker, Undo: true}, nil)
}

func (c *Client) drain(ctx context.Context, doing string, req *headwaterv1.DrainWorkerRequest, progress func(Moves)) error {
	return streamed(ctx, c, doing, func(ctx context.Context) (grpc.ServerStreamingClient[headwaterv1.DrainWorkerResponse], error) {
		return c.cluster.DrainWorker(ctx, req)
	}, func(m *headwaterv1.DrainWorkerResponse) error {
		if progress != nil {
			progress(newMoves(m.GetMoves()))
		}
		return nil
	})
}

// Rebalance moves sessions, while they go on, from workers that hold more bytes than their weights say to those that hold fewer, for
// example after a worker has joined. It calls progress, unless nil, as it comes on.
func (c *Client) Rebalance(ctx context.Context, progress func(Moves)) error {
	return streamed(ctx, c, "rebalance", func(ctx context.Context) (grpc.ServerStreamingClient[headwaterv1.RebalanceResponse], error) {
		return c.cluster.Rebalance(ctx, &headwaterv1.RebalanceRequest{})
	}, func(m *headwaterv1.RebalanceResponse) error {
		if progress != nil {
			progress(newMoves(m.GetMoves()))
		}
		return nil
	})
}

// DropSide drops what a worker has of another side of a session that went on twice; the session goes on. What was acknowledged on that
// side may be there alone. It is refused if the worker has none, and as STALE_EPOCH if it has gone on meanwhile.
func (c *Client) DropSide(ctx context.Context, id SessionID, worker string) error {
	_, err := unary(ctx, c, "drop a side of session "+id.String(), c.cluster.DropSide, &headwaterv1.DropSideRequest{Session: id[:], Worker: worker})
	return err
}

// streamed makes a call whose answer is a stream, and calls do with each message.
func streamed[R any](ctx context.Context, c *Client, doing string, call func(context.Context) (grpc.ServerStreamingClient[R], error), do func(*R) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := call(ctx)
	if err != nil {
		return c.wrap(doing, err)
	}
	for first := true; ; first = false {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && first {
			err = c.checkStream(stream)
		}
		switch {
		case err != nil && first:
			return c.firstError(ctx, doing, err, stream)
		case err != nil:
			return c.wrap(doing, err)
		}
		if err := do(m); err != nil {
			return err
		}
	}
}
