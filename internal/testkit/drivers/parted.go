package drivers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// This file tells a session that lacks what was acknowledged from one that goes on twice. Two that each reach only one of two holders
// may each go on with what they reach, and what one of them was acknowledged the other one lacks. That is so only if two workers, or
// two groups of them, each have the session under an epoch of their own, and one of them could not be reached when it was taken.

// errParted says that a session goes on twice, or was lost in part with a worker. Nobody drives it any more.
var errParted = errors.New("the session is given up: it goes on twice")

// silence is a time in which a worker answered nothing.
type silence struct {
	worker string
	from   time.Time
	until  time.Time
}

// reach asks each worker all the time whether it is there.
type reach struct {
	end   context.CancelFunc
	tasks sync.WaitGroup

	mu       sync.Mutex
	last     map[string]time.Time // by worker, when the newest answer came
	silences []silence            // that are over
}

const (
	// askEvery is the pause between two questions of a reach, and unheard how long a worker answers nothing until that counts.
	askEvery = 50 * time.Millisecond
	unheard  = 300 * time.Millisecond
	// believed is how long somebody may hold a worker for silent that answers again.
	believed = time.Second
)

func newReach(peers []rpc.Peer) *reach {
	ctx, end := context.WithCancel(context.Background())
	w := &reach{end: end, last: map[string]time.Time{}}
	conns := rpc.NewConns(nil, rpc.DialOptions()...)
	var asking sync.WaitGroup
	for _, p := range peers {
		w.last[p.Name] = time.Now()
		asking.Go(func() { w.ask(ctx, conns, p) })
	}
	w.tasks.Go(func() {
		asking.Wait()
		_ = conns.Close()
	})
	return w
}

func (w *reach) stop() {
	w.end()
	w.tasks.Wait()
}

// ask asks one worker until ctx ends. A new call is made for each question, so that one that is lost holds up nothing.
func (w *reach) ask(ctx context.Context, conns *rpc.Conns, p rpc.Peer) {
	for ctx.Err() == nil {
		if conn, err := conns.Use(p); err == nil {
			one, cancel := context.WithTimeout(ctx, unheard)
			_, err = healthv1.NewHealthClient(conn).Check(one, &healthv1.HealthCheckRequest{})
			cancel()
			conn.Release()
			if err == nil {
				w.answered(p.Name)
			}
		}
		wait(ctx, askEvery)
	}
}

func (w *reach) answered(worker string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if last := w.last[worker]; now.Sub(last) > unheard {
		w.silences = append(w.silences, silence{worker, last, now})
	}
	w.last[worker] = now
}

// unreached says whether a worker answered nothing for a while, not long before a time or since then.
func (w *reach) unreached(worker string, since time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Since(w.last[worker]) > unheard || slices.ContainsFunc(w.silences, func(s silence) bool {
		return s.worker == worker && s.until.After(since.Add(-believed))
	})
}

// heeded checks what a session has that was taken, or written into a snapshot, since a time. Of one that goes on twice it returns
// errParted.
func (d *driver) heeded(ctx context.Context, what string, since time.Time, seeds []uint32, check func() error) error {
	err := check()
	if err == nil {
		return nil
	}
	var lacks lackError
	if d.config.Replicas > 0 && errors.As(err, &lacks) {
		switch why := d.excuse(ctx, since); {
		case d.losses.orphaned(d.book, d.book.born[0]):
			d.book.giveUp(&d.tally.gone)
			return errParted
		case why == nil:
			d.book.giveUp(&d.tally.parted)
			return errParted
		default:
			err = fmt.Errorf("%w; and it does not go on twice: %w", err, why)
		}
	}
	return wrong{fmt.Errorf("%s of %d positions: %w; the workers tell:\n%s", what, len(seeds), err, d.told(ctx))}
}

// excuse returns nil if the driver's session goes on twice, and what one side has could not be reached when it was taken.
func (d *driver) excuse(ctx context.Context, since time.Time) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settled)
	defer cancel()
	for {
		sides, err := d.sides(ctx)
		for i, one := range sides {
			for _, other := range sides[:i] {
				if slices.ContainsFunc(one, func(name string) bool { return slices.Contains(other, name) }) {
					continue
				}
				if d.anyUnreached(one, since) || d.anyUnreached(other, since) {
					return nil
				}
				return fmt.Errorf("%v and %v each have it, and all could be reached", one, other)
			}
		}
		if err == nil {
			return fmt.Errorf("only %v have it", sides)
		}
		if ctx.Err() != nil {
			return err
		}
		d.pause(ctx)
	}
}

// anyUnreached says whether one of some workers could not be reached since a time.
func (d *driver) anyUnreached(names []string, since time.Time) bool {
	return slices.ContainsFunc(names, func(name string) bool { return d.unreached(name, since) })
}

// sides returns the workers of each complete epoch of the driver's session: one that is open, and told by all that it names.
func (d *driver) sides(ctx context.Context) (sides [][]string, _ error) {
	conns := fanout.NewConns(nil, rpc.DialOptions()...)
	defer conns.Close()
	members, told := map[string][]string{}, map[string][]string{} // by epoch: whom it names, and who tells it
	for _, w := range d.workers() {
		resp, err := conns.List(ctx, w.Name, w.Address, &headwaterv1.ListSessionsRequest{Sessions: [][]byte{d.book.id[:]}, HoldersOnly: true})
		if err != nil {
			return nil, err
		}
		for _, s := range resp.GetSessions() {
			e := s.GetEpoch()
			if key := fmt.Sprintf("%d %x", e.GetCounter(), e.GetLane()); !e.GetClosed() && slices.Contains(e.GetMembers(), w.Name) {
				members[key], told[key] = e.GetMembers(), append(told[key], w.Name)
			}
		}
	}
	for key, names := range members {
		if len(names) == len(told[key]) {
			sides = append(sides, slices.Sorted(slices.Values(names)))
		}
	}
	slices.SortFunc(sides, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	return sides, nil
}
