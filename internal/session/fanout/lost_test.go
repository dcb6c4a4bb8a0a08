package fanout_test

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// told is what a holder tells of a session of two layers: its groups of each, under an epoch of these members.
func told(name string, counter uint64, members []string, groups ...[]uint32) *headwaterv1.SessionState {
	o := &headwaterv1.Holder{Name: name}
	for l, of := range groups {
		o.Layers = append(o.Layers, &headwaterv1.HeldLayer{Layer: uint32(l), Groups: of})
	}
	return &headwaterv1.SessionState{Epoch: &headwaterv1.Epoch{Counter: counter, Members: members}, Holders: []*headwaterv1.Holder{o}}
}

func TestWhatNobodyHoldsIsLost(t *testing.T) {
	layers := []shard.LayerSpec{shape(6, 3, 8, 8), shape(20, 10, 8, 8)}
	all := [][]uint32{{0, 1, 2}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}
	for _, test := range []struct {
		name   string
		states []*headwaterv1.SessionState
		want   string
	}{
		{"nobody tells", nil, "all:true"},
		{"one has all", []*headwaterv1.SessionState{told("a", 1, nil, all...)}, ""},
		{"two have all", []*headwaterv1.SessionState{told("a", 1, nil, []uint32{0}, all[1]), told("b", 1, nil, []uint32{1, 2}, nil)}, ""},
		{"a part", []*headwaterv1.SessionState{told("a", 1, nil, []uint32{0, 2}, []uint32{0, 1, 2, 3, 4, 5, 6, 7, 8}), told("b", 1, nil, []uint32{2}, nil)}, "0:[2] 1:[0 2]"},
		{"a layer", []*headwaterv1.SessionState{told("a", 1, nil, all[0])}, "1:[255 3]"},
		{"who was left out does not count", []*headwaterv1.SessionState{told("a", 1, []string{"a", "b"}, all...), told("b", 2, []string{"b", "c"}, all[0], []uint32{1})}, "1:[253 3]"},
		{"nor among those that one state tells", []*headwaterv1.SessionState{{
			Epoch:   &headwaterv1.Epoch{Counter: 2, Members: []string{"b"}},
			Holders: []*headwaterv1.Holder{told("a", 0, nil, all...).Holders[0], told("b", 0, nil, all[0]).Holders[0]},
		}}, "1:[255 3]"},
		{"who holds nothing", []*headwaterv1.SessionState{told("a", 1, nil)}, "all:true"},
		{"groups that there are not", []*headwaterv1.SessionState{told("a", 1, nil, []uint32{0, 1, 2, 3, 1 << 31}, all[1], all[1])}, ""},
	} {
		got := ""
		if lost := fanout.Lost(layers, test.states...); lost.GetAll() {
			got = "all:true"
		} else {
			for i, l := range lost.GetLayers() {
				got += fmt.Sprintf("%s%d:%v", map[bool]string{true: " "}[i > 0], l.GetLayer(), l.GetGroups())
			}
		}
		if got != test.want {
			t.Errorf("%s: %q is lost, not %q", test.name, got, test.want)
		}
	}
}

// TestAnErrorOfManyShardsFitsATrailer: Python's gRPC reads 8 KiB of a trailer, of base64. What does not fit is not said in part.
func TestAnErrorOfManyShardsFitsATrailer(t *testing.T) {
	for _, test := range []struct {
		layers, groups int
		said           bool
	}{{64, 512, true}, {256, 64, true}, {80, 8, true}, {1000, 8, false}, {2, 4096, true}} {
		layers := make([]shard.LayerSpec, test.layers)
		for l := range layers {
			layers[l] = shape(test.groups, test.groups, 8, 8)
		}
		held := make([][]uint32, test.layers)
		for l := range held {
			held[l] = []uint32{1}
		}
		lost := fanout.Lost(layers, told("a", 1, nil, held...))
		if (lost != nil) != test.said {
			t.Errorf("%d layers of %d groups: said %v, not %v", test.layers, test.groups, lost != nil, test.said)
		}
		e := session.Errorf(session.Unknown, "session %x is not whole", make([]byte, 16))
		e.Why.Lost = lost
		if n := proto.Size(e.GRPCStatus().Proto()) * 4 / 3; n > 8<<10 {
			t.Errorf("%d layers of %d groups: a trailer of %d bytes", test.layers, test.groups, n)
		}
		if whole := fanout.Lost(layers); !whole.GetAll() {
			t.Errorf("%d layers of %d groups: %v is lost where nobody tells", test.layers, test.groups, whole)
		}
	}
}
