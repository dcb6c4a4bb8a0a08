package tensor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

// half describes a two-byte binary format by its definition: a value is (−1)^s · 1.m · 2^(e−bias), or 0.m · 2^(1−bias)
// where e is 0.
type half struct {
	dt       DType
	exponent int // bits
	mantissa int // bits
}

var halves = []half{{F16, 5, 10}, {BF16, 8, 7}}

// value computes the value of a pattern from the definition, exact in float64. ok is false for infinities and NaN.
func (h half) value(bits uint16) (v float64, ok bool) {
	mantissa := float64(bits & (1<<h.mantissa - 1))
	exponent := int(bits>>h.mantissa) & (1<<h.exponent - 1)
	bias := 1<<(h.exponent-1) - 1
	if exponent == 1<<h.exponent-1 {
		return 0, false
	}
	if exponent > 0 {
		mantissa += float64(int(1) << h.mantissa)
	} else {
		exponent = 1
	}
	v = math.Ldexp(mantissa, exponent-bias-h.mantissa)
	if bits&0x8000 != 0 {
		v = -v
	}
	return v, true
}

func (h half) infinity() uint16 { return (1<<h.exponent - 1) << h.mantissa }

func (h half) narrow(x float32) (uint16, error) {
	var p [2]byte
	err := Narrow(p[:], []float32{x}, h.dt)
	return binary.LittleEndian.Uint16(p[:]), err
}

func (h half) widen(t interface{ Fatal(...any) }, bits uint16) float32 {
	var x [1]float32
	if err := Widen(x[:], binary.LittleEndian.AppendUint16(nil, bits), h.dt); err != nil {
		t.Fatal(err)
	}
	return x[0]
}

func TestWidenHalvesOverAllPatterns(t *testing.T) {
	for _, h := range halves {
		for bits := range 1 << 16 {
			bits := uint16(bits)
			got := h.widen(t, bits)
			if want, ok := h.value(bits); ok {
				if float64(got) != want || math.Signbit(float64(got)) != (bits&0x8000 != 0) {
					t.Fatalf("%s %#04x widens to %g, want %g", h.dt, bits, got, want)
				}
				continue
			}
			if inf := bits&0x7fff == h.infinity(); inf && !math.IsInf(float64(got), 1-2*int(bits>>15)) || !inf && got == got {
				t.Fatalf("%s %#04x widens to %g", h.dt, bits, got)
			}
		}
	}
}

func TestNarrowHalvesReturnsAllPatterns(t *testing.T) {
	for _, h := range halves {
		for bits := range 1 << 16 {
			bits := uint16(bits)
			x := h.widen(t, bits)
			got, err := h.narrow(x)
			if err != nil {
				t.Fatal(err)
			}
			if x != x {
				if back := h.widen(t, got); back == back {
					t.Fatalf("%s: NaN %#04x narrows to %g", h.dt, bits, back)
				}
			} else if got != bits {
				t.Fatalf("%s %#04x returns as %#04x", h.dt, bits, got)
			}
		}
	}
}

// TestNarrowHalvesBetweenAllNeighbors narrows, between each two neighbors of the format, the float32 at the middle, the
// two beside it, and the two beside the neighbors: where nearest-even can go wrong.
func TestNarrowHalvesBetweenAllNeighbors(t *testing.T) {
	for _, h := range halves {
		for low := uint16(0); low+1 < h.infinity(); low++ {
			a, _ := h.value(low)
			b, _ := h.value(low + 1)
			middle := float32((a + b) / 2) // exact: it has one more bit than the format
			even := low + low&1
			for _, c := range []struct {
				x    float32
				want uint16
			}{
				{middle, even},
				{math.Nextafter32(middle, 0), low},
				{math.Nextafter32(middle, math.MaxFloat32), low + 1},
				{math.Nextafter32(float32(a), math.MaxFloat32), low},
				{math.Nextafter32(float32(b), 0), low + 1},
			} {
				// Where the neighbors of bfloat16 are subnormal, the steps of float32 still fit between.
				for sign, x := range []float32{c.x, -c.x} {
					got, err := h.narrow(x)
					if err != nil || got != c.want|uint16(sign)<<15 {
						t.Fatalf("%s: %g narrows to %#04x (%v), want %#04x", h.dt, x, got, err, c.want)
					}
				}
			}
		}
	}
}

