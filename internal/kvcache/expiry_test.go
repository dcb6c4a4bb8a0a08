package kvcache

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"headwater.example/internal/testkit/await"
	"headwater.example/tensor"
)

// numbered is the id of the i-th session.
func numbered(i int) (id SessionID) {
	binary.BigEndian.PutUint32(id[:], uint32(i+1))
	return id
}

// TestOthersGoOnWhileManySessionsExpire: a call that comes when the first of 10,000 sessions expires is not kept until the last has.
func TestOthersGoOnWhileManySessionsExpire(t *testing.T) {
	const n = 10_000
	var now atomic.Int64
	var arrived chan struct{} // nil: nobody is to call yet
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 30), TTL: time.Second, Now: func() time.Time {
		if arrived != nil {
			close(arrived)
			arrived = nil
		}
		return time.Unix(now.Load(), 0)
	}})
	cfg, held := uniform(t, 1, 1, 4, tensor.F32)
	for i := range n {
		create(t, st, numbered(i), cfg, held, nil)
	}
	now.Store(10)
	arrived = make(chan struct{})
	came, seen := arrived, make(chan int, 1)
	go func() {
		<-came
		seen <- st.Cache().Sessions
	}()
	if expired := st.Expire(); expired != n {
		t.Fatalf("%d sessions expired, want %d", expired, n)
	}
	if left := await.One(t, seen, "a call beside the expiry"); left == 0 {
		t.Error("a call on the store waited until all sessions had expired")
	}
	audit(t, st, nil)
}

// TestSessionsExpireInOrderOfUse: whatever their TTLs and when they were found unused, the one that has gone unused the longest
// goes first, a use or a pin keeps it, and an unpinned one may go again.
func TestSessionsExpireInOrderOfUse(t *testing.T) {
	now := time.Unix(0, 0)
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 30), TTL: time.Hour, Now: func() time.Time { return now }})
	defer st.OpenLane(first.Lane)() // else they might also go for being idle
	cfg, held := uniform(t, 1, 1, 4, tensor.F32)
	for i, ttl := range []time.Duration{30, 10, 20, 0, 10} { // in seconds; 0 is the store's
		cfg.TTL = ttl * time.Second
		now = now.Add(time.Second)
		create(t, st, numbered(i), cfg, held, nil)
	}
	pin := func(i int, pinned bool) {
		t.Helper()
		if _, err := st.Pin(numbered(i), pinned); err != nil {
			t.Fatal(err)
		}
	}
	evicts := func(want int) {
		t.Helper()
		st.mu.Lock()
		evicted := st.evictSessionLocked(st.givingLocked(claimant{all: true}, 0, bytesOf))
		st.unlock()
		if evicted != (want >= 0) {
			t.Fatalf("a session was evicted: %v, want session %d", evicted, want)
		}
		if want >= 0 {
			if _, err := st.look(numbered(want)); reasonOf(err) != Unknown {
				t.Fatalf("another session than %d was evicted: %v", want, err)
			}
		}
		audit(t, st, nil)
	}
	evicts(-1)
	now = time.Unix(36, 0) // sessions 0, 1, 2 and 4 have gone unused for their TTLs
	st.mu.Lock()
	frees := st.freesLocked(1, claimant{all: true})
	st.mu.Unlock()
	if !frees {
		t.Fatal("nothing can be freed")
	}
	if _, _, err := st.Layer(numbered(1), 0, 0); err != nil { // a use after it was found unused
		t.Fatal(err)
	}
	pin(2, true)
	evicts(0)
	evicts(4)
	evicts(-1)
	now = time.Unix(47, 0)
	evicts(1)
	now = time.Unix(100, 0)
	evicts(-1)
	pin(2, false)
	evicts(-1)
	now = time.Unix(121, 0)
	evicts(2)
	now = time.Unix(4000, 0)
	evicts(3)
	if len(st.expiry.waiting)+len(st.expiry.due) != 0 {
		t.Error("sessions that have ended wait for their TTL")
	}
}
