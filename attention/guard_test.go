//go:build unix

package attention

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// guards gives memory between pages that can not be touched, so that one byte read or written too far ends the test.
type guards struct {
	t    rapid.TB
	maps [][]byte
}

func (g *guards) free() {
	for _, m := range g.maps {
		if err := unix.Munmap(m); err != nil {
			g.t.Fatal(err)
		}
	}
	g.maps = nil
}

// bytes returns n bytes that end where the memory does or, if first, begin where it does.
func (g *guards) bytes(n int, first bool) []byte {
	page := os.Getpagesize()
	room := (n + page - 1) / page * page
	m, err := unix.Mmap(-1, 0, room+2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		g.t.Fatal(err)
	}
	g.maps = append(g.maps, m)
	for _, at := range []int{0, page + room} {
		if err := unix.Mprotect(m[at:][:page], unix.PROT_NONE); err != nil {
			g.t.Fatal(err)
		}
	}
	if first {
		return m[page:][:n:n]
	}
	return m[page+room-n:][:n:n]
}

func (g *guards) floats(n int, first bool) []float32 {
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(g.bytes(4*n, first)))), n)
}

func (g *guards) words(n int, first bool) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(g.bytes(8*n, first)))), n)
}

// copied returns a copy of x between guards.
func (g *guards) copied(x []byte, first bool) []byte {
	b := g.bytes(len(x), first)
	copy(b, x)
	return b
}