func TestNarrowRefusesWhatWouldBecomeInfinite(t *testing.T) {
	for _, h := range halves {
		largest, _ := h.value(h.infinity() - 1)
		below, _ := h.value(h.infinity() - 2)
		limit := float32(largest + (largest-below)/2) // the middle between the largest and what would follow it: even is above
		for _, x := range []float32{limit, -limit, math.Nextafter32(limit, math.MaxFloat32), math.MaxFloat32, -math.MaxFloat32} {
			_, err := h.narrow(x)
			e, ok := errors.AsType[*RangeError](err)
			if !ok || e.Index != 0 || e.Value != x || e.DType != h.dt {
				t.Errorf("%s: %g gives %v", h.dt, x, err)
			}
		}
		if got, err := h.narrow(math.Nextafter32(limit, 0)); err != nil || got != h.infinity()-1 {
			t.Errorf("%s: just below the limit gives %#04x %v", h.dt, got, err)
		}
		for sign := range 2 {
			if got, err := h.narrow(float32(math.Inf(1 - 2*sign))); err != nil || got != h.infinity()|uint16(sign)<<15 {
				t.Errorf("%s: infinity gives %#04x %v", h.dt, got, err)
			}
		}
		dst := make([]byte, 6)
		err := Narrow(dst, []float32{1, float32(math.Inf(1)), limit}, h.dt)
		if e, ok := errors.AsType[*RangeError](err); !ok || e.Index != 2 {
			t.Errorf("%s: %v", h.dt, err)
		}
	}
}

// TestNarrowIsNearest compares distances in float64, for which every value involved is exact.
func TestNarrowIsNearest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := rapid.SampledFrom(halves).Draw(t, "type")
		x := math.Float32frombits(rapid.Uint32().Draw(t, "bits"))
		if !finite(x) {
			return
		}
		got, err := h.narrow(x)
		largest, _ := h.value(h.infinity() - 1)
		if err != nil {
			if math.Abs(float64(x)) <= largest {
				t.Fatal(err)
			}
			return
		}
		value, ok := h.value(got)
		if !ok {
			t.Fatalf("%g narrows to %#04x", x, got)
		}
		distance := math.Abs(value - float64(x))
		for _, other := range []uint16{got - 1, got + 1} {
			if v, ok := h.value(other); ok && other>>15 == got>>15 {
				if d := math.Abs(v - float64(x)); d < distance || d == distance && got&1 != 0 {
					t.Fatalf("%g narrows to %g, %g is nearer or even", x, value, v)
				}
			}
		}
	})
}

func TestF32PassesAsItIs(t *testing.T) {
	src := []float32{0, float32(math.Copysign(0, -1)), 1, math.SmallestNonzeroFloat32, math.MaxFloat32, float32(math.Inf(-1)), math.Float32frombits(0x7fa00001)}
	p := make([]byte, 4*len(src))
	if err := Narrow(p, src, F32); err != nil {
		t.Fatal(err)
	}
	dst := make([]float32, len(src))
	if err := Widen(dst, p, F32); err != nil {
		t.Fatal(err)
	}
	for i := range src {
		if got := binary.LittleEndian.Uint32(p[4*i:]); got != math.Float32bits(src[i]) || math.Float32bits(dst[i]) != got {
			t.Errorf("%g: %#x, back %#x", src[i], got, math.Float32bits(dst[i]))
		}
	}
}

