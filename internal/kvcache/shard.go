package kvcache

import (
	"errors"
	"fmt"
	"math"

	"headwater.example/attention"
	"headwater.example/tensor"
)

// Shard is the keys and values of one KV group of one layer of one sequence: an append-only log of positions in pages of
// attention.PageLen. It has one writer; what KV returned may be read while nothing is appended and until Close.
type Shard struct {
	budget   *Budget
	layout   attention.Layout
	capacity int
	reserved int64
	arena    *Arena
	pages    [][]byte
	length   int
	hasher   Hasher
}

// shardBytes returns the memory that a shard of capacity positions takes: whole pages, at least one.
func shardBytes(layout attention.Layout, capacity int) (int64, error) {
	if capacity < 0 {
		return 0, fmt.Errorf("shard of %d positions: a capacity is at least 0", capacity)
	}
	pages := int64(max((capacity-1)/attention.PageLen+1, 1))
	if pages > math.MaxInt64/int64(layout.PageBytes()) {
		return 0, fmt.Errorf("shard of %d positions: its bytes overflow", capacity)
	}
	return pages * int64(layout.PageBytes()), nil
}

// OpenShard reserves the memory of capacity positions from the budget, then maps it for an owner. Without room it returns a *BudgetError.
func OpenShard(budget *Budget, as Owner, layout attention.Layout, capacity int) (*Shard, error) {
	size, err := shardBytes(layout, capacity)
	if err != nil {
		return nil, err
	}
	arena, err := budget.Map(size, as)
	if err != nil {
		if _, full := errors.AsType[*BudgetError](err); full {
			return nil, err
		}
		return nil, fmt.Errorf("open a shard of %d positions: %w", capacity, err)
	}
	return &Shard{budget: budget, layout: layout, capacity: capacity, reserved: size, arena: arena}, nil
}

// Append adds rows of exactly n positions after those that the shard holds. On error the shard is as before.
func (s *Shard) Append(rows attention.Rows, n int) error {
	if s.arena == nil {
		return fmt.Errorf("append %d positions: the shard is closed", n)
	}
	if n > s.capacity-s.length {
		return fmt.Errorf("append %d positions: the shard holds %d of at most %d", n, s.length, s.capacity)
	}
	if err := checkRows(rows, n, s.layout); err != nil {
		return fmt.Errorf("append %d positions: %w", n, err)
	}
	kb, vb := s.layout.KRowBytes(), s.layout.VRowBytes()
	for done := 0; done < n; {
		page, at := (s.length+done)/attention.PageLen, (s.length+done)%attention.PageLen
		if page == len(s.pages) {
			size := s.layout.PageBytes()
			s.pages = append(s.pages, s.arena.Bytes()[page*size:(page+1)*size:(page+1)*size])
		}
		m := min(n-done, attention.PageLen-at)
		part := attention.Rows{K: rows.K[done*kb : (done+m)*kb], V: rows.V[done*vb : (done+m)*vb]}
		if s.layout.DType() == tensor.I8 {
			part.KScale, part.VScale = rows.KScale[done:done+m], rows.VScale[done:done+m]
		}
		if err := s.layout.Write(s.pages[page], at, m, part); err != nil {
			return fmt.Errorf("append position %d: %w", s.length+done, err)
		}
		done += m
	}
	if err := s.hasher.Update(rows, n, s.layout); err != nil {
		return fmt.Errorf("append %d positions: %w", n, err)
	}
	s.length += n
	return nil
}

// Len returns the positions held.
func (s *Shard) Len() int { return s.length }

// Reserved returns the bytes that the shard takes of its budget.
func (s *Shard) Reserved() int64 { return s.reserved }

// Receipt returns the shard's receipt.
func (s *Shard) Receipt() Receipt { return s.hasher.Receipt() }

// KV returns the first n positions, at most Len, for attention.Attend.
func (s *Shard) KV(n int) attention.KV {
	n = max(min(n, s.length), 0)
	return attention.KV{Layout: s.layout, Pages: s.pages[:(n+attention.PageLen-1)/attention.PageLen], Len: n}
}

// Close frees the shard and gives its memory back to the budget. Closing again does nothing.
func (s *Shard) Close() {
	if s.arena == nil {
		return
	}
	s.budget.Unmap(s.arena)
	s.arena, s.pages, s.length = nil, nil, 0
}

// checkRows checks that rows hold exactly n positions of the layout.
func checkRows(rows attention.Rows, n int, layout attention.Layout) error {
	switch {
	case n < 1:
		return fmt.Errorf("%d positions: a block holds at least 1", n)
	case len(rows.K)/layout.KRowBytes() != n || len(rows.K)%layout.KRowBytes() != 0:
		return fmt.Errorf("keys have %d bytes, %d positions of %d bytes are needed", len(rows.K), n, layout.KRowBytes())
	case len(rows.V)/layout.VRowBytes() != n || len(rows.V)%layout.VRowBytes() != 0:
		return fmt.Errorf("values have %d bytes, %d positions of %d bytes are needed", len(rows.V), n, layout.VRowBytes())
	}
	scales := 0
	if layout.DType() == tensor.I8 {
		scales = n
	}
	if len(rows.KScale) != scales || len(rows.VScale) != scales {
		return fmt.Errorf("%d key scales and %d value scales, %d of each are needed", len(rows.KScale), len(rows.VScale), scales)
	}
	return nil
}
