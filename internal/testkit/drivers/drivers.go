// Package drivers lets several clients drive the same sessions of a cluster, all at once and in bad company, and holds what they
// see to what was said to them.
//
// Each driver takes a session over, by a coordinator or directly, and appends, attends, truncates, forks and has snapshots written,
// until another one takes it. Deadlines strike in the middle of calls; holders are slow, keep messages back, lose answers, and
// stop for a while; budgets are tiny. The cluster is in this process (cluster.go), where messages can be disturbed one by one, or
// made of processes that are stopped, killed and started again (processes.go). What must hold:
//
//   - a context is the one of the prefix that its driver named, in every bit;
//   - a session that is taken up, forked or restored has at each position what one append has put there after the one before it,
//     the same in all groups: no state is a mixture of two steps;
//   - what was acknowledged before a session is taken up is there, unless somebody has asked to take it back;
//   - a session is gone only if all holders of one of its groups have been killed, and then for good (losses.go); with copies, what
//     was acknowledged is missing only then, or if two workers that could not be reached one after the other have each gone on
//     with it (parted.go), which is counted;
//   - the appends, truncations, forks and takes of a session can be put in one order that explains all answers (order.go);
//   - every error has a kind.
//
// What a position holds says which append has made it, so that every reader can tell.
package drivers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"headwater.example/client"
	"headwater.example/internal/rpc"
	"headwater.example/internal/testkit/cut"
	"headwater.example/internal/testkit/jump"
)

// Config is what a run is made with.
type Config struct {
	Workers  int
	Sessions int
	Drivers  int   // of each session
	Budget   int64 // of each worker, in bytes
	Seed     uint64
	Time     time.Duration // for which the sessions are driven, once they are open; 0 is until the context ends
	Steps    int64         // after which the drivers stop earlier, 0 is never

	// Command is the program coord, for a cluster of processes; "" is a cluster in this process.
	Command string
	// Replicas is how many copies sessions have, and Dim the size of a head, 0 is 4: of processes alone.
	Replicas, Dim int
	// Coordinators are one or two, of processes alone; 0 is one.
	Coordinators int
	Log          io.Writer // of the processes
	// Network, unless nil, is this program's own, in which the processes are cut off as well.
	Network *cut.Network
	// Slow lets that network be slow at times, Delay lets packets come late and out of order, and Starve a process have no more memory.
	Slow, Delay, Starve bool
	// Clocks, unless nil, are those of the processes, which jump.
	Clocks *jump.Clocks
}

// Tally counts what drivers have done.
type Tally struct {
	Steps, Contexts, Takeovers, Forks, Truncations, Snapshots int64
	// Unknown are calls of which no outcome came: a deadline, or a connection that broke.
	Unknown int64
	// Stuck are sessions that in the end only a client with a receipt could take up.
	// Absent are those that could not be taken up within a minute of peace.
	Stuck, Absent int64
	// Refused are calls that found no room, Lost those that found a worker lost, Gone sessions that were lost with a worker, Parted those
	// that went on twice.
	Refused, Lost, Gone, Parted int64
	// Stops, Kills and Cuts are those of processes; cut is off the network. Jumps are those of their clocks.
	Stops, Kills, Cuts, Jumps int64
	// Slowed is how often the network was slow, Delayed how often packets came late, Starved how often a process got no more memory.
	Slowed, Delayed, Starved int64
	// Appends are those that were acknowledged. Attempts are calls that had two seconds, but for those that found another driver, and
	// Timely those of them that went well.
	Appends, Attempts, Timely int64
	// Ordered are appends, truncations, forks, takes and snapshots for which an order was found that explains them all, Undecided those
	// for which none was found in time, and none was ruled out.
	Ordered, Undecided int64
}

// maxLen is about how many positions a session gets.
const maxLen = 200

// run is a run under way.
type run struct {
	config Config
	company
	seeds  atomic.Uint32 // of positions, each other than all before
	losses losses
	slots  []*slot
	booked sync.Mutex // guards books
	books  []*book    // of all sessions that there were
	enough func()     // ends the driving
	tally  struct {
		steps, contexts, takeovers, forks, truncations, snapshots, unknown, refused, lost, gone, parted, stuck, absent, stops, kills, cuts, jumps, slowed, delayed, starved, appends, attempts, timely, ordered, undecided atomic.Int64
	}
}

