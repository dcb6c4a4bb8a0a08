package kvcache

import (
	"context"
	"testing"
	"time"

	"headwater.example/tensor"
)

// TestIdleSessionsMakeRoom: an append that finds no room has it from sessions that no open lane drives and that nobody has used for
// a minute, the least recently used first, long before their TTL. It never takes one that a lane drives, is pinned or was used.
func TestIdleSessionsMakeRoom(t *testing.T) {
	now := time.Unix(0, 0)
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 20), TTL: time.Hour, Now: func() time.Time { return now }})
	cfg, held := uniform(t, 1, 1, 4, tensor.F32)
	lane := func(i int) LaneID { return LaneID{byte(i + 1)} }
	for i := range 5 {
		now = now.Add(time.Second)
		if _, err := st.Create(CreateRequest{Session: numbered(i), Epoch: Epoch{Counter: 1, Lane: lane(i)}, Config: cfg, Held: held}); err != nil {
			t.Fatal(err)
		}
	}
	held0 := st.OpenLane(lane(0))
	again0 := st.OpenLane(lane(0))
	held3 := st.OpenLane(lane(3))
	defer held3()
	if _, err := st.Pin(numbered(1), true); err != nil {
		t.Fatal(err)
	}
	evicts := func(want int) {
		t.Helper()
		st.mu.Lock()
		frees := st.freesLocked(1, claimant{all: true})
		evicted := st.evictSessionLocked(st.givingLocked(claimant{all: true}, 0, bytesOf))
		st.unlock()
		if evicted != (want >= 0) || frees != evicted {
			t.Fatalf("a session was evicted: %v, and said to be there: %v; want session %d", evicted, frees, want)
		}
		if want >= 0 {
			if _, err := st.look(numbered(want)); reasonOf(err) != Unknown {
				t.Fatalf("another session than %d was evicted: %v", want, err)
			}
		}
		audit(t, st, nil)
	}
	now = time.Unix(62, 0)
	evicts(-1) // 0 is driven, 1 is pinned, the others were used within a minute
	now = time.Unix(65, 0)
	evicts(2)
	evicts(4)
	evicts(-1)
	if len(st.idle.waiting)+len(st.idle.due) != 0 {
		t.Errorf("%d sessions are looked at again and again", len(st.idle.waiting)+len(st.idle.due))
	}
	held0()
	evicts(-1) // another stream of the lane is open
	again0()
	evicts(0)
	// Taken by a client that has no lane open, session 3 waits for its minute anew.
	if _, err := st.Take(context.Background(), numbered(3), Epoch{Counter: 2, Lane: lane(9)}, nil, 0, false); err != nil {
		t.Fatal(err)
	}
	evicts(-1)
	now = time.Unix(125, 0)
	evicts(3)
	if _, err := st.Pin(numbered(1), false); err != nil {
		t.Fatal(err)
	}
	evicts(-1)
	now = time.Unix(185, 0)
	evicts(1)
	if n := len(st.idle.waiting) + len(st.idle.due) + len(st.expiry.waiting) + len(st.expiry.due) + len(st.lanes[lane(3)].parked); n != 0 {
		t.Errorf("%d places of sessions that have ended are kept", n)
	}
}