func TestConversionsRefuseOtherTypesAndLengths(t *testing.T) {
	for dt := DType(0); dt < 20; dt++ {
		one := make([]float32, 1)
		p := make([]byte, dt.Size())
		if err := Widen(one, p, dt); (err == nil) != (dt == F32 || dt == F16 || dt == BF16 || dt == I8) {
			t.Errorf("widen %s: %v", dt, err)
		}
		if err := Narrow(p, one, dt); (err == nil) != (dt == F32 || dt == F16 || dt == BF16) {
			t.Errorf("narrow %s: %v", dt, err)
		}
		if Widen(one, make([]byte, dt.Size()+1), dt) == nil || Widen(nil, make([]byte, 8), dt) == nil {
			t.Errorf("widen %s: wrong length was taken", dt)
		}
		if Narrow(make([]byte, dt.Size()+1), one, dt) == nil || Narrow(make([]byte, 8), nil, dt) == nil {
			t.Errorf("narrow %s: wrong length was taken", dt)
		}
	}
	dst := make([]float32, 256)
	src := make([]byte, 256)
	for i := range src {
		src[i] = byte(i)
	}
	if err := Widen(dst, src, I8); err != nil {
		t.Fatal(err)
	}
	for i, x := range dst {
		if want := float32(i); i >= 128 && x != want-256 || i < 128 && x != want {
			t.Errorf("byte %d widens to %g", i, x)
		}
	}
}

// quotient rounds a/b to float32 from the exact rational.
func quotient(a, b float32) float32 {
	q, _ := new(big.Rat).Quo(new(big.Rat).SetFloat64(float64(a)), new(big.Rat).SetFloat64(float64(b))).Float32()
	return q
}

// nearestEven rounds to an integer from the exact value.
func nearestEven(x float32) int {
	v := float64(x)
	low := math.Floor(v)
	switch d := v - low; {
	case d < 0.5, d == 0.5 && math.Mod(low, 2) == 0:
		return int(low)
	}
	return int(low) + 1
}

func TestQuantizeI8(t *testing.T) {
	check := func(t interface{ Fatalf(string, ...any) }, row []float32) {
		got := make([]int8, len(row))
		scale := QuantizeI8(got, row)
		amax := float32(0)
		for _, x := range row {
			amax = max(amax, x, -x)
		}
		if want := quotient(amax, 127); scale != want {
			t.Fatalf("row %v: scale %g, want %g", row, scale, want)
		}
		for i, x := range row {
			want := 0
			if scale != 0 {
				want = nearestEven(max(-127, min(127, quotient(x, scale))))
			}
			if int(got[i]) != want {
				t.Fatalf("row %v: element %d is %d, want %d", row, i, got[i], want)
			}
		}
	}
	const tiny = math.SmallestNonzeroFloat32
	for _, row := range [][]float32{
		nil,
		{0, 0},
		{float32(math.Copysign(0, -1))},
		{127, 0.5, 1.5, 2.5, -0.5, -1.5, -127},
		{-127},
		{math.MaxFloat32, -math.MaxFloat32, 1},
		{tiny},
		{63 * tiny, -tiny, 0},
		{64 * tiny, tiny},
		{190 * tiny, -190 * tiny, 127 * tiny},
		{1e-40, 1e-38},
	} {
		check(t, row)
	}
	values := rapid.OneOf(rapid.Float32Range(-4, 4), rapid.Float32Range(-1e-37, 1e-37), rapid.Float32Range(-math.MaxFloat32, math.MaxFloat32))
	rapid.Check(t, func(t *rapid.T) { check(t, rapid.SliceOfN(values, 0, 20).Draw(t, "row")) })
}

var floats = []DType{F16, BF16, F32, F64}

// put stores x as element i.
func put(p []byte, dt DType, i int, x float64) {
	switch dt {
	case F64:
		binary.LittleEndian.PutUint64(p[8*i:], math.Float64bits(x))
	default:
		if err := Narrow(p[i*dt.Size():(i+1)*dt.Size()], []float32{float32(x)}, dt); err != nil {
			panic(err)
		}
	}
}

