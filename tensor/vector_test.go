//go:build unix

package tensor

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// guarded returns n bytes between memory that can not be touched, at its end or, if first, at its beginning.
func guarded(t *testing.T, n int, first bool) []byte {
	t.Helper()
	page := os.Getpagesize()
	room := (n + page - 1) / page * page
	m, err := unix.Mmap(-1, 0, room+2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(m); err != nil {
			t.Error(err)
		}
	})
	for _, at := range []int{0, page + room} {
		if err := unix.Mprotect(m[at:][:page], unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	if first {
		return m[page:][:n:n]
	}
	return m[page+room-n:][:n:n]
}

func guardedFloats(t *testing.T, n int, first bool) []float32 {
	t.Helper()
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(guarded(t, 4*n, first)))), n)
}

// narrowed narrows one element, as the definition says.
func narrowed(x float32, dt DType) uint16 {
	if dt == F16 {
		return halfOf(x)
	}
	return bfloatOf(x)
}

// TestNarrowManyIsNarrowOne goes through float32 of all kinds, all of them if HEADWATER_EXHAUSTIVE is set.
func TestNarrowManyIsNarrowOne(t *testing.T) {
	step := uint64(4999)
	if os.Getenv("HEADWATER_EXHAUSTIVE") != "" {
		step = 1
	}
	const n = 4096
	for _, dt := range []DType{F16, BF16} {
		top := map[DType]float32{F16: 65519.996, BF16: math.Float32frombits(0x7f7f7fff)}[dt]
		src, dst := guardedFloats(t, n, false), guarded(t, 2*n, false)
		flush := func(m int) {
			if err := Narrow(dst[:2*m], src[:m], dt); err != nil {
				t.Fatal(err)
			}
			for i, x := range src[:m] {
				if got, want := binary.LittleEndian.Uint16(dst[2*i:]), narrowed(x, dt); got != want {
					t.Fatalf("%s of %x is %#x, not %#x", dt, math.Float32bits(x), got, want)
				}
			}
		}
		m := 0
		for u := uint64(0); u < 1<<32; u += step {
			x := math.Float32frombits(uint32(u))
			if a := float32(math.Abs(float64(x))); finite(x) && a > top {
				continue
			}
			src[m] = x
			if m++; m == n {
				flush(m)
				m = 0
			}
		}
		flush(m)
	}
}

func TestNarrowAnyLengthBetweenGuards(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for n := range 70 {
		for _, dt := range []DType{F16, BF16, F32} {
			first := n%2 == 0
			src, dst := guardedFloats(t, n, first), guarded(t, n*dt.Size(), !first)
			for i := range src {
				src[i] = float32(rnd.NormFloat64())
			}
			if err := Narrow(dst, src, dt); err != nil {
				t.Fatal(err)
			}
			for i, x := range src {
				one := make([]byte, dt.Size())
				if err := Narrow(one, []float32{x}, dt); err != nil {
					t.Fatal(err)
				}
				if string(one) != string(dst[i*dt.Size():][:dt.Size()]) {
					t.Fatalf("%s, %d of %d: %x, not %x", dt, i, n, dst[i*dt.Size():][:dt.Size()], one)
				}
			}
		}
	}
}

func TestNarrowNamesTheFirstOfMany(t *testing.T) {
	for dt, most := range map[DType]float32{F16: 65520, BF16: math.Float32frombits(0x7f7f8000)} {
		for n := 1; n < 70; n++ {
			for at := range n {
				src := make([]float32, n)
				for i := range src {
					src[i] = []float32{float32(math.Inf(1)), float32(math.NaN()), -1}[i%3]
				}
				src[n-1], src[at] = math.MaxFloat32, -most
				var out *RangeError
				if err := Narrow(make([]byte, 2*n), src, dt); !errors.As(err, &out) || out.Index != at || out.Value != -most {
					t.Fatalf("%s, %d of %d: %v", dt, at, n, err)
				}
			}
		}
	}
}

// TestQuantizeManyIsQuantizeOne: rows of any length and size give what their elements give one by one.
func TestQuantizeManyIsQuantizeOne(t *testing.T) {
	rnd := rand.New(rand.NewPCG(2, 1))
	for n := range 200 {
		first := n%2 == 0
		row, b := guardedFloats(t, n, first), guarded(t, n, !first)
		dst := unsafe.Slice((*int8)(unsafe.Pointer(unsafe.SliceData(b))), n)
		for round := range 20 {
			amax := float32(0)
			for i := range row {
				row[i] = float32(rnd.NormFloat64() * math.Pow(2, float64(rnd.IntN(20)-10)))
				switch round % 5 {
				case 1:
					row[i] = math.Float32frombits(rnd.Uint32() & 0x807fffff >> rnd.IntN(22)) // subnormal, most often positive
				case 2:
					row[i] = float32(rnd.IntN(509)-254) / 2 // ties
				case 3:
					row[i] *= 1e36
					row[i] = max(min(row[i], math.MaxFloat32), -math.MaxFloat32)
				case 4:
					row[i] = float32(math.Copysign(0, float64(row[i])))
				}
				amax = max(amax, row[i], -row[i])
			}
			scale := QuantizeI8(dst, row)
			if want := amax / 127; math.Float32bits(scale) != math.Float32bits(want) {
				t.Fatalf("%d elements: scale %g, not %g", n, scale, want)
			}
			for i, x := range row {
				want := int8(0)
				if scale != 0 {
					want = int8(max(-127, min(127, math.RoundToEven(float64(x/scale)))))
				}
				if dst[i] != want {
					t.Fatalf("%d elements, scale %g: %g is %d, not %d", n, scale, x, dst[i], want)
				}
			}
		}
	}
}

func BenchmarkNarrow(b *testing.B) {
	x := make([]float32, 1024)
	for i := range x {
		x[i] = float32(i) / 7
	}
	for _, dt := range []DType{F16, BF16} {
		b.Run(dt.String(), func(b *testing.B) {
			b.SetBytes(int64(4 * len(x)))
			dst := make([]byte, 2*len(x))
			for b.Loop() {
				if err := Narrow(dst, x, dt); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(dt.String()+" one by one", func(b *testing.B) {
			b.SetBytes(int64(4 * len(x)))
			dst := make([]byte, 2*len(x))
			for b.Loop() {
				for i, v := range x {
					binary.LittleEndian.PutUint16(dst[2*i:], narrowed(v, dt))
				}
			}
		})
	}
}
