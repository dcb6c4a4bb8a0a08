package attention

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"headwater.example/internal/turns"
)

// Class says who goes first where more calls want threads than a pool has.
type Class uint8

const (
	// Foreground is for calls that someone waits for, such as the attention of one new token.
	Foreground Class = iota
	// Background is for long calls. They let foreground calls go first, also in their middle: between units of work of at
	// most about half a millisecond, a background call gives up its thread while a foreground call waits for one.
	Background
	classes
)

// ErrClosed is the error of acquiring a thread of a closed pool.
var ErrClosed = errors.New("the pool of threads is closed")

const (
	// threadWork is the multiply-adds below which one thread is as fast as several.
	threadWork = 1 << 20
	// unitWork is the multiply-adds of a unit in assembly, and unitWorkPortable in Go.
	unitWork         = 1 << 24
	unitWorkPortable = 1 << 19
	// turnWork is the multiply-adds of a turn, about as long as it takes to pass a thread on.
	turnWork = 1 << 16
	// stretchWork is the multiply-adds that a call makes before it gives way between two tasks to others of its class, about those of
	// a split: if many wait, to pass a thread on after each of many small tasks takes longer than it is worth.
	stretchWork = 1 << 21
	// foregroundRun is how many foreground calls in a row get a thread while a background call waits for one.
	foregroundRun = 3
	// spinTime is how long an idle helper looks for a call before it sleeps, if calls follow each other as fast as that: to
	// wake it takes 50 to 150 µs. Who called looks as long for the end of its helpers' last tasks.
	spinTime = 300 * time.Microsecond
	// smallLimit is how many processors a limit leaves, at most, so that helpers do not spin: what they use up is missing
	// to the calls.
	smallLimit = 2
)

// Pool is a number of threads, with room to work in, that several callers share. A caller acquires one; the threads
// that no one has help those calls that have more than one task. A thread that has ended a task goes to who waits for
// one, so that no call holds up others for longer than two of the larger ones; background calls also give way within a task. Those of one
// flow get it as they came, and flows take turns by the work that they have done (Turn). No bit of an answer depends on any
// of this. A pool is safe for concurrent use.
type Pool struct {
	threads int
	spins   bool
	held    sync.WaitGroup // acquired threads and those that wait for one
	helpers sync.WaitGroup

	// How many wait, and how many of them in the foreground, for a look without the lock.
	waits, urgent atomic.Int32

	mu      sync.Mutex // guards all below
	closed  bool
	free    int // threads that no one uses; if there are any, no one waits
	waiting [classes]turns.Queue[*Thread]
	run     int       // foreground calls that got a thread since a background call did
	shared  []*work   // of which helpers may take tasks
	idle    []*helper // without a thread
	all     []*helper // as NewPool made them
	rooms   []*Thread // given back
}

// helper is a goroutine that takes part in the calls of others.
type helper struct {
	work   atomic.Pointer[work] // to do next; who lent it may take it back until the helper has
	wake   chan struct{}        // one element: there is or was work
	thread *Thread
	ended  time.Time // the helper's last work
	spin   bool      // the last work came soon after the one before
}

// NewPool starts the threads of a pool, at least 1. Close ends them.
func NewPool(threads int) *Pool {
	p := &Pool{threads: max(threads, 1), free: max(threads, 1)}
	processors := runtime.GOMAXPROCS(0)
	p.spins = processors >= p.threads && (processors > smallLimit || processors == runtime.NumCPU())
	// The caller of a call computes too.
	for range p.threads - 1 {
		h := &helper{wake: make(chan struct{}, 1), thread: p.newThread()}
		p.all = append(p.all, h)
		p.helpers.Go(func() { p.help(h) })
	}
	p.idle = slices.Clone(p.all)
	for class := range p.waiting {
		p.waiting[class].Quantum = turnWork
	}
	return p
}

// Threads returns how many threads the pool has.
func (p *Pool) Threads() int { return p.threads }

// Close waits until all threads have been released and the pool's goroutines have ended. Acquire fails from now on.
func (p *Pool) Close() {
	p.mu.Lock()
	first := !p.closed
	p.closed = true
	p.mu.Unlock()
	p.held.Wait()
	if first {
		for _, h := range p.all {
			close(h.wake)
		}
	}
	p.helpers.Wait()
}

// Thread is the right to compute on one thread of a pool, and the memory for it, which is kept from call to call. One
// goroutine uses it, for one call at a time.
type Thread struct {
	pool    *Pool
	class   Class
	granted chan struct{} // one element
	spent   int           // multiply-adds since the last unit ended
	turn    Turn
	charged int64 // to the flow for this turn, 0 if nobody waited
	done    int64 // multiply-adds of this turn
	waited  time.Duration
	work    work // what the call shares out

	single   [1]Item
	batch    batch
	block    block // of a task
	product  product
	tile     tile
	gradient gradientRoom
}

func (p *Pool) newThread() *Thread {
	return &Thread{pool: p, granted: make(chan struct{}, 1), work: work{alone: make(chan struct{}, 1)}}
}

