package kvcache

import (
	"context"
	"errors"
	"testing"
	"time"

	"headwater.example/attention"
	"headwater.example/tensor"
)

// crowd is a store with room for some pages, in which tenants have sessions.
type crowd struct {
	t      *testing.T
	st     *Store
	now    time.Time
	config Config
	held   []HeldLayer
	next   int
}

func newCrowd(t *testing.T, pages int) *crowd {
	c := &crowd{t: t, now: time.Unix(1e9, 0)}
	c.config, c.held = uniform(t, 1, 1, 256, tensor.F32)
	page := int64(c.config.Layers[0].Layout.PageBytes())
	c.st = NewStore(StoreConfig{Budget: NewBudget(int64(pages)*page + page*3/4), TTL: time.Hour, Now: func() time.Time { return c.now }}) // and of their rows and sessions
	t.Cleanup(c.st.Close)
	return c
}

// open opens a session of a tenant.
func (c *crowd) open(tenant string) SessionID {
	c.t.Helper()
	c.next++
	cfg := c.config
	cfg.Tenant = tenant
	create(c.t, c.st, numbered(c.next), cfg, c.held, nil)
	return numbered(c.next)
}

// grow appends pages to a session, a second after what was before, and says whether there was room.
func (c *crowd) grow(id SessionID, pages int) bool {
	c.t.Helper()
	c.now = c.now.Add(time.Second)
	for range pages {
		state, err := c.st.look(id)
		if err != nil {
			c.t.Fatal(err)
		}
		l, layout := state.Layers[0], c.config.Layers[0].Layout
		tokens := make([]uint32, attention.PageLen)
		for i := range tokens {
			tokens[i] = uint32(id[3])<<16 + uint32(l.Length) + uint32(i)
		}
		a := Append{
			Session: id, Epoch: first, Length: l.Length, Hashes: l.Hashes, Chain: l.Chain, ID: l.Length + 1, Positions: attention.PageLen, Encoding: tensor.F32,
			K: make([]byte, attention.PageLen*layout.KRowBytes()), V: make([]byte, attention.PageLen*layout.VRowBytes()), Tokens: tokens,
		}
		_, _, err = c.st.Append(context.Background(), &a, nil)
		var refused *Error
		if errors.As(err, &refused) && refused.Reason == OverBudget {
			return false
		}
		if err != nil {
			c.t.Fatal(err)
		}
		audit(c.t, c.st, nil)
	}
	return true
}

// leave lets a tenant have prefixes of so many pages, and no session.
func (c *crowd) leave(tenant string, pages int) {
	c.t.Helper()
	id := c.open(tenant)
	if !c.grow(id, pages) {
		c.t.Fatalf("%d pages of %s have no room", pages, tenant)
	}
	if err := c.st.end(id, nil); err != nil {
		c.t.Fatal(err)
	}
}

// has checks how many pages tenants have.
func (c *crowd) has(what string, want map[string]int) {
	c.t.Helper()
	audit(c.t, c.st, nil)
	page := int64(c.config.Layers[0].Layout.PageBytes())
	for _, u := range c.st.Usage() {
		if u.Bytes != int64(want[u.Tenant])*page {
			c.t.Errorf("%s: %s has %d pages, want %d", what, u.Tenant, u.Bytes/page, want[u.Tenant])
		}
	}
}

// TestWhoHasMostGivesFirst: where there is no room, prefixes of who has more than an equal part make way, the largest first, whatever was
// used last; what a tenant has up to its part only itself may take, and then who can't make room is refused.
func TestWhoHasMostGivesFirst(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, 24)
	c.leave("small", 3) // the least recently used
	c.leave("large", 13)
	c.leave("middle", 8)
	c.has("full", map[string]int{"small": 3, "large": 13, "middle": 8})
	fresh := c.open("fresh") // of four, who have 6 each
	if !c.grow(fresh, 5) {
		t.Fatal("a tenant below its part finds no room beside those beyond theirs")
	}
	c.has("a newcomer", map[string]int{"small": 3, "large": 8, "middle": 8, "fresh": 5})
	if !c.grow(fresh, 4) {
		t.Fatal("the others are still beyond their parts")
	}
	c.has("it grows", map[string]int{"small": 3, "large": 6, "middle": 6, "fresh": 9})
	if c.grow(fresh, 1) {
		t.Error("a tenant beyond its part evicts what others have within theirs")
	}
	c.has("it is refused", map[string]int{"small": 3, "large": 6, "middle": 6, "fresh": 9})
	large := c.open("large")
	if !c.grow(large, 2) {
		t.Error("a tenant can't take the place of its own prefixes")
	}
	c.has("its own", map[string]int{"small": 3, "large": 6, "middle": 6, "fresh": 9})
	if !c.st.ReclaimFor(int64(c.config.Layers[0].Layout.PageBytes()), "middle") {
		t.Error("a tenant's job can't take the place of its own prefixes")
	}
	c.has("its job", map[string]int{"small": 3, "large": 6, "middle": 5, "fresh": 9})
	if !c.st.Reclaim(10 * int64(c.config.Layers[0].Layout.PageBytes())) {
		t.Error("what is no tenant's finds no room")
	}
	c.has("messages", map[string]int{"small": 1, "large": 2, "middle": 2, "fresh": 9})
}

// TestIdleSessionsOfWhoHasMostMakeRoom: the same with sessions that nobody has used for a while.
func TestIdleSessionsOfWhoHasMostMakeRoom(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, 12)
	small, large, larger := c.open("small"), c.open("large"), c.open("large")
	if !c.grow(small, 3) || !c.grow(large, 4) || !c.grow(larger, 5) {
		t.Fatal("no room for what fits")
	}
	c.now = c.now.Add(2 * idleFor)
	fresh := c.open("fresh")
	held := func(want ...bool) {
		t.Helper()
		audit(t, c.st, nil)
		for i, id := range []SessionID{small, large, larger} {
			if _, err := c.st.look(id); (err == nil) != want[i] {
				t.Errorf("session %d: %v", i, err)
			}
		}
	}
	if !c.grow(fresh, 1) {
		t.Fatal("no room is made of idle sessions")
	}
	held(true, false, true) // the least recently used of who has most
	if !c.grow(fresh, 4) {
		t.Fatal("no room is made of idle sessions")
	}
	held(true, false, false)
	if c.grow(fresh, 8) {
		t.Error("an idle session of who has no more than its part makes room")
	}
	held(true, false, false)
}