// company is a cluster and what becomes of it.
type company interface {
	coordinators() []string // their addresses
	// workers are the workers, and unreached says whether one could not be reached since a time: of clusters whose sessions have copies.
	workers() []rpc.Peer
	unreached(worker string, since time.Time) bool
	// begin lets bad things happen, until ctx ends, and returns an error of its own.
	disturb(ctx context.Context, r *run) error
	stop() error
}

// Run drives sessions until ctx ends. The error is the first thing that must not be, nil if there was none.
func Run(ctx context.Context, config Config) (Tally, error) {
	if config.Dim == 0 {
		config.Dim = 4
	}
	start := startCluster
	if config.Command != "" {
		start = startProcesses
	}
	c, err := start(ctx, config)
	if err != nil {
		return Tally{}, err
	}
	r := &run{config: config, company: c}
	err = r.run(ctx)
	t := &r.tally
	return Tally{
		Steps: t.steps.Load(), Contexts: t.contexts.Load(), Takeovers: t.takeovers.Load(), Forks: t.forks.Load(),
		Truncations: t.truncations.Load(), Snapshots: t.snapshots.Load(), Unknown: t.unknown.Load(),
		Refused: t.refused.Load(), Lost: t.lost.Load(), Gone: t.gone.Load(), Parted: t.parted.Load(), Stuck: t.stuck.Load(), Absent: t.absent.Load(), Stops: t.stops.Load(), Kills: t.kills.Load(), Cuts: t.cuts.Load(), Jumps: t.jumps.Load(),
		Slowed: t.slowed.Load(), Delayed: t.delayed.Load(), Starved: t.starved.Load(),
		Appends: t.appends.Load(), Attempts: t.attempts.Load(), Timely: t.timely.Load(), Ordered: t.ordered.Load(), Undecided: t.undecided.Load(),
	}, errors.Join(err, c.stop())
}

func (r *run) run(ctx context.Context) error {
	opener, err := client.Dial(r.coordinators()[0])
	if err != nil {
		return err
	}
	defer opener.Close()
	for i := range r.config.Sessions {
		s := &slot{name: fmt.Sprintf("s%d", i), workers: 1 + i%r.config.Workers}
		if r.config.Replicas > 0 {
			s.workers = 0
		}
		if err := r.open(ctx, opener, s); err != nil {
			return err
		}
		r.slots = append(r.slots, s)
	}
	driving, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	r.enough = sync.OnceFunc(func() { stop(nil) })
	if r.config.Time > 0 {
		defer time.AfterFunc(r.config.Time, r.enough).Stop()
	}
	var all sync.WaitGroup
	begin := func(do func(context.Context) error) {
		all.Go(func() {
			if err := do(driving); err != nil {
				stop(err)
			}
		})
	}
	begin(func(ctx context.Context) error { return r.disturb(ctx, r) })
	for i, s := range r.slots {
		for j := range r.config.Drivers {
			d := &driver{run: r, slot: s, direct: j%2 == 1, asks: i + j, rand: rand.New(rand.NewPCG(r.config.Seed, uint64(2+i*r.config.Drivers+j)))}
			begin(d.drive)
		}
	}
	all.Wait()
	if err := failure(context.Cause(driving)); err != nil {
		return err
	}
	return r.settle(context.WithoutCancel(ctx))
}

// failure is why a run ended, nil where its time was over.
func failure(cause error) error {
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return nil
	}
	return cause
}

// driver drives a slot's session time and again.
type driver struct {
	*run
	slot   *slot
	book   *book // of the session that it drives now
	lane   *lane // on which it does
	direct bool
	asks   int // which of the coordinators
	rand   *rand.Rand
	client *client.Client
}

// dial prepares a connection to the driver's coordinator.
func (d *driver) dial() (*client.Client, error) {
	all := d.coordinators()
	return client.Dial(all[d.asks%len(all)])
}

