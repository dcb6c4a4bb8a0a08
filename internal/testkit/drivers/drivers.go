// Package drivers lets several clients drive the same sessions of a cluster in this process, all at once and in bad company, and
// holds what they see to what was said to them.
//
// Each driver takes a session over, by a coordinator or directly, and appends, attends, truncates, forks and has snapshots written,
// until another one takes it. Deadlines strike in the middle of calls; holders are slow, keep messages back, lose answers, and
// stop for a while; budgets are tiny. What must hold:
//
//   - a context is the one of the prefix that its driver named, in every bit;
//   - a session that is taken up, forked or restored has at each position what one append has put there after the one before it,
//     the same in all groups: no state is a mixture of two steps;
//   - what was acknowledged before a session is taken up is there, unless somebody has asked to take it back.
//
// What a position holds says which append has made it, so that every reader can tell.
package drivers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"headwater.example/client"
)

// Config is what a run is made with.
type Config struct {
	Workers  int
	Sessions int
	Drivers  int   // of each session
	Budget   int64 // of each worker, in bytes
	Seed     uint64
}

// Tally counts what drivers have done.
type Tally struct {
	Steps, Contexts, Takeovers, Forks, Truncations, Snapshots int64
	// Unknown are calls of which no outcome came: a deadline, or a connection that broke.
	Unknown int64
}

// maxLen is about how many positions a session gets.
const maxLen = 200

// run is a run under way.
type run struct {
	cluster *cluster
	seeds   atomic.Uint32 // of positions, each other than all before
	tally   struct{ steps, contexts, takeovers, forks, truncations, snapshots, unknown atomic.Int64 }
}

// Run drives sessions until ctx ends. The error is the first thing that must not be, nil if there was none.
func Run(ctx context.Context, config Config) (Tally, error) {
	c, err := startCluster(config)
	if err != nil {
		return Tally{}, err
	}
	r := &run{cluster: c}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var all sync.WaitGroup
	fail := func(err error) {
		if err != nil {
			stop(err)
		}
	}
	books := make([]*book, config.Sessions)
	for i := range books {
		books[i] = &book{parent: map[uint32]uint32{}, placed: map[uint32]int{}, acked: map[uint32]int{}}
		if err := r.open(ctx, books[i], i); err != nil {
			return Tally{}, errors.Join(err, c.stop())
		}
	}
	c.calm.Store(false)
	all.Go(func() { c.disturb(ctx, rand.New(rand.NewPCG(config.Seed, 1))) })
	for i, b := range books {
		for j := range config.Drivers {
			all.Go(func() {
				d := &driver{run: r, book: b, direct: j%2 == 1, rand: rand.New(rand.NewPCG(config.Seed, uint64(2+i*config.Drivers+j)))}
				fail(d.drive(ctx))
			})
		}
	}
	all.Wait()
	c.calm.Store(true)
	err = errors.Join(failure(context.Cause(ctx)), c.stop())
	t := &r.tally
	return Tally{
		Steps: t.steps.Load(), Contexts: t.contexts.Load(), Takeovers: t.takeovers.Load(), Forks: t.forks.Load(),
		Truncations: t.truncations.Load(), Snapshots: t.snapshots.Load(), Unknown: t.unknown.Load(),
	}, err
}

// failure is why a run ended, nil where its time was over.
func failure(cause error) error {
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return nil
	}
	return cause
}

func (r *run) open(ctx context.Context, b *book, i int) error {
	c, err := client.Dial(r.cluster.address)
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.OpenSession(ctx, client.SessionOptions{Layers: layers, Name: fmt.Sprintf("s%d", i), Workers: 1 + i%len(r.cluster.holders)})
	if err != nil {
		return err
	}
	b.id = s.ID()
	return nil
}

// book is what was said to the drivers of a session.
type book struct {
	id client.SessionID

	mu     sync.Mutex
	clock  int
	parent map[uint32]uint32 // of each seed, that of the position before
	placed map[uint32]int    // of each seed, when its append was begun
	acked  map[uint32]int    // seeds whose append was acknowledged, with their positions
	cuts   []cut
}

// cut is a truncation that somebody has asked for.
type cut struct{ at, to int }

// tick returns the time, which goes on.
func (b *book) tick() int { b.clock++; return b.clock }

// begin notes an append.
func (b *book) begin(before, added []uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now, last := b.tick(), uint32(0)
	if len(before) > 0 {
		last = before[len(before)-1]
	}
	for _, s := range added {
		b.parent[s], b.placed[s] = last, now
		last = s
	}
}

func (b *book) acknowledge(from int, added []uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, s := range added {
		b.acked[s] = from + i
	}
}

// beginCut notes a truncation, and returns when it was asked for.
func (b *book) beginCut(to int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.tick()
	b.cuts = append(b.cuts, cut{now, to})
	return now
}

// acknowledgeCut forgets what was taken back.
func (b *book) acknowledgeCut(at, to int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.acked, func(s uint32, position int) bool { return position >= to && b.placed[s] < at })
}

// promised is what was acknowledged by now.
func (b *book) promised() map[uint32]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.acked)
}

