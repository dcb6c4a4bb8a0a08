package kvcache

import (
	"fmt"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Arena is anonymous memory outside the garbage-collected heap: zeroed when it is mapped, page-aligned, resident only where it was touched,
// and gone at Close. A collector that lets its heap double would otherwise hold twice what a cache holds.
type Arena struct {
	bytes []byte
	of    Owner // whose it was mapped as by a budget
}

// MapArena maps size bytes, at least 0. It counts against no budget.
func MapArena(size int64) (*Arena, error) {
	if size < 0 || size > math.MaxInt {
		return nil, fmt.Errorf("map %d bytes: no such size", size)
	}
	if size == 0 {
		return &Arena{}, nil
	}
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	adviseHuge(b)
	return &Arena{bytes: b}, nil
}

func (a *Arena) size() int64 { return int64(len(a.bytes)) }

// Bytes returns the arena's memory. It must not be used after Close.
func (a *Arena) Bytes() []byte { return a.bytes }

// Floats returns the arena's memory as float32 in the machine's byte order. It must not be used after Close.
func (a *Arena) Floats() []float32 {
	if len(a.bytes) < 4 {
		return nil
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(a.bytes))), len(a.bytes)/4)
}

// Close gives the memory back. Closing again does nothing.
func (a *Arena) Close() {
	if a.bytes == nil {
		return
	}
	// Munmap fails only for memory that Mmap did not give.
	if err := unix.Munmap(a.bytes); err != nil {
		panic(fmt.Sprintf("kvcache: unmap an arena: %v", err))
	}
	a.bytes = nil
}

// address returns the address of b.
func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