// Turn says whose a call is, and about how many multiply-adds it makes before it can give way. Where more calls want threads than there
// are, each flow gets as much work done as any other, however many calls it has. The zero Turn is of the flow without a name.
type Turn struct {
	Flow string
	Work int64
}

// Acquire waits for a thread, which is to be released. It fails with the cause of ctx's end, or with ErrClosed.
func (p *Pool) Acquire(ctx context.Context, class Class) (*Thread, error) {
	return p.AcquireFor(ctx, class, Turn{})
}

// AcquireFor is Acquire for a call of a flow.
func (p *Pool) AcquireFor(ctx context.Context, class Class, turn Turn) (*Thread, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, ErrClosed
	}
	p.held.Add(1)
	var t *Thread
	if n := len(p.rooms); n > 0 {
		t, p.rooms = p.rooms[n-1], p.rooms[:n-1]
	} else {
		t = p.newThread()
	}
	t.class, t.turn, t.waited, t.charged, t.done = min(class, Background), turn, 0, 0, 0
	if p.free > 0 {
		p.free--
		p.mu.Unlock()
		return t, nil
	}
	p.enqueue(t, turn.Work)
	p.mu.Unlock()
	select {
	case <-t.granted:
		return t, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	if !p.dequeue(t) {
		<-t.granted
		p.pass()
	}
	p.rooms = append(p.rooms, t)
	p.mu.Unlock()
	p.held.Done()
	return nil, context.Cause(ctx)
}

// Release gives the thread back. It must not be used afterwards.
func (t *Thread) Release() {
	p := t.pool
	p.mu.Lock()
	p.rooms = append(p.rooms, t)
	p.correct(t)
	p.pass()
	p.mu.Unlock()
	p.held.Done()
}

// enqueue adds t to those that wait, for a turn of so much work. The lock is held, as for all that follow up to pass.
func (p *Pool) enqueue(t *Thread, work int64) {
	p.waiting[t.class].Push(t.turn.Flow, t, work)
	p.count(t, 1)
}

func (p *Pool) dequeue(t *Thread) bool {
	if !p.waiting[t.class].Remove(t.turn.Flow, t) {
		return false
	}
	p.count(t, -1)
	return true
}

// correct lets the flow of t, if others of it wait, be charged for what t has done in its turn.
func (p *Pool) correct(t *Thread) {
	if t.charged > 0 {
		p.waiting[t.class].Correct(t.turn.Flow, t.charged-max(t.done, turnWork))
	}
}

func (p *Pool) count(t *Thread, n int32) {
	p.waits.Add(n)
	if t.class == Foreground {
		p.urgent.Add(n)
	}
}

// pass gives a thread that its user is done with to the next: to who waits, else to a helper of a call, else to no one.
func (p *Pool) pass() {
	foreground, background := p.waiting[Foreground].Len(), p.waiting[Background].Len()
	switch {
	case foreground > 0 && (background == 0 || p.run < foregroundRun):
		p.run++
		p.grant(Foreground)
	case background > 0:
		p.run = 0
		p.grant(Background)
	case !p.lend():
		p.free++
	}
}

func (p *Pool) grant(class Class) {
	t, charged := p.waiting[class].Pop()
	t.charged, t.done = charged, 0
	p.count(t, -1)
	t.granted <- struct{}{}
}

// lend gives a thread to a helper of the call that has the fewest, those in the foreground first. It says whether there
// is one.
func (p *Pool) lend() bool {
	p.shared = slices.DeleteFunc(p.shared, (*work).exhausted)
	if len(p.shared) == 0 || len(p.idle) == 0 {
		return false
	}
	w := p.shared[0]
	for _, other := range p.shared[1:] {
		if other.class < w.class || other.class == w.class && other.helpers < w.helpers {
			w = other
		}
	}
	last := len(p.idle) - 1
	h := p.idle[last]
	p.idle = p.idle[:last]
	w.helpers++
	h.work.Store(w)
	select {
	case h.wake <- struct{}{}:
	default:
	}
	return true
}

// takeBack takes a work from the helpers that have not begun with it. The lock is held.
func (p *Pool) takeBack(w *work) {
	for _, h := range p.all {
		if h.work.CompareAndSwap(w, nil) {
			w.helpers--
			p.idle = append(p.idle, h)
			p.pass()
		}
	}
}

// next waits for work, awake for a while if that has paid lately. It is nil once the pool is closed.
func (h *helper) next() *work {
	if h.spin {
		spinUntil(spinTime, func() bool { return h.work.Load() != nil })
	}
	for {
		if w := h.work.Swap(nil); w != nil {
			return w
		}
		if _, ok := <-h.wake; !ok {
			return nil
		}
	}
}

// spinUntil returns once done does, or after that time. Meanwhile it lets other goroutines run.
func spinUntil(limit time.Duration, done func() bool) {
	for began := time.Now(); !done(); {
		for range 8 {
			pause()
			if done() {
				return
			}
		}
		if time.Since(began) > limit {
			return
		}
		runtime.Gosched()
	}
}

