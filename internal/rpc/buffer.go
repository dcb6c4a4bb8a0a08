package rpc

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"

	"google.golang.org/grpc/mem"
)

const (
	// align is a cache line, and a vector of any kernel.
	align = 64
	// The smallest buffer is larger than those that gRPC does not count references of.
	minShift, maxShift = 11, 21
)

// Buffer is pooled memory at a 64-byte boundary. It has one owner, who ends it with Free or by giving it to Send. A nil
// Buffer is empty.
type Buffer struct {
	bytes []byte // what is asked for, of all
	all   []byte // 1<<shift bytes, or those of one that is not pooled
	freed atomic.Bool
	// message is the list of buffers of the message that ends with this one. gRPC may read it until the last of them is free.
	message [2]mem.Buffer
	// What the buffer has of a call's share, until it is freed.
	share *Share
	way   direction
	taken int64
}

var pools [maxShift + 1]sync.Pool

// NewBuffer returns a buffer of n bytes, whose content is whatever was there; nil for none.
func NewBuffer(n int) *Buffer {
	if n <= 0 {
		return nil
	}
	shift := max(bits.Len(uint(n-1)), minShift)
	if shift > maxShift {
		return &Buffer{bytes: make([]byte, n)}
	}
	b, _ := pools[shift].Get().(*Buffer)
	if b == nil {
		all := make([]byte, 1<<shift+align-1)
		skip := -int(uintptr(unsafe.Pointer(&all[0]))) & (align - 1)
		b = &Buffer{all: all[skip : skip+1<<shift : skip+1<<shift]}
	}
	b.bytes = b.all[:n]
	b.freed.Store(false)
	return b
}

// Bytes returns the buffer's bytes, until it is given away.
func (b *Buffer) Bytes() []byte {
	if b == nil {
		return nil
	}
	return b.bytes
}

// Cut keeps the first n bytes, at least 1 and at most all.
func (b *Buffer) Cut(n int) { b.bytes = b.bytes[:max(n, 1)] }

// Floats returns the buffer as float32 values in the machine's order, without a last part of one.
func (b *Buffer) Floats() []float32 {
	if b == nil || len(b.bytes) < 4 {
		return nil
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(&b.bytes[0])), len(b.bytes)/4)
}

// Hold lets the buffer have n bytes that were taken by TakeAnswer, which are given back when it is free.
func (b *Buffer) Hold(s *Share, n int64) { b.hold(s, outward, n) }

func (b *Buffer) hold(s *Share, d direction, n int64) {
	if b.share != nil {
		panic("rpc: a buffer is counted twice")
	}
	b.share, b.way, b.taken = s, d, n
}

// Free gives the buffer back. It panics if it was given away before.
func (b *Buffer) Free() {
	if b == nil {
		return
	}
	if b.freed.Swap(true) {
		panic("rpc: a buffer is freed twice")
	}
	share, taken := b.share, b.taken
	b.share, b.taken = nil, 0
	share.give(b.way, taken)
	if b.all == nil {
		return
	}
	pools[bits.Len(uint(cap(b.all)-1))].Put(b)
}

// owned is a Buffer that belongs to gRPC, which puts it back when it has been written.
type owned Buffer

func (o *owned) Put(*[]byte) { (*Buffer)(o).Free() }

func (*owned) Get(int) *[]byte { panic("rpc: a pool of one buffer") }

// give makes pieces a message of gRPC's, and gives it the buffer, in which some of them lie: it is freed when these have been
// written. Pieces that lie elsewhere must not be changed any more.
func (b *Buffer) give(pieces [][]byte) mem.BufferSlice {
	message := make(mem.BufferSlice, len(pieces))
	if b == nil {
		for i, p := range pieces {
			message[i] = mem.SliceBuffer(p)
		}
		return message
	}
	whole := mem.NewBuffer(&b.bytes, (*owned)(b))
	for i, p := range pieces {
		if at, ok := b.offset(p); ok {
			message[i] = whole.Slice(at, at+len(p))
		} else {
			message[i] = mem.SliceBuffer(p)
		}
	}
	whole.Free()
	return message
}

// offset says where in the buffer p lies.
func (b *Buffer) offset(p []byte) (at int, ok bool) {
	if len(p) == 0 || len(p) > len(b.bytes) {
		return 0, false
	}
	// An address before the buffer becomes a number that is too large.
	distance := uintptr(unsafe.Pointer(&p[0])) - uintptr(unsafe.Pointer(&b.bytes[0]))
	return int(distance), distance <= uintptr(len(b.bytes)-len(p))
}

// GiveMessage makes a head, which is not empty, and a payload one message of gRPC's, and gives it both buffers.
func GiveMessage(head, payload *Buffer) mem.BufferSlice {
	if payload == nil {
		head.message[0] = mem.NewBuffer(&head.bytes, (*owned)(head))
		return head.message[:1]
	}
	payload.message[0] = mem.NewBuffer(&head.bytes, (*owned)(head))
	payload.message[1] = mem.NewBuffer(&payload.bytes, (*owned)(payload))
	return payload.message[:]
}
