package limits

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// guarded returns n bytes that end where memory can not be touched.
func guarded(t *testing.T, n int) []byte {
	t.Helper()
	page := unix.Getpagesize()
	size := (n + page - 1) / page * page
	b, err := unix.Mmap(-1, 0, size+page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	if err := unix.Mprotect(b[size:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	return b[size-n : size : size]
}

func TestLoopsTouchEveryByteOnceAndNoOther(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, l := range available {
		for _, n := range []int{512, 1024, 4096, 4608, 1 << 16} {
			b := guarded(t, n)
			var want uint64
			for i := 0; i < n; i += 8 {
				x := rng.Uint64()
				binary.LittleEndian.PutUint64(b[i:], x)
				want ^= x
			}
			for _, ahead := range aheads {
				if got := l.sequential(&b[0], n, ahead); got != want {
					t.Errorf("%s: %d bytes one after the other: %x, want %x", l.isa, n, got, want)
				}
			}
			if got := l.streams(&b[0], n); got != want {
				t.Errorf("%s: %d bytes in four streams: %x, want %x", l.isa, n, got, want)
			}
			l.write(&b[0], n, 0x0123456789abcdef)
			for i := 0; i < n; i += 8 {
				if x := binary.LittleEndian.Uint64(b[i:]); x != 0x0123456789abcdef {
					t.Fatalf("%s: %d bytes written: %x at %d", l.isa, n, x, i)
				}
			}
		}
	}
}

func TestEveryOperationOfThePeakIsDone(t *testing.T) {
	for _, l := range available {
		lanes := make([]float32, l.lanes)
		l.fma(12345, &lanes[0])
		for i, x := range lanes {
			if x != 12345 {
				t.Fatalf("%s: lane %d counted %g of 12345", l.isa, i, x)
			}
		}
	}
}

func TestLimitsAreMeasured(t *testing.T) {
	b, err := NewBuffer(1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, isa := range ISAs() {
		for name, measure := range map[string]func() (float64, error){
			"fma":     func() (float64, error) { return FMA(isa, time.Millisecond) },
			"read":    func() (float64, error) { return b.Read(isa, 1, 0) },
			"read, 2": func() (float64, error) { return b.Read(isa, 2, 0) },
			"write":   func() (float64, error) { return b.Write(isa, 1, 0) },
		} {
			if x, err := measure(); err != nil || !(x > 0) || math.IsInf(x, 0) {
				t.Errorf("%s %s: %g, %v", isa, name, x, err)
			}
		}
	}
	if _, err := FMA("none", 0); err == nil {
		t.Error("an unknown instruction set was measured")
	}
}

func BenchmarkFMA(b *testing.B) {
	for _, l := range available {
		b.Run(string(l.isa), func(b *testing.B) {
			lanes := make([]float32, l.lanes)
			for b.Loop() {
				l.fma(fmaTimes, &lanes[0])
			}
			b.ReportMetric(2*fmaTimes*float64(l.lanes)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}

func BenchmarkMemory(b *testing.B) {
	buffer, err := NewBuffer(256 << 20)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = buffer.Close() }()
	for _, l := range available {
		for _, threads := range []int{1, 2} {
			run := func(name string, way func(p *byte, n int)) {
				b.Run(fmt.Sprintf("%s/%s/%d", name, l.isa, threads), func(b *testing.B) {
					b.SetBytes(buffer.size())
					for b.Loop() {
						buffer.pass(threads, way)
					}
				})
			}
			run("streams", func(p *byte, n int) { l.streams(p, n) })
			for _, ahead := range aheads {
				run(fmt.Sprintf("sequential%d", ahead), func(p *byte, n int) { l.sequential(p, n, ahead) })
			}
			run("write", func(p *byte, n int) { l.write(p, n, 1) })
		}
	}
}
