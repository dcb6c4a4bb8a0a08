package attention

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headwater.example/internal/testkit/await"
	"headwater.example/tensor"
)

func acquire(t testing.TB, p *Pool, class Class) *Thread {
	t.Helper()
	thread, err := p.Acquire(context.Background(), class)
	if err != nil {
		t.Fatal(err)
	}
	return thread
}

// eachKernel runs a test with every kernel of this machine selected in turn.
func eachKernel(t *testing.T, do func(t *testing.T)) {
	was := KernelName()
	defer func() {
		if err := SelectKernel(was); err != nil {
			t.Error(err)
		}
	}()
	for _, name := range KernelNames() {
		if err := SelectKernel(name); err != nil {
			t.Fatal(err)
		}
		t.Run(name, do)
	}
}

// TestNoAllocation counts on the average of many calls, rounded down: a helper may get its first large task, and the
// memory for it, at any time.
func TestNoAllocation(t *testing.T) {
	skipIfRaced(t)
	const calls = 100
	eachKernel(t, func(t *testing.T) {
		for _, threads := range []int{1, 2} {
			p := NewPool(threads)
			defer p.Close()
			for i, s := range []shape{
				{headDim: 64, vDim: 64, tokens: 1, heads: 4, len: 70, spread: 1, offset: 69},
				{headDim: 32, vDim: 24, tokens: 1, heads: 2, len: 9000, spread: 1, offset: 8999}, // splits are shared out
				{headDim: 32, vDim: 32, tokens: 100, heads: 2, len: 300, spread: 1, offset: 200},
			} {
				for _, variant := range []int{1, len(variants) - 1} {
					s.dt = storages[(i+variant)%4]
					e := draw(t, uint64(i), s)
					variants[variant].apply(e, rand.New(rand.NewPCG(1, 1)))
					out := e.room()
					if n := testing.AllocsPerRun(calls, func() {
						thread := acquire(t, p, Class(i%2))
						if err := thread.Attend(context.Background(), e.kv, e.q, e.opts, out); err != nil {
							t.Fatal(err)
						}
						thread.Release()
					}); n != 0 {
						t.Errorf("%d threads, %s: %s: %g allocations", threads, variants[variant].name, s, n)
					}
				}
			}
			rows, in, columns := 30, 200, 300
			rnd := rand.New(rand.NewPCG(1, 2))
			x, w, y := normals(rnd, rows*in, 1), normals(rnd, columns*in, 1), make([]float32, rows*columns)
			if n := testing.AllocsPerRun(calls, func() {
				thread := acquire(t, p, Background)
				if err := thread.Project(context.Background(), y, x, w, nil, rows, in, columns); err != nil {
					t.Fatal(err)
				}
				thread.Release()
			}); n != 0 {
				t.Errorf("%d threads, project: %g allocations", threads, n)
			}
		}
	})
}

// TestPoolIsShared: many callers of both classes, with shapes that change from call to call, get the bits of a call alone.
func TestPoolIsShared(t *testing.T) {
	const callers, calls = 6, 12
	p := NewPool(3)
	defer p.Close()
	var all sync.WaitGroup
	for c := range callers {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(c), 3))
			for i := range calls {
				s := shape{
					dt: storages[rnd.IntN(4)], headDim: 1 + rnd.IntN(70), vDim: 1 + rnd.IntN(70), tokens: 1 + rnd.IntN(80), heads: 1 + rnd.IntN(4),
					len: 1 + rnd.IntN(400), spread: 1, offset: 300,
				}
				if i%4 == 0 {
					s.tokens, s.heads, s.len = 1, 2, 5000+rnd.IntN(2000)
				}
				e := draw(t, uint64(100*c+i), s)
				variants[rnd.IntN(len(variants))].apply(e, rnd)
				want, out := e.attend(t, 1), e.room()
				thread, err := p.Acquire(context.Background(), Class(rnd.IntN(2)))
				if err != nil {
					t.Error(err)
					return
				}
				l := limits{kernel: selected.Load().kernel, room: 1 << rnd.IntN(20)}
				err = thread.attend(context.Background(), l, e.kv, e.q, e.opts, out)
				thread.Release()
				if err != nil {
					t.Error(err)
					return
				}
				e.sameRows(t, "shared pool", want, out, 0, s.tokens, 0, s.heads)
			}
		})
	}
	await.All(t, &all, "the end of all calls")
	if n := p.threads - p.free; n != 0 { // nobody holds one any more
		t.Errorf("%d threads are busy at the end", n)
	}
}