// help takes part in one call after the other until the pool is closed.
func (p *Pool) help(h *helper) {
	t := h.thread
	for w := h.next(); w != nil; w = h.next() {
		h.spin = p.spins && w.began.Sub(h.ended) < spinTime
		t.class = w.class
		t.take(w, true)
		t.block.call, t.gradient.call = nil, nil
		h.ended = time.Now()
		p.mu.Lock()
		if w.helpers--; w.helpers == 0 && w.withdrawn {
			w.alone <- struct{}{}
		}
		p.idle = append(p.idle, h)
		p.pass()
		p.mu.Unlock()
	}
}

// work is what a call shares out: tasks that do not depend on each other.
type work struct {
	ctx    context.Context
	do     tasks
	class  Class
	tasks  int
	next   atomic.Int64
	failed atomic.Pointer[error]
	began  time.Time     // if it is helped
	alone  chan struct{} // one element: the last helper has left

	// The pool's lock guards these.
	helpers   int
	withdrawn bool
}

// tasks does the tasks of a call, each on one thread.
type tasks interface {
	task(ctx context.Context, t *Thread, i int) error
}

func (w *work) exhausted() bool {
	return w.failed.Load() != nil || w.next.Load() >= int64(w.tasks)
}

// task does one task. A panic of it is an error, so that a helper of another's call lives on.
func (w *work) task(t *Thread, i int) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &taskPanic{value: p, stack: debug.Stack()}
		}
	}()
	return w.do.task(w.ctx, t, i)
}

// taskPanic is a panic of a task, on whichever thread. The call that the task is of raises it again.
type taskPanic struct {
	value any
	stack []byte
}

func (p *taskPanic) Error() string { return fmt.Sprintf("%v\n\n%s", p.value, p.stack) }

func (w *work) fail(err error) { w.failed.CompareAndSwap(nil, &err) }

// share does n tasks on this thread and, if they are to be helped, on those of the pool that have nothing else to do. It
// returns once all have ended. After an error no thread begins another task. A task's panic is raised here, whichever thread it
// was on, so that who calls can catch it.
func (t *Thread) share(ctx context.Context, do tasks, n int, helped bool) error {
	w, p := &t.work, t.pool
	w.ctx, w.do, w.class, w.tasks, w.withdrawn = ctx, do, t.class, n, false
	w.next.Store(0)
	w.failed.Store(nil)
	helped = helped && n > 1 && p.threads > 1
	if helped {
		w.began = time.Now()
		p.mu.Lock()
		p.shared = append(p.shared, w)
		for p.free > 0 && w.helpers < n-1 && p.lend() {
			p.free--
		}
		p.mu.Unlock()
	}
	t.take(w, false)
	if helped {
		p.mu.Lock()
		p.shared = slices.DeleteFunc(p.shared, func(other *work) bool { return other == w })
		p.takeBack(w)
		w.withdrawn = true
		wait := w.helpers > 0
		p.mu.Unlock()
		if wait {
			if p.spins {
				spinUntil(spinTime, func() bool { return len(w.alone) > 0 })
			}
			<-w.alone
		}
	}
	w.ctx, w.do = nil, nil
	if err := w.failed.Load(); err != nil {
		if p, ok := (*err).(*taskPanic); ok {
			panic(p)
		}
		return *err
	}
	return nil
}

// take does one task after the other. Where others wait for a thread, a helper leaves between tasks, and who called lets
// them go first after a stretch of them.
func (t *Thread) take(w *work, helper bool) {
	for w.failed.Load() == nil {
		i := int(w.next.Add(1)) - 1
		if i >= w.tasks {
			return
		}
		err := w.ctx.Err()
		if err == nil {
			err = w.task(t, i)
		}
		if err != nil {
			w.fail(err)
			return
		}
		if t.pool.waits.Load() > 0 && !w.exhausted() {
			switch {
			case helper:
				return
			case t.done >= stretchWork || t.class == Background && t.pool.urgent.Load() > 0:
				t.giveWay()
			}
		}
	}
}

// did counts multiply-adds of a kernel, and ends a unit where there have been enough.
func (t *Thread) did(work int, k *kernel) {
	t.done += int64(work)
	if t.class == Foreground {
		return
	}
	unit := unitWork
	if k.vector == nil {
		unit = unitWorkPortable
	}
	if t.spent += work; t.spent >= unit {
		t.spent = 0
		if t.pool.urgent.Load() > 0 {
			t.giveWay()
		}
	}
}

// giveWay gives the thread to who waits for one and waits for another. What comes next is taken to be as much work as what
// was done.
func (t *Thread) giveWay() {
	p := t.pool
	p.mu.Lock()
	p.enqueue(t, t.done)
	p.correct(t)
	p.pass()
	p.mu.Unlock()
	began := time.Now()
	<-t.granted
	t.waited += time.Since(began)
}

// Waited returns how long the calls on this thread have waited in their middle, since it was acquired, for others to go
// first. It computed nothing meanwhile.
func (t *Thread) Waited() time.Duration { return t.waited }