func (d *driver) drive(ctx context.Context) (err error) {
	if d.client, err = d.dial(); err != nil {
		return err
	}
	defer d.client.Close()
	for ctx.Err() == nil {
		d.book = d.slot.current()
		if d.rand.IntN(12) == 0 {
			err = d.snapshot(ctx)
		} else {
			err = d.take(ctx)
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		if err := d.allowed(err); err != nil {
			return err
		}
		if errors.Is(err, client.ErrGone) || errors.Is(err, errParted) {
			if err := d.replace(ctx, d.client, d.slot, d.book); err != nil {
				return err
			}
			continue
		}
		d.pause(ctx)
	}
	return nil
}

// allowed returns an error that a call on the driver's session must not have.
func (d *driver) allowed(err error) error {
	if err := d.judge(err, d.book, d.book.born[0]); err != nil {
		return fmt.Errorf("session %s, direct %v: %w; the workers tell:\n%s", d.book.id, d.direct, err, d.told(context.Background()))
	}
	return nil
}

// other is the error of a call on a session that the driver has made itself, at a time, so that any worker may hold it.
func (d *driver) other(err error, since int) error {
	if err := d.judge(err, nil, since); err != nil || !errors.Is(err, client.ErrGone) {
		return err
	}
	return nil
}

// deadline is a context that often ends in the middle of a call.
func (d *driver) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if d.rand.IntN(3) > 0 {
		return context.WithTimeout(ctx, 2*time.Second)
	}
	return context.WithTimeout(ctx, time.Duration(d.rand.IntN(3000))*time.Microsecond)
}