// hooked is a context that calls hook each time it is asked whether it has ended, as a call does before every page.
type hooked struct {
	context.Context
	hook func()
}

func (h hooked) Err() error { h.hook(); return h.Context.Err() }

// TestBackgroundGivesWay: on one thread, a foreground call that comes amid a background call ends before it.
func TestBackgroundGivesWay(t *testing.T) {
	for _, threads := range []int{1, 3} {
		t.Run(fmt.Sprint(threads, " threads"), func(t *testing.T) {
			p := NewPool(threads)
			defer p.Close()
			long := draw(t, 1, shape{dt: tensor.F32, headDim: 128, vDim: 128, tokens: 24, heads: 2, len: 9000, spread: 1, offset: 8000})
			short := draw(t, 2, shape{dt: tensor.F16, headDim: 16, vDim: 16, tokens: 1, heads: 2, len: 100, spread: 1, offset: 99})
			want, wantShort := long.attend(t, 2), short.attend(t, 1)
			var ended atomic.Bool
			var others sync.WaitGroup
			var once sync.Once
			run := func() {
				thread := acquire(t, p, Foreground)
				defer thread.Release()
				out := short.room()
				if err := thread.Attend(context.Background(), short.kv, short.q, short.opts, out); err != nil {
					t.Error(err)
				}
				// With more threads nothing says when the goroutine that got one runs.
				if threads == 1 && ended.Load() {
					t.Error("the background call has ended before the foreground call")
				}
				short.sameRows(t, "foreground", wantShort, out, 0, 1, 0, 2)
			}
			ctx := hooked{context.Background(), func() {
				once.Do(func() {
					for range threads {
						others.Go(run)
					}
					for late := time.Now().Add(await.Patience); p.urgent.Load() < int32(threads); runtime.Gosched() {
						if time.Now().After(late) {
							t.Errorf("%d calls of the foreground wait, not %d", p.urgent.Load(), threads)
							return
						}
					}
				})
			}}
			thread := acquire(t, p, Background)
			out := long.room()
			if err := thread.Attend(ctx, long.kv, long.q, long.opts, out); err != nil {
				t.Fatal(err)
			}
			ended.Store(true)
			if threads == 1 && thread.Waited() == 0 {
				t.Error("the background call has not waited for the foreground call")
			}
			thread.Release()
			await.All(t, &others, "the end of the foreground")
			long.sameRows(t, "background", want, out, 0, 24, 0, 2)
		})
	}
}

// TestPoolTakesTurns: who waits gets a thread in the order of coming, and of four at most three go to the foreground
// while the background waits.
func TestPoolTakesTurns(t *testing.T) {
	p := NewPool(1)
	defer p.Close()
	first := acquire(t, p, Foreground)
	var got []string
	var all sync.WaitGroup
	for i := range 10 {
		class, name := Foreground, "f"
		if i >= 7 {
			class, name = Background, "b"
		}
		all.Go(func() {
			thread := acquire(t, p, class)
			got = append(got, fmt.Sprint(name, i)) // guarded by the only thread
			thread.Release()
		})
		await.That(t, "a call that waits for a thread", func() bool { return p.waits.Load() == int32(i+1) })
	}
	first.Release()
	await.All(t, &all, "the end of all calls")
	if want := "[f0 f1 f2 b7 f3 f4 f5 b8 f6 b9]"; fmt.Sprint(got) != want {
		t.Errorf("turns were taken as %v, want %s", got, want)
	}
}

// paced are tasks of so many multiply-adds each, which note when they run.
type paced struct {
	name string
	work int
	ran  *[]string // guarded by the only thread
}

