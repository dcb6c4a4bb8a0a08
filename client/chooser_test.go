package client

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Auto is never lossy, whatever is measured, and settles on the codec that takes less time for an element.
func TestAutoChoosesTheFasterExactCodec(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cost := map[headwaterv1.StepCodec]int{
			headwaterv1.StepCodec_STEP_CODEC_RAW:   rapid.IntRange(1, 1000).Draw(t, "raw"),
			headwaterv1.StepCodec_STEP_CODEC_EXACT: rapid.IntRange(1001, 2000).Draw(t, "exact"),
		}
		faster := headwaterv1.StepCodec_STEP_CODEC_RAW
		if rapid.Bool().Draw(t, "exact is faster") {
			faster = headwaterv1.StepCodec_STEP_CODEC_EXACT
			cost[headwaterv1.StepCodec_STEP_CODEC_RAW] += 2000
		}
		var c chooser
		const steps, settled = 1000, 2 * probeEvery
		chosen := 0
		for i := range steps {
			codec := c.codec()
			if codec != headwaterv1.StepCodec_STEP_CODEC_RAW && codec != headwaterv1.StepCodec_STEP_CODEC_EXACT {
				t.Fatalf("step %d is to come back as %v", i, codec)
			}
			elements := rapid.IntRange(1, 100).Draw(t, "elements")
			c.measured(codec, time.Duration(cost[codec]*elements), elements)
			if i >= settled && codec == faster {
				chosen++
			}
		}
		if least := (steps - settled) * (probeEvery - 2) / probeEvery; chosen < least {
			t.Fatalf("%v is chosen in %d of %d steps, want %d", faster, chosen, steps-settled, least)
		}
	})
}