// claim takes the session over and looks at what it has.
func (d *driver) claim(attaching, ctx context.Context) (*client.Session, []uint32, error) {
	promised, began, call := d.book.promised(), time.Now(), d.book.now()
	s, err := d.client.Attach(attaching, d.book.id, client.AttachOptions{Direct: d.direct})
	if err != nil {
		return nil, nil, err
	}
	d.lane = d.book.attached(call)
	d.tally.takeovers.Add(1)
	seeds, err := d.read(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	if err := d.attend(ctx, s, seeds); err != nil {
		return nil, nil, err // Somebody else has it again, so that what was read may be anything.
	}
	if err := d.heeded(ctx, "taken over", began, seeds, func() error { return d.book.check("taken over", seeds, promised) }); err != nil {
		return nil, nil, err
	}
	d.book.did(d.lane, call, newest(seeds), newest(seeds))
	return s, seeds, nil
}

// take takes the session over, and drives it for a while.
func (d *driver) take(ctx context.Context) error {
	attaching, cancel := d.deadline(ctx)
	defer cancel()
	s, seeds, err := d.claim(attaching, ctx)
	if err != nil {
		return err
	}
	for range 1 + d.rand.IntN(20) {
		if seeds, err = d.act(ctx, s, seeds); err != nil {
			if errors.Is(err, client.ErrTakenOver) || errors.Is(err, client.ErrGone) || ctx.Err() != nil {
				return err
			}
			if err := d.allowed(err); err != nil {
				return err
			}
		}
		if s.Len() != len(seeds) {
			return wrong{fmt.Errorf("session %s: its client says %d positions, and was told of %d", d.book.id, s.Len(), len(seeds))}
		}
	}
	return s.Close()
}

// last looks at the session of a slot once nothing bad happens any more.
func (d *driver) last(ctx context.Context) (err error) {
	if d.client, err = d.dial(); err != nil {
		return err
	}
	defer d.client.Close()
	var before error
	for {
		s, _, err := d.claim(ctx, ctx)
		if err == nil {
			if d.losses.must(d.book.holders, d.book.born[1]) && d.config.Replicas == 0 {
				return wrong{fmt.Errorf("session %s is there, and one of its holders %v has died", d.book.id, d.book.holders)}
			}
			return s.Close()
		}
		if err := d.allowed(err); err != nil {
			return err
		}
		if ctx.Err() != nil {
			d.tally.absent.Add(1) // No time is asserted, but it is said.
			fmt.Fprintf(cmp.Or[io.Writer](d.config.Log, io.Discard), "session %s, direct %v, has not come back: %v; before that: %v\n%s", d.book.id, d.direct, err, before, d.told(context.WithoutCancel(ctx)))
			return nil
		}
		before = err
		if errors.Is(err, client.ErrGone) {
			return nil
		}
		if refused := new(client.SessionError); errors.As(err, &refused) && refused.Reason == client.ReasonDifferent {
			d.tally.stuck.Add(1) // Holders are more than a change apart: docs/sessions.md says that only a receipt helps.
			return nil
		}
		d.pause(ctx)
	}
}

// act does one thing, and returns what the session has then, as far as its client was told.
func (d *driver) act(ctx context.Context, s *client.Session, seeds []uint32) ([]uint32, error) {
	one, cancel := d.deadline(ctx)
	defer cancel()
	end, _ := one.Deadline() // it has one
	patient := time.Until(end) > time.Second
	seeds, err := d.actWithin(one, s, seeds)
	if patient && ctx.Err() == nil && !errors.Is(err, client.ErrTakenOver) {
		if d.tally.attempts.Add(1); err == nil {
			d.tally.timely.Add(1)
		}
	}
	return seeds, err
}

func (d *driver) actWithin(one context.Context, s *client.Session, seeds []uint32) ([]uint32, error) {
	switch n := d.rand.IntN(20); {
	case n < 12 && len(seeds) < maxLen:
		return d.append(one, s, seeds)
	case n < 14:
		call := d.book.now()
		err := d.attend(one, s, seeds)
		if len(seeds) > 0 {
			d.book.acted(d.lane, call, seeds, err)
		}
		return seeds, err
	case n < 16:
		return seeds, d.fork(one, s, seeds)
	}
	to := max(len(seeds)-d.rand.IntN(6), 0)
	if len(seeds) >= maxLen {
		to = d.rand.IntN(maxLen)
	}
	at := d.book.beginCut(to)
	d.tally.truncations.Add(1)
	if err := s.Truncate(one, to); err != nil {
		// One whose outcome is not known counts as done.
		d.book.may(d.lane, at, newest(seeds), newest(seeds[:to]), newest(seeds[:s.Len()]))
		return seeds[:s.Len()], err
	}
	d.book.acknowledgeCut(at, to)
	d.book.did(d.lane, at, newest(seeds), newest(seeds[:to]))
	return seeds[:to], nil
}

func (d *driver) append(ctx context.Context, s *client.Session, seeds []uint32) ([]uint32, error) {
	added := make([]uint32, 1+d.rand.IntN(4))
	if d.rand.IntN(10) == 0 {
		added = make([]uint32, 70)
	}
	for i := range added {
		added[i] = d.seeds.Add(1)
	}
	call := d.book.begin(seeds, added)
	all := append(slices.Clone(seeds), added...)
	k, v := rows(added, d.config.Dim)
	q := d.queries()
	got := make([]float32, len(q))
	if err := s.Step(ctx, 0, q, k, v, got, nil); err != nil {
		d.book.may(d.lane, call, newest(seeds), newest(all), newest(seeds))
		return seeds[:min(len(seeds), s.Len())], err
	}
	d.book.acknowledge(len(seeds), added)
	d.book.did(d.lane, call, newest(seeds), newest(all))
	d.tally.appends.Add(1)
	d.stepped()
	return all, d.compare("a step", all, q, got)
}

func (d *driver) attend(ctx context.Context, s *client.Session, seeds []uint32) error {
	if len(seeds) == 0 {
		return nil
	}
	q := d.queries()
	got := make([]float32, len(q))
	if err := s.Step(ctx, 0, q, nil, nil, got, nil); err != nil {
		return err
	}
	d.stepped()
	return d.compare("a query", seeds, q, got)
}

// stepped counts a step, and ends the driving once there are enough.
func (d *driver) stepped() {
	if n := d.tally.steps.Add(1); n == d.config.Steps && d.enough != nil {
		d.enough()
	}
}

func (d *driver) compare(what string, seeds []uint32, q, got []float32) error {
	d.tally.contexts.Add(1)
	want, err := contexts(seeds, q, d.config.Dim)
	if err != nil {
		return wrong{err}
	}
	if !slices.Equal(got, want) {
		return wrong{fmt.Errorf("session %s: %s over %v gave %v, not %v", d.book.id, what, seeds, got, want)}
	}
	return nil
}

// fork forks the session, looks at the child, and drops it.
func (d *driver) fork(ctx context.Context, s *client.Session, seeds []uint32) error {
	since, call := d.losses.tick(), d.book.now()
	child, err := s.Fork(ctx)
	if err != nil {
		d.book.acted(d.lane, call, seeds, err)
		return err
	}
	d.book.did(d.lane, call, newest(seeds), newest(seeds))
	d.tally.forks.Add(1)
	defer d.drop(ctx, child)
	have, err := d.read(ctx, child)
	if err != nil {
		return d.other(err, since)
	}
	if !slices.Equal(have, seeds) {
		return wrong{fmt.Errorf("session %s: a fork of %v has %v", d.book.id, seeds, have)}
	}
	return d.other(d.attend(ctx, child, have), since)
}

// drop ends a session that nobody needs, also where ctx has ended.
func (d *driver) drop(ctx context.Context, s *client.Session) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = s.Drop(ctx) // else it is found in the end
}
