package wire_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"headwater/wire"
)

func TestSmoke(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	ctx := make([]float32, 700*3*64)
	for i := range ctx {
		ctx[i] = float32(r.NormFloat64())
	}
	lse := make([]float32, 700*3)
	for _, c := range []wire.Codec{wire.Exact, wire.BF16, wire.F16} {
		f, err := wire.Encode(nil, c, 1, 700, 3, 64, ctx, lse)
		if err != nil {
			t.Fatal(err)
		}
		out := make([]float32, len(ctx))
		h, err := wire.Decode(f, out, lse)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(c, h, len(f), wire.RawBytes(h))
		if c == wire.Exact {
			for i := range out {
				if math.Float32bits(out[i]) != math.Float32bits(ctx[i]) {
					t.Fatal(i)
				}
			}
		}
	}
}
