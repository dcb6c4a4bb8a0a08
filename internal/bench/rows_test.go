package bench

import (
	"math"
	"testing"
	"time"

	"headwater.example/tensor"
)

// What is lost is a half of the last place of each type's, and less than that is told of nothing.
func TestMeasureRows(t *testing.T) {
	rows, err := JobRows("../../test/data/smollm2/attention.safetensors")
	if err != nil || len(rows) != 4 || rows[0].Dim != 64 || len(rows[0].Values) != 242*3*64 {
		t.Fatalf("%d tensors: %v", len(rows), err)
	}
	const elements = 4 * 242 * 3 * 64
	tick := time.Unix(0, 0)
	now := func() time.Time {
		tick = tick.Add(time.Second)
		return tick
	}
	for storage, want := range map[tensor.DType]struct {
		stored int64
		most   float64
	}{
		tensor.F16:  {2 * elements, math.Ldexp(1, -11)},
		tensor.BF16: {2 * elements, math.Ldexp(1, -8)},
		tensor.I8:   {elements + 4*elements/64, 0.5/127 + 1e-6},
	} {
		m, err := MeasureRows(storage, rows, 3, now)
		if err != nil {
			t.Fatal(err)
		}
		if m.Bytes != 4*elements || m.Stored != want.stored || m.Took != time.Second || m.MaxError > want.most || m.MaxError < want.most/2 {
			t.Errorf("%s: %+v, want %d bytes and an error of at most %g", storage, m, want.stored, want.most)
		}
	}
	if _, err := MeasureRows(tensor.F16, []Rows{{1, []float32{1e6}}}, 1, now); err == nil {
		t.Error("1e6 was narrowed to f16")
	}
}
