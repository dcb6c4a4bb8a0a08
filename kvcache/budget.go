package kvcache

import (
	"fmt"
	"sync"
)

// Budget is a number of bytes that several owners share. It counts; it does not allocate. It is safe for concurrent use.
type Budget struct {
	total int64

	mu   sync.Mutex
	used int64
}

// BudgetError says that a budget has no room for what was asked. All sizes are in bytes.
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

// Reserve takes n bytes, or nothing and a *BudgetError where fewer are free or n is negative.
func (b *Budget) Reserve(n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if free := b.total - b.used; n < 0 || n > free {
		return &BudgetError{Asked: n, Free: free, Total: b.total}
	}
	b.used += n
	return nil
}

// Release gives back n bytes that were reserved. To give back more than is in use is a mistake of the program and panics.
func (b *Budget) Release(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
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
