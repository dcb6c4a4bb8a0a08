package workers

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"headwater.example/attention"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// TestArithmeticSuitsEachHolder: tiles only where each of them says that it has a matrix unit.
func TestArithmeticSuitsEachHolder(t *testing.T) {
	yes, no := proto.Bool(true), proto.Bool(false)
	for _, c := range []struct {
		name string
		has  []*bool
		want attention.Arithmetic
	}{
		{"nobody", nil, attention.Chain},
		{"one that has one", []*bool{yes}, attention.Tiles},
		{"all", []*bool{yes, yes, yes}, attention.Tiles},
		{"none", []*bool{no, no}, attention.Chain},
		{"the last has none", []*bool{yes, yes, no}, attention.Chain},
		{"the first has none", []*bool{no, yes, yes}, attention.Chain},
		{"one is older and does not say", []*bool{yes, nil, yes}, attention.Chain},
	} {
		var holders []Description
		for _, has := range c.has {
			// What is for people does not count.
			holders = append(holders, Description{Said: &headwaterv1.DescribeResponse{Kernel: "amx", ProcessorFeatures: []string{"amx_tile", "amx_bf16"}, MatrixUnit: has}})
		}
		if got := Arithmetic(holders); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
