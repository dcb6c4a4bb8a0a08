package limits

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ISA is an instruction set with loops of its own.
type ISA string

// The instruction sets, by the names that the kernels have too.
const (
	AVX512 ISA = "avx512"
	AVX2   ISA = "avx2"
	NEON   ISA = "neon"
)

// loops are the inner loops for one instruction set.
type loops struct {
	isa ISA
	// sequential returns the exclusive or of n bytes' 8-byte words, prefetching so many bytes ahead. n is a multiple of
	// 512 above 0, here and below.
	sequential func(p *byte, n, ahead int) uint64
	// streams returns the same, reading the four quarters of the bytes abreast.
	streams func(p *byte, n int) uint64
	// write fills n bytes at p, a multiple of 64, with x, past the caches.
	write func(p *byte, n int, x uint64)
	// fma adds 1·1 so many times to each lane of all its accumulators, which begin at 0, and writes them to lanes. They
	// are independent of each other and at least as many as latency times throughput of the instruction.
	fma   func(times int, lanes *float32)
	lanes int
}

// ISAs returns the instruction sets that this machine has, the widest first.
func ISAs() []ISA {
	var all []ISA
	for _, l := range available {
		all = append(all, l.isa)
	}
	return all
}

func of(isa ISA) (loops, error) {
	for _, l := range available {
		if l.isa == isa {
			return l, nil
		}
	}
	return loops{}, fmt.Errorf("measure limits: this machine has no %s", isa)
}

// median takes passes, at least one, until the time is spent, and returns the median of how long they took.
func median(spend time.Duration, pass func()) time.Duration {
	var took []time.Duration
	for total := time.Duration(0); len(took) == 0 || total < spend; {
		began := time.Now()
		pass()
		d := max(time.Since(began), 1)
		took = append(took, d)
		total += d
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// fmaTimes is the length of a pass: some 50 µs.
const fmaTimes = 1 << 14

// FMA returns the floating-point operations a second, two for each multiply-add of binary32, that one core does in
// registers: the median of passes over the given time.
func FMA(isa ISA, spend time.Duration) (flops float64, err error) {
	l, err := of(isa)
	if err != nil {
		return 0, err
	}
	lanes := make([]float32, l.lanes)
	d := median(spend, func() { l.fma(fmaTimes, &lanes[0]) })
	return 2 * fmaTimes * float64(l.lanes) / d.Seconds(), nil
}

// chunk is how much a loop is given at once: the runtime can not stop a thread within one.
const chunk = 4 << 20

// Buffer is memory to read and write.
type Buffer struct {
	bytes []byte
}

// NewBuffer maps size bytes, rounded up to 4 MiB, of huge pages where the system has them, and fills them.
func NewBuffer(size int64) (*Buffer, error) {
	size = (max(size, 1) + chunk - 1) / chunk * chunk
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes to measure the memory with: %w", size, err)
	}
	hugePages(b)
	for i := 0; i < len(b); i += 8 {
		b[i] = byte(i >> 12)
	}
	return &Buffer{bytes: b}, nil
}

// size returns the buffer's bytes.
func (b *Buffer) size() int64 { return int64(len(b.bytes)) }

// Close gives the memory back.
func (b *Buffer) Close() error { return unix.Munmap(b.bytes) }

// aheads are the distances of the software prefetch that are tried: none to speak of, and some that suit one machine or
// another.
var aheads = [...]int{0, 4 << 10, 16 << 10}

// Read returns the bytes a second at which that many threads read the buffer, each its own part of it: for the best of
// several loops, the median of passes over its share of the given time.
func (b *Buffer) Read(isa ISA, threads int, spend time.Duration) (bandwidth float64, err error) {
	l, err := of(isa)
	if err != nil {
		return 0, err
	}
	ways := []func(p *byte, n int){func(p *byte, n int) { l.streams(p, n) }}
	for _, ahead := range aheads {
		ways = append(ways, func(p *byte, n int) { l.sequential(p, n, ahead) })
	}
	for _, way := range ways {
		d := median(spend/time.Duration(len(ways)), func() { b.pass(threads, way) })
		bandwidth = max(bandwidth, float64(len(b.bytes))/d.Seconds())
	}
	return bandwidth, nil
}

// Write returns the bytes a second at which that many threads fill the buffer by stores past the caches, the median of
// passes over the given time.
func (b *Buffer) Write(isa ISA, threads int, spend time.Duration) (bandwidth float64, err error) {
	l, err := of(isa)
	if err != nil {
		return 0, err
	}
	d := median(spend, func() { b.pass(threads, func(p *byte, n int) { l.write(p, n, 1) }) })
	return float64(len(b.bytes)) / d.Seconds(), nil
}

// pass shares the buffer's chunks out in equal runs.
func (b *Buffer) pass(threads int, way func(p *byte, n int)) {
	chunks := len(b.bytes) / chunk
	run := func(thread int) {
		for c := thread * chunks / threads; c < (thread+1)*chunks/threads; c++ {
			way(&b.bytes[c*chunk], chunk)
		}
	}
	var others sync.WaitGroup
	for thread := 1; thread < threads; thread++ {
		others.Go(func() { run(thread) })
	}
	run(0)
	others.Wait()
}
