package kvcache

import (
	"fmt"
	"slices"
	"sync"
)

// Budget is a number of bytes that several owners share. It is safe for concurrent use.
//
// It counts, and maps arenas for who asks. Those that are given back it keeps for the next of their size, since the machine
// takes as long to clear and to map new memory as to fill it, until something else needs the room or Age has seen them twice.
// The bytes in use and the bytes kept never exceed the total.
type Budget struct {
	total int64

	mu    sync.Mutex
	used  int64
	kept  []keptArena // the longest kept first
	spare int64       // bytes of kept
	mark  int64       // of used and spare; beyond it, MakeWay calls passed
	// passed is nil if nothing else needs to give way.
	passed func()
}

// keptArena is an arena in no use.
type keptArena struct {
	arena *Arena
	seen  bool // by Age
}

// leastKept is the size of the smallest arenas that are kept: two huge pages.
const leastKept = 2 * hugeBytes

// BudgetError says that a budget has no room for a request. All sizes are in bytes.
type BudgetError struct {
	Asked, Free, Total int64
}

func (e *BudgetError) Error() string {
	return fmt.Sprintf("memory budget: asked for %d bytes, %d of %d are free", e.Asked, e.Free, e.Total)
}

// NewBudget makes a budget of total bytes; less than 0 counts as 0.
func NewBudget(total int64) *Budget {
	return &Budget{total: max(total, 0)}
}

// OnGrowth lets MakeWay call passed if what is in use and kept exceeds the mark, which SetMark sets. It is called before others
// use the budget.
func (b *Budget) OnGrowth(passed func()) { b.passed = passed }

// SetMark lets MakeWay pass until n more bytes than now are in use or kept.
func (b *Budget) SetMark(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mark = b.used + b.spare + n
}

// MakeWay is called by those that have taken memory outside of Go's heap, without locks and before they use it, so that what else is
// in the machine's memory can make way for it.
func (b *Budget) MakeWay() {
	b.mu.Lock()
	passed := b.used+b.spare > b.mark
	b.mu.Unlock()
	if passed && b.passed != nil {
		b.passed()
	}
}

// Reserve takes n bytes. If fewer are free, or n is negative, it takes nothing and returns a *BudgetError.
func (b *Budget) Reserve(n int64) error {
	_, gone, err := b.reserve(n, false)
	unmap(gone)
	return err
}

// reserve takes n bytes, and where one is wanted a kept arena of this size, if there is one. It returns the kept arenas whose
// room it took, which are to be unmapped.
func (b *Budget) reserve(n int64, wanted bool) (arena *Arena, gone []keptArena, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if free := b.total - b.used; n < 0 || n > free {
		return nil, nil, &BudgetError{Asked: n, Free: free, Total: b.total}
	}
	if i := slices.IndexFunc(b.kept, func(k keptArena) bool { return wanted && k.arena.size() == n }); i >= 0 {
		arena = b.kept[i].arena
		b.kept = slices.Delete(b.kept, i, i+1)
		b.spare -= n
	}
	b.used += n
	i := 0
	for ; b.used+b.spare > b.total; i++ {
		b.spare -= b.kept[i].arena.size()
	}
	gone = slices.Clone(b.kept[:i])
	b.kept = slices.Delete(b.kept, 0, i)
	return arena, gone, nil
}

func unmap(arenas []keptArena) {
	for _, k := range arenas {
		k.arena.Close()
	}
}

// Map reserves n bytes as Reserve does, and maps them for an owner. What lies in them is zeros, or what the owner has left there. Unmap
// gives them back.
func (b *Budget) Map(n int64, as Owner) (*Arena, error) {
	arena, gone, err := b.reserve(n, n >= leastKept)
	unmap(gone)
	switch {
	case err != nil:
		return nil, err
	case arena == nil:
		if arena, err = MapArena(n); err != nil {
			b.Release(n)
			return nil, err
		}
	case as == Nobody || arena.of != as:
		clear(arena.bytes)
	}
	arena.of = as
	return arena, nil
}

// Unmap gives an arena of Map back, which must not be used any more.
func (b *Budget) Unmap(arena *Arena) {
	n := arena.size()
	keep := n >= leastKept
	if !keep {
		arena.Close()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.release(n)
	if keep {
		b.kept = append(b.kept, keptArena{arena: arena})
		b.spare += n
	}
}

// Age gives the kept arenas that it has seen before back to the machine. Called every so often, it lets them be kept that long
// at least and twice as long at most.
func (b *Budget) Age() {
	b.drop(func(k keptArena) bool { return k.seen })
}

// Trim gives all kept arenas back to the machine.
func (b *Budget) Trim() {
	b.drop(func(keptArena) bool { return true })
}

func (b *Budget) drop(old func(keptArena) bool) {
	var gone, kept []keptArena
	b.mu.Lock()
	for _, k := range b.kept {
		if old(k) {
			gone = append(gone, k)
			b.spare -= k.arena.size()
		} else {
			kept = append(kept, keptArena{arena: k.arena, seen: true})
		}
	}
	b.kept = kept
	b.mu.Unlock()
	unmap(gone)
}

// Kept returns the bytes of the arenas that are kept. They are not in use.
func (b *Budget) Kept() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.spare
}

// Release gives back n bytes that were reserved. To give back more than is in use is a mistake of the program and panics.
func (b *Budget) Release(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.release(n)
}

func (b *Budget) release(n int64) {
	if n < 0 || n > b.used {
		panic(fmt.Sprintf("kvcache: release of %d bytes, %d are reserved", n, b.used))
	}
	b.used -= n
}

// Used returns the bytes reserved now.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Total returns the bytes of the whole budget.
func (b *Budget) Total() int64 { return b.total }