func (p paced) task(_ context.Context, t *Thread, _ int) error {
	*p.ran = append(*p.ran, p.name)
	t.did(p.work, selected.Load().kernel)
	return nil
}

// TestCallsGiveWayInStretches: while another of its class waits, a call does small tasks until they are a stretch; one in the background
// lets the foreground go first after any task.
func TestCallsGiveWayInStretches(t *testing.T) {
	for _, c := range []struct {
		first, second Class
		work          int
		want          string
	}{
		{Foreground, Foreground, stretchWork / 4, "[a a a a b a a a]"},
		{Foreground, Foreground, stretchWork, "[a b a a a a a a]"},
		{Foreground, Background, stretchWork, "[a a a a b a a a]"}, // of four turns three go to the foreground
		{Background, Background, stretchWork / 3, "[a a a a b a a a]"},
		{Background, Foreground, stretchWork / 64, "[a b a a a a a a]"},
	} {
		p := NewPool(1)
		first := acquire(t, p, c.first)
		var ran []string
		var other sync.WaitGroup
		other.Go(func() {
			second := acquire(t, p, c.second)
			defer second.Release()
			if err := second.share(context.Background(), paced{"b", 1, &ran}, 1, true); err != nil {
				t.Error(err)
			}
		})
		await.That(t, "a call that waits for a thread", func() bool { return p.waits.Load() == 1 })
		if err := first.share(context.Background(), paced{"a", c.work, &ran}, 7, true); err != nil {
			t.Error(err)
		}
		first.Release()
		await.All(t, &other, "the end of the other call")
		p.Close()
		if fmt.Sprint(ran) != c.want {
			t.Errorf("%v before %v, %d multiply-adds a task: %v, want %s", c.first, c.second, c.work, ran, c.want)
		}
	}
}

// TestFlowsTakeTurns: a flow of which fewer calls wait gets a thread as often as one of which many do, if they are the same work, and half
// as often if its calls are twice as much.
func TestFlowsTakeTurns(t *testing.T) {
	const work = 1 << 20
	for _, k := range []struct {
		of   int64 // work of the few
		want string
	}{{work, "[many few many few many few many many many]"}, {2 * work, "[many many few many many few many many few]"}} {
		p := NewPool(1)
		first := acquire(t, p, Foreground)
		var got []string
		var all sync.WaitGroup
		for i := range 9 {
			turn := Turn{"many", work}
			if i >= 6 {
				turn = Turn{"few", k.of}
			}
			all.Go(func() {
				thread, err := p.AcquireFor(context.Background(), Foreground, turn)
				if err != nil {
					t.Error(err)
					return
				}
				got = append(got, turn.Flow) // guarded by the only thread
				thread.did(int(turn.Work), selected.Load().kernel)
				thread.Release()
			})
			await.That(t, "a call that waits for a thread", func() bool { return p.waits.Load() == int32(i+1) })
		}
		first.Release()
		await.All(t, &all, "the end of all calls")
		if fmt.Sprint(got) != k.want {
			t.Errorf("turns were taken as %v, want %s", got, k.want)
		}
		p.Close()
	}
}

func TestAcquireEnds(t *testing.T) {
	p := NewPool(1)
	first := acquire(t, p, Background)
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("the stream has ended")
	failed := make(chan error)
	go func() {
		_, err := p.Acquire(ctx, Foreground)
		failed <- err
	}()
	await.That(t, "a call that waits for a thread", func() bool { return p.waits.Load() > 0 })
	cancel(cause)
	if err := await.One(t, failed, "the end of a cancelled call"); !errors.Is(err, cause) {
		t.Errorf("got %v, want %v", err, cause)
	}
	closed := make(chan struct{})
	go func() { p.Close(); close(closed) }()
	await.That(t, "that the pool gives no thread any more", func() bool {
		thread, err := p.Acquire(ctx, Foreground)
		if thread != nil {
			t.Fatal("a thread was had twice")
		}
		return errors.Is(err, ErrClosed)
	})
	select {
	case <-closed:
		t.Error("a pool closed while a thread of it was in use")
	default:
	}
	first.Release()
	await.One(t, closed, "the end of the pool")
	p.Close()
}
