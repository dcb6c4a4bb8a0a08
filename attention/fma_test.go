package attention

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"headwater.example/attention/internal/hardware"
)

// exactFMA is the oracle that every machine has: exact arithmetic, rounded once by big.Float.
func exactFMA(a, b, c float32) float32 {
	x, y, z := float64(a), float64(b), float64(c)
	if s := x*y + z; s == 0 || s-s != 0 {
		// No rounding is involved in zeros, infinities and NaN; finite binary32 do not overflow binary64.
		return float32(s)
	}
	const exact = 2000 // bits: more than from 2²⁵⁶ to 2⁻²⁹⁸
	p := new(big.Float).SetPrec(exact).Mul(big.NewFloat(x), big.NewFloat(y))
	f, _ := p.Add(p, new(big.Float).SetFloat64(z)).Float32()
	return f
}

func sameBits(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

func checkFMA(t *testing.T, a, b, c float32) {
	t.Helper()
	want := exactFMA(a, b, c)
	if got := fma32(a, b, c); !sameBits(got, want) {
		t.Fatalf("fma32(%x, %x, %x) = %x, want %x", a, b, c, got, want)
	}
	if hardware.Supported() {
		if got := hardware.FMA32(a, b, c); !sameBits(got, want) {
			t.Fatalf("the oracles disagree on fma(%x, %x, %x): %x and %x", a, b, c, got, want)
		}
	}
	// The kernel's chains hold the same operation in line.
	one, four := []float32{c}, []float32{c}
	chain(one, []float32{b}, a)
	if !sameBits(one[0], want) {
		t.Fatalf("chain(%x, %x, %x) = %x, want %x", a, b, c, one[0], want)
	}
	x := []float32{b}
	chain4(four, x, x, x, x, a, a, a, a)
	for range 4 {
		c = exactFMA(a, b, c)
	}
	if !sameBits(four[0], c) {
		t.Fatalf("chain4(%x, %x) = %x, want %x", a, b, four[0], c)
	}
}

// TestFMADoubleRounding makes sums that lie so near to a midpoint of two binary32 that binary64 can not tell.
func TestFMADoubleRounding(t *testing.T) {
	skipIfRaced(t)
	twice := 0
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		// c has 24 bits and a·b is half its last place plus or minus a little: (1 + 2⁻ⁱ)(1 ± 2⁻ʲ)·2ᵏ spans many bits.
		c := float32(1<<23|rnd.IntN(1<<23)) * 2
		i, j := 1+rnd.IntN(22), 1+rnd.IntN(23)
		a := float32(1) + float32(math.Ldexp(1, -i))
		b := float32(1) - float32(math.Ldexp(1, -j))
		tiny := float32(math.Ldexp(1, -rnd.IntN(40)))
		if rnd.IntN(2) == 0 {
			a, b = 1+0x1p-23, 1-0x1p-23 // 1 − 2⁻⁴⁶
		}
		for _, e := range []int{0, -100, -149 - 24, 80, 103} {
			s := float32(math.Ldexp(1, e))
			for _, sign := range []float32{1, -1} {
				checkFMA(t, sign*a, b*s, c*s)
				checkFMA(t, a, sign*b*s*tiny, c*s)
				if got := float32(math.FMA(float64(a), float64(sign*b*s), float64(c*s))); !sameBits(got, exactFMA(a, sign*b*s, c*s)) {
					twice++
				}
			}
		}
	}
	if twice < 1000 {
		t.Errorf("only %d cases would have caught a second rounding", twice)
	}
}

// TestFMASubnormal covers results that have fewer bits than 24, where the midpoints lie elsewhere.
func TestFMASubnormal(t *testing.T) {
	skipIfRaced(t)
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 50000 {
		c := math.Float32frombits(rnd.Uint32N(1<<24) | rnd.Uint32()&(1<<31))
		a := math.Float32frombits(rnd.Uint32()&(1<<31|1<<23-1) | uint32(127-rnd.IntN(90))<<23)
		b := math.Float32frombits(rnd.Uint32()&(1<<31|1<<23-1) | uint32(1+rnd.IntN(60))<<23)
		checkFMA(t, a, b, c)
		checkFMA(t, a, b, 0)
		checkFMA(t, a, math.Float32frombits(rnd.Uint32N(1<<23)), c)
		// Half of the least subnormal, exactly and nearly.
		checkFMA(t, 0x1p-75, 0x1p-75, c)
		checkFMA(t, 0x1p-75+0x1p-98, 0x1p-75, c)
		checkFMA(t, 0x1p-75-0x1p-99, -0x1p-75, c)
	}
}

func TestFMASpecial(t *testing.T) {
	inf := float32(math.Inf(1))
	values := []float32{
		0, float32(math.Copysign(0, -1)), 1, -1, math.SmallestNonzeroFloat32, -math.SmallestNonzeroFloat32, 0x1p-126, 0x1.fffffep-127,
		0x1p-75, 0x1p-74, math.MaxFloat32, -math.MaxFloat32, 0x1p127, 0x1p103, 0x1p104, -0x1p103, 0x1p64, 1 + 0x1p-23, 1 - 0x1p-24, inf, -inf, float32(math.NaN()),
	}
	for _, a := range values {
		for _, b := range values {
			for _, c := range values {
				checkFMA(t, a, b, c)
			}
		}
	}
}

// TestFMARandomBits compares with the hardware alone, which is fast enough for many.
func TestFMARandomBits(t *testing.T) {
	skipIfRaced(t)
	if !hardware.Supported() {
		t.Skip("no fused multiply-add in this machine")
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 2_000_000 {
		u := rnd.Uint64()
		a, b := math.Float32frombits(uint32(u)), math.Float32frombits(uint32(u>>32))
		c := math.Float32frombits(rnd.Uint32())
		if rnd.IntN(2) == 0 {
			// Of the size of the product, give or take 30 powers of two.
			c = float32(float64(a) * float64(b) * math.Ldexp(1+rnd.Float64(), rnd.IntN(60)-30))
		}
		if got, want := fma32(a, b, c), hardware.FMA32(a, b, c); !sameBits(got, want) {
			t.Fatalf("fma32(%x, %x, %x) = %x, want %x", a, b, c, got, want)
		}
	}
}

func FuzzFMA(f *testing.F) {
	f.Add(uint32(0x3f800001), uint32(0x3f7fffff), uint32(0x4b800000))
	f.Add(uint32(1), uint32(0x3f000000), uint32(1))
	f.Fuzz(func(t *testing.T, a, b, c uint32) {
		checkFMA(t, math.Float32frombits(a), math.Float32frombits(b), math.Float32frombits(c))
	})
}
