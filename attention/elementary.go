package attention

import "math"

// Constants of exp, tanh and log. Each is exactly the binary32 that its hexadecimal form says; the coefficients are
// minimax polynomials (Remez, relative error), rounded to binary32. docs/numerics.md states them with the order of operations.
const (
	// exp: n = rne(x·log2e), by adding and subtracting magic = 1.5·2²³.
	log2e = 0x1.715476p+0
	magic = 0x1.8p+23
	// ln 2 in two parts; the first has 15 bits, so that its product with n is exact.
	ln2Hi = 0x1.62e4p-1
	ln2Lo = 0x1.7f7d1cp-20
	// expMin is the least x whose exponential is at least 2⁻¹²⁶.
	expMin = -0x1.5d589ep+6
	exp2   = 0x1.fffffcp-2
	exp3   = 0x1.55548cp-3
	exp4   = 0x1.555858p-5
	exp5   = 0x1.123de0p-7
	exp6   = 0x1.6ac752p-10

	// tanh: below tanhSmall a polynomial in x², else by exp.
	tanhSmall = 0x1.4p-1
	tanh3     = -0x1.555532p-2
	tanh5     = 0x1.1106f6p-3
	tanh7     = -0x1.b835a4p-5
	tanh9     = 0x1.51f8cep-6
	tanh11    = -0x1.750ce4p-8

	// log: x = 2ᵏ·f, f in [√½, √2); sqrtHalf are the bits of the binary32 next above √½.
	sqrtHalf = 0x3f3504f4
	log3     = 0x1.555554p-2
	log4     = -0x1.000226p-2
	log5     = 0x1.99a008p-3
	log6     = -0x1.547246p-3
	log7     = 0x1.22da1cp-3
	log8     = -0x1.0d8538p-3
	log9     = 0x1.055b78p-3
	log10    = -0x1.38b5dcp-4
)

// exp32 returns the exponential of x ≤ 0: exactly 1 at 0, +0 below expMin, NaN for NaN.
func exp32(x float32) float32 {
	if x < expMin {
		return 0
	}
	t := fma32(x, log2e, magic) // rne by the addition itself: ties to even
	n := t - magic
	r := fma32(n, -ln2Hi, x)
	r = fma32(n, -ln2Lo, r)
	p := fma32(exp6, r, exp5)
	p = fma32(p, r, exp4)
	p = fma32(p, r, exp3)
	p = fma32(p, r, exp2)
	p = fma32(p, r, 1)
	p = fma32(p, r, 1)
	// The low bits of t are n, and magic's own are shifted out: 2ⁿ.
	return float32(p * math.Float32frombits((math.Float32bits(t)+127)<<23))
}

// tanh32 returns the hyperbolic tangent of x: ±1 at the infinities, x at ±0, NaN for NaN.
func tanh32(x float32) float32 {
	sign := math.Float32bits(x) & (1 << 31)
	a := math.Float32frombits(math.Float32bits(x) &^ (1 << 31))
	var y float32
	if a < tanhSmall {
		z := float32(a * a)
		p := fma32(tanh11, z, tanh9)
		p = fma32(p, z, tanh7)
		p = fma32(p, z, tanh5)
		p = fma32(p, z, tanh3)
		y = fma32(float32(a*z), p, a)
	} else {
		e := exp32(float32(-2 * a))
		y = 1 - float32(float32(e+e)/float32(1+e))
	}
	return math.Float32frombits(math.Float32bits(y) | sign)
}

// log32 returns the natural logarithm of a finite x ≥ 2⁻¹²⁶: exactly +0 at 1.
func log32(x float32) float32 {
	u := math.Float32bits(x)
	k := int32(u-sqrtHalf) >> 23
	r := math.Float32frombits(u-uint32(k)<<23) - 1
	n := float32(k)
	z := float32(r * r)
	p := fma32(log10, r, log9)
	p = fma32(p, r, log8)
	p = fma32(p, r, log7)
	p = fma32(p, r, log6)
	p = fma32(p, r, log5)
	p = fma32(p, r, log4)
	p = fma32(p, r, log3)
	y := float32(float32(r*z) * p)
	y = fma32(n, ln2Lo, y)
	y = fma32(-0.5, z, y)
	return fma32(n, ln2Hi, float32(r+y))
}
