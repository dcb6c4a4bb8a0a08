package attention

import (
	"math"
	"os"
	"testing"
)

// ulps returns the distance of got from want in units of the last place of the binary32 nearest to want.
func ulps(got float32, want float64) float64 {
	w := math.Abs(want)
	_, e := math.Frexp(w)
	return math.Abs(float64(got)-want) / math.Ldexp(1, max(e-24, -149))
}

// step is how many binary32 lie between two that are tried; 1 tries all of them.
func step(usual uint32) uint32 {
	if os.Getenv("HEADWATER_EXHAUSTIVE") != "" {
		return 1
	}
	return usual
}

func worst(t *testing.T, from, to, step uint32, f func(float32) float32, truth func(float64) float64) (float64, float32) {
	t.Helper()
	var most float64
	var at float32
	for u := uint64(from); u <= uint64(to); u += uint64(step) {
		x := math.Float32frombits(uint32(u))
		if e := ulps(f(x), truth(float64(x))); !(e <= most) {
			most, at = e, x
		}
	}
	return most, at
}

func TestExpError(t *testing.T) {
	skipIfRaced(t)
	from, to := math.Float32bits(float32(math.Copysign(0, -1))), math.Float32bits(expMin)
	most, at := worst(t, from, to, step(997), exp32, math.Exp)
	t.Logf("exp: %.4f ULP at %g (%x)", most, at, at)
	if !(most <= 0.99) {
		t.Errorf("exp32 is off by %.4f ULP at %g", most, at)
	}
	for _, x := range []float32{0, float32(math.Copysign(0, -1)), -1e-45, -1e-30} {
		if got := exp32(x); got != 1 {
			t.Errorf("exp32(%g) = %g, want 1", x, got)
		}
	}
	for _, x := range []float32{math.Nextafter32(expMin, -100), -88, -1000, -math.MaxFloat32, float32(math.Inf(-1))} {
		if got := exp32(x); math.Float32bits(got) != 0 {
			t.Errorf("exp32(%g) = %g, want +0", x, got)
		}
	}
	if got := exp32(expMin); got < 0x1p-126 {
		t.Errorf("exp32(%g) = %g, below the normal numbers", float64(expMin), got)
	}
	if math.Exp(expMin) < 0x1p-126 || math.Exp(float64(math.Nextafter32(expMin, -100))) >= 0x1p-126 {
		t.Error("expMin is not the first whose exponential is normal")
	}
	if got := exp32(float32(math.NaN())); got == got {
		t.Errorf("exp32(NaN) = %g", got)
	}
}

func TestTanhError(t *testing.T) {
	skipIfRaced(t)
	most, at := worst(t, 1, math.Float32bits(float32(math.Inf(1))), step(1999), tanh32, math.Tanh)
	t.Logf("tanh: %.4f ULP at %g (%x)", most, at, at)
	if !(most <= 1.6) {
		t.Errorf("tanh32 is off by %.4f ULP at %g", most, at)
	}
	for _, x := range []float32{0, 1e-40, 0.1, 0.7, 3, 100, float32(math.Inf(1))} {
		if got, want := tanh32(-x), -tanh32(x); math.Float32bits(got) != math.Float32bits(want) {
			t.Errorf("tanh32(%g) = %g, want %g", -x, got, want)
		}
	}
	if got := tanh32(float32(math.Inf(1))); got != 1 {
		t.Errorf("tanh32(+Inf) = %g", got)
	}
	if got := tanh32(float32(math.NaN())); got == got {
		t.Errorf("tanh32(NaN) = %g", got)
	}
}

func TestLogError(t *testing.T) {
	skipIfRaced(t)
	most, at := worst(t, 0x00800000, 0x7f7fffff, step(1999), log32, math.Log)
	t.Logf("log: %.4f ULP at %g (%x)", most, at, at)
	near, nearAt := worst(t, math.Float32bits(1), math.Float32bits(2), step(11), log32, math.Log)
	t.Logf("log in [1, 2]: %.4f ULP at %g (%x)", near, nearAt, nearAt)
	if !(max(most, near) <= 1.1) {
		t.Errorf("log32 is off by %.4f ULP at %g", most, at)
	}
	if got := log32(1); math.Float32bits(got) != 0 {
		t.Errorf("log32(1) = %g, want +0", got)
	}
}
