package fanout

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"headwater.example/internal/rpc"
)

// pace is how quickly one holder answers attends, and how many it has to answer. All lanes of a Conns share it, and nobody who counts
// waits for another.
type pace struct {
	of      *Conns
	gone    atomic.Bool  // forgotten
	queue   atomic.Int64 // attends that it has not answered
	overdue atomic.Int64 // those of them that other holders were asked as well
	told    atomic.Int64 // when the queue that it told of last will have passed, on the clock of Conns; 0 is none
	times   times
	beside  times // how much longer than the middle one of a call it took, in sameTime-th; see compare.go
}

// pace returns the pace of a holder.
func (c *Conns) pace(o *Holder) *pace {
	if p := o.pace.Load(); p != nil && p.of == c && !p.gone.Load() {
		return p
	}
	p := c.paces.get(c, o.peer())
	o.pace.Store(p)
	return p
}

// length is how many attends are before another one: those of this process, and as many as take the time that steps waited there by
// its newest answer. One that is late counts as more than there ever are.
func (p *pace) length(now time.Duration) int64 {
	n := p.queue.Load()
	if p.overdue.Load() > 0 {
		n += stalled
	}
	if wait := p.told.Load() - int64(now); wait > 0 {
		if one := p.times.middle.Load(); one > 0 {
			n += wait / one
		}
	}
	return n
}

// stalled is a length beyond all.
const stalled = 1 << 40

// paces are those of the holders that were asked.
type paces struct {
	mu sync.Mutex
	of map[rpc.Peer]*pace
}

// mostPaces bounds the holders whose paces are told; of more, those that have nothing to answer are forgotten.
const mostPaces = 4096

func (s *paces) get(c *Conns, to rpc.Peer) *pace {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.of[to]; p != nil {
		return p
	}
	if len(s.of) >= mostPaces {
		for peer, p := range s.of {
			if p.queue.Load() == 0 {
				p.gone.Store(true)
				delete(s.of, peer)
			}
		}
	}
	if s.of == nil {
		s.of = map[rpc.Peer]*pace{}
	}
	p := &pace{of: c}
	s.of[to] = p
	return p
}

// AnswerTimes are how long a holder takes to answer attends of at most 64 tokens, as who asks it sees that.
type AnswerTimes struct {
	Holder, Address string
	Queue           int           // attends that it has not answered
	Count           uint64        // answers of the last 10 to 20 seconds
	P50, P95        time.Duration // of these, or 0
	// Beside is how much longer than the middle one of several holders of a call it took, half of the time, and Compared of how many
	// calls of the last 10 to 20 seconds that is known. A time is rounded down by an eighth at most.
	Beside   float64
	Compared uint64
}

// AnswerTimes returns those of all holders that were asked, by name.
func (c *Conns) AnswerTimes() []AnswerTimes {
	c.paces.mu.Lock()
	defer c.paces.mu.Unlock()
	all, now := make([]AnswerTimes, 0, len(c.paces.of)), c.now()
	for peer, p := range c.paces.of {
		count, q := p.times.quantiles(now, 0.5, 0.95)
		one := AnswerTimes{Holder: peer.Name, Address: peer.Address, Queue: int(p.queue.Load()), Count: count, P50: q[0], P95: q[1]}
		if one.Compared, q = p.beside.quantiles(now, 0.5, 0.5); one.Compared > 0 {
			one.Beside = float64(timesFrom(q[0])) / sameTime
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b AnswerTimes) int {
		return cmp.Or(cmp.Compare(a.Holder, b.Holder), cmp.Compare(a.Address, b.Address))
	})
	return all
}

// now is the time since the connections were made.
func (c *Conns) now() time.Duration { return time.Since(c.began) }

const (
	// timesHalf is half of the time that answers are remembered for: those of this half and of the one before it count.
	timesHalf = 10 * time.Second
	// Times are counted in eighths of a power of two, from 2^timesLeast ns on (8 µs), in all up to two minutes.
	timesLeast, timesOctaves = 13, 24
	// timesSettle is after how many answers the quantiles are computed again.
	timesSettle = 32
)

// times are the times that answers took, in a window that slides by halves. If two answers come as a half begins, one of them may be
// forgotten.
type times struct {
	halves      [2]timesCounts
	count       atomic.Uint64
	middle, p95 atomic.Int64 // nanoseconds, as of the newest timesSettle answers; 0 before
}

type timesCounts struct {
	turn   atomic.Int64 // which half it is, from 1 on
	counts [8 * timesOctaves]atomic.Uint32
}

// add adds an answer that came now and took so long.
func (t *times) add(now, took time.Duration) {
	turn := int64(now/timesHalf) + 1
	half := &t.halves[turn&1]
	if was := half.turn.Load(); was != turn && half.turn.CompareAndSwap(was, turn) {
		for i := range half.counts {
			half.counts[i].Store(0)
		}
	}
	half.counts[timesIndex(took)].Add(1)
	if t.count.Add(1)%timesSettle == 0 {
		if _, q := t.quantiles(now, 0.5, 0.95); q[1] > 0 {
			t.middle.Store(int64(q[0]))
			t.p95.Store(int64(q[1]))
		}
	}
}

// quantiles returns how many answers the window has, and within what time that share of them came; 0 if there are none. A time is
// rounded up by an eighth at most.
func (t *times) quantiles(now time.Duration, low, high float64) (count uint64, q [2]time.Duration) {
	turn := int64(now/timesHalf) + 1
	var counts [8 * timesOctaves]uint64
	for h := range t.halves {
		half := &t.halves[h]
		if was := half.turn.Load(); was != turn && was != turn-1 {
			continue
		}
		for i := range half.counts {
			n := uint64(half.counts[i].Load())
			counts[i] += n
			count += n
		}
	}
	for k, share := range [2]float64{low, high} {
		rest := int64(math.Ceil(share * float64(count)))
		for i := 0; rest > 0 && i < len(counts); i++ {
			if rest -= int64(counts[i]); rest <= 0 {
				q[k] = timesBound(i)
			}
		}
	}
	return count, q
}

// timesIndex is where a time is counted.
func timesIndex(took time.Duration) int {
	x := uint64(max(took, 0))
	octave := bits.Len64(x) - 1 - timesLeast
	if octave < 0 {
		return 0
	}
	if octave >= timesOctaves {
		return 8*timesOctaves - 1
	}
	return 8*octave + int(x>>(octave+timesLeast-3))&7
}

// timesFrom is the beginning of the times that are counted together with those up to a bound.
func timesFrom(bound time.Duration) time.Duration {
	i := max(timesIndex(bound)-1, 0)
	return max(timesBound(i)-time.Duration(1)<<(timesLeast-3+i/8), 0)
}

// timesBound is the end of the times that are counted at an index.
func timesBound(i int) time.Duration {
	return time.Duration(9+i%8) << (timesLeast - 3 + i/8)
}