func TestCheckFiniteFindsTheFirstAtEveryPlace(t *testing.T) {
	for _, dt := range floats {
		for n := range 40 {
			p := make([]byte, n*dt.Size())
			for i := range n {
				put(p, dt, i, []float64{1, -1, 0, 65504, -3e4}[i%5])
				if dt == BF16 { // its largest
					binary.LittleEndian.PutUint16(p[2*i:], 0xff7f)
				}
			}
			for _, neg := range []bool{false, true} {
				if i, _, ok := CheckFinite(p, dt, neg); !ok || i != -1 {
					t.Fatalf("%s of %d: %d", dt, n, i)
				}
				for at := range n {
					for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
						q := append([]byte(nil), p...)
						put(q, dt, at, bad)
						put(q, dt, n-1, bad)
						index, value, ok := CheckFinite(q, dt, neg)
						if neg && math.IsInf(bad, -1) {
							if !ok {
								t.Fatalf("%s: −Inf at %d was refused as %g at %d", dt, at, value, index)
							}
						} else if ok || index != int64(at) || fmt.Sprint(value) != fmt.Sprint(bad) {
							t.Fatalf("%s: %g at %d was found as %g at %d (ok %t)", dt, bad, at, value, index, ok)
						}
					}
				}
			}
		}
		if i, v, ok := CheckFinite(make([]byte, 3*dt.Size()+1), dt, false); ok || i != 3 || !math.IsNaN(v) {
			t.Errorf("%s: part of an element: %d %g %t", dt, i, v, ok)
		}
	}
	for _, dt := range []DType{0, Bool, U8, I8, I16, U16, I32, U32, I64, U64, 99} {
		if _, _, ok := CheckFinite([]byte{255, 255, 255, 255, 255, 255, 255, 255}, dt, false); !ok {
			t.Errorf("%s is not ok", dt)
		}
	}
}

func TestCheckFiniteAgreesWithOneByOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dt := rapid.SampledFrom([]DType{F16, BF16, F32}).Draw(t, "type")
		neg := rapid.Bool().Draw(t, "allow −Inf")
		n := rapid.IntRange(0, 60).Draw(t, "n")
		p := rapid.SliceOfN(rapid.OneOf(rapid.Just(byte(0x7f)), rapid.Just(byte(0x80)), rapid.Just(byte(0xff)), rapid.Byte()), n*dt.Size(), n*dt.Size()).Draw(t, "p")
		x := make([]float32, n)
		if err := Widen(x, p, dt); err != nil {
			t.Fatal(err)
		}
		want := int64(-1)
		for i, v := range x {
			v := float64(v)
			if math.IsNaN(v) || math.IsInf(v, 1) || math.IsInf(v, -1) && !neg {
				want = int64(i)
				break
			}
		}
		if got, _, ok := CheckFinite(p, dt, neg); got != want || ok != (want < 0) {
			t.Fatalf("found %d (ok %t), want %d", got, ok, want)
		}
	})
}

func BenchmarkConvert(b *testing.B) {
	const n = 1 << 14
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(i-n/2) / 64
	}
	q := make([]int8, n)
	for _, dt := range []DType{F32, F16, BF16, I8} {
		p := make([]byte, n*dt.Size())
		if dt != I8 {
			b.Run("narrow/"+dt.String(), func(b *testing.B) {
				b.SetBytes(4 * n)
				for b.Loop() {
					if err := Narrow(p, x, dt); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("finite/"+dt.String(), func(b *testing.B) {
				b.SetBytes(int64(len(p)))
				for b.Loop() {
					if _, _, ok := CheckFinite(p, dt, false); !ok {
						b.Fatal("not finite")
					}
				}
			})
		}
		y := make([]float32, n)
		b.Run("widen/"+dt.String(), func(b *testing.B) {
			b.SetBytes(4 * n)
			for b.Loop() {
				if err := Widen(y, p, dt); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("quantize", func(b *testing.B) {
		b.SetBytes(4 * n)
		for b.Loop() {
			QuantizeI8(q, x)
		}
	})
}
