package sessions

import (
	"testing"
	"time"

	"headwater.example/coordinator/workers"
	"headwater.example/internal/membership"
	"headwater.example/internal/placement"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// TestGivenWeightsAreKept: of two workers that are slow alike, the one whose weight was given to it keeps it.
func TestGivenWeightsAreKept(t *testing.T) {
	r := New(Config{View: membership.Static(nil)})
	defer r.Close()
	now := time.Unix(1, 0)
	for range 20 {
		now = now.Add(placement.SpeedEvery)
		r.speeds.Look(now, []placement.Measured{{Worker: "given", Beside: 3, Compared: 100}, {Worker: "slow", Beside: 3, Compared: 100}, {Worker: "fast", Beside: 1, Compared: 100}})
	}
	of := []workers.Description{
		{Member: membership.Member{Name: "given"}, Said: &headwaterv1.DescribeResponse{Weight: 3, WeightGiven: true}},
		{Member: membership.Member{Name: "slow"}, Said: &headwaterv1.DescribeResponse{Weight: 1}},
		{Member: membership.Member{Name: "fast"}, Said: &headwaterv1.DescribeResponse{Weight: 1}},
	}
	rooms := roomsOf(of)
	r.weigh(rooms, of)
	if given, slow, fast := rooms[0].Weight, rooms[1].Weight, rooms[2].Weight; given != 3*fast || 2*slow != fast {
		t.Errorf("weights %d given, %d slow, %d fast", given, slow, fast)
	}
	if r.WeightShare("slow") != 0.5 || r.WeightShare("fast") != 1 || r.WeightShare("who is not known") != 1 {
		t.Errorf("shares %v, %v", r.WeightShare("slow"), r.WeightShare("fast"))
	}
	// What a new session gets is not what a rebalance, or a copy, goes by.
	if again := roomsOf(of); again[1].Weight != 1 {
		t.Errorf("a copy goes by weight %d", again[1].Weight)
	}
}