// check holds what a session has to what was said before. A session that may be read at any length has no promise.
func (b *book) check(what string, seeds []uint32, promised map[uint32]int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := uint32(0)
	for i, s := range seeds {
		before, known := b.parent[s]
		if !known || before != last {
			return fmt.Errorf("session %s: %s: position %d of %v has %d after %d, which was appended after %d (known %v)", b.id, what, i, seeds, s, last, before, known)
		}
		last = s
	}
	for s, position := range promised {
		if position < len(seeds) && seeds[position] == s {
			continue
		}
		if !slices.ContainsFunc(b.cuts, func(c cut) bool { return c.at > b.placed[s] && c.to <= position }) {
			return fmt.Errorf("session %s: %s: %d was acknowledged at position %d and not taken back, and there is %v", b.id, what, s, position, seeds)
		}
	}
	return nil
}

// driver drives a session time and again.
type driver struct {
	*run
	book   *book
	direct bool
	rand   *rand.Rand
	client *client.Client
}

func (d *driver) drive(ctx context.Context) (err error) {
	if d.client, err = client.Dial(d.cluster.address); err != nil {
		return err
	}
	defer d.client.Close()
	for ctx.Err() == nil {
		if d.rand.IntN(12) == 0 {
			err = d.snapshot(ctx)
		} else {
			err = d.take(ctx)
		}
		if err != nil && ctx.Err() == nil && !passes(err) {
			return err
		}
	}
	return nil
}

// wrong is an error of a check, and not of a call.
type wrong struct{ error }

// passes tells whether a call may fail so in such company. That nobody holds a session that nobody has dropped never may be.
func passes(err error) bool {
	var bad wrong
	return !errors.As(err, &bad) && !errors.Is(err, client.ErrNotFound)
}

// deadline is a context that often ends in the middle of a call.
func (d *driver) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if d.rand.IntN(3) > 0 {
		return context.WithTimeout(ctx, 2*time.Second)
	}
	return context.WithTimeout(ctx, time.Duration(d.rand.IntN(3000))*time.Microsecond)
}

// take takes the session over, looks at what it has, and drives it for a while.
func (d *driver) take(ctx context.Context) error {
	promised := d.book.promised()
	one, cancel := d.deadline(ctx)
	s, err := d.client.Attach(one, d.book.id, client.AttachOptions{Direct: d.direct})
	cancel()
	if err != nil {
		d.unknown(err)
		return err
	}
	d.tally.takeovers.Add(1)
	seeds, err := d.read(ctx, s)
	if err != nil {
		return err
	}
	if err := d.attend(ctx, s, seeds); err != nil {
		return err // Somebody else has it again, so that what was read may be anything.
	}
	if err := d.book.check("taken over", seeds, promised); err != nil {
		return wrong{err}
	}
	for range 1 + d.rand.IntN(20) {
		if seeds, err = d.act(ctx, s, seeds); err != nil {
			if errors.Is(err, client.ErrTakenOver) || !passes(err) || ctx.Err() != nil {
				return err
			}
			d.unknown(err)
		}
		if s.Len() != len(seeds) {
			return wrong{fmt.Errorf("session %s: its client says %d positions, and was told of %d", d.book.id, s.Len(), len(seeds))}
		}
	}
	return s.Close()
}

func (d *driver) unknown(err error) {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, client.ErrTryAgain) {
		d.tally.unknown.Add(1)
	}
}

// act does one thing, and returns what the session has then, as far as its client was told.
func (d *driver) act(ctx context.Context, s *client.Session, seeds []uint32) ([]uint32, error) {
	one, cancel := d.deadline(ctx)
	defer cancel()
	switch n := d.rand.IntN(20); {
	case n < 12 && len(seeds) < maxLen:
		return d.append(one, s, seeds)
	case n < 14:
		return seeds, d.attend(one, s, seeds)
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
		return seeds[:s.Len()], err
	}
	d.book.acknowledgeCut(at, to)
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
	d.book.begin(seeds, added)
	all := append(slices.Clone(seeds), added...)
	k, v := rows(added)
	q := d.queries()
	got := make([]float32, len(q))
	if err := s.Step(ctx, 0, q, k, v, got, nil); err != nil {
		return seeds[:min(len(seeds), s.Len())], err
	}
	d.book.acknowledge(len(seeds), added)
	d.tally.steps.Add(1)
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
	d.tally.steps.Add(1)
	return d.compare("a query", seeds, q, got)
}

func (d *driver) compare(what string, seeds []uint32, q, got []float32) error {
	d.tally.contexts.Add(1)
	want, err := contexts(seeds, q)
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
	child, err := s.Fork(ctx)
	if err != nil {
		return err
	}
	d.tally.forks.Add(1)
	defer d.drop(ctx, child)
	have, err := d.read(ctx, child)
	if err != nil {
		return err
	}
	if !slices.Equal(have, seeds) {
		return wrong{fmt.Errorf("session %s: a fork of %v has %v", d.book.id, seeds, have)}
	}
	return d.attend(ctx, child, have)
}

// drop ends a session that nobody needs, also where ctx has ended.
func (d *driver) drop(ctx context.Context, s *client.Session) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = s.Drop(ctx) // else it is found in the end
}
