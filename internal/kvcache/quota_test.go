package kvcache

import (
	"context"
	"errors"
	"testing"

	"headwater.example/attention"
	"headwater.example/internal/quota"
	"headwater.example/tensor"
)

// TestAQuotaBoundsATenant: of sessions and of bytes, with the tenant's parts and nobody else's; its own prefixes make way for it, and what
// others make for it is counted and not refused.
func TestAQuotaBoundsATenant(t *testing.T) {
	t.Parallel()
	book := quota.NewBook(nil)
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 30), Quotas: book})
	defer st.Close()
	cfg, held := uniform(t, 1, 1, 1, tensor.F32)
	page := int64(cfg.Layers[0].Layout.PageBytes())
	next := byte(0)
	create := func(tenant string, metered bool, holders uint32) (SessionID, error) {
		next++
		config := cfg
		config.Tenant = tenant
		id := SessionID{next}
		_, err := st.Create(CreateRequest{Session: id, Epoch: Epoch{Counter: 1, Holders: holders}, Config: config, Held: held, Metered: metered})
		return id, err
	}
	lengths := map[SessionID]int{}
	hashes := map[SessionID][]uint64{}
	chains := map[SessionID]uint64{}
	fill := func(id SessionID, pages int, metered bool) error {
		n := pages * attention.PageLen
		tokens := make([]uint32, n)
		for i := range tokens {
			tokens[i] = uint32(id[0])<<16 + uint32(lengths[id]+i)
		}
		before := hashes[id]
		if before == nil {
			before = []uint64{0}
		}
		l := cfg.Layers[0].Layout
		a := Append{
			Session: id, Epoch: Epoch{Counter: 1}, Length: uint64(lengths[id]), Hashes: before, Chain: chains[id], ID: uint64(id[0])<<32 + uint64(lengths[id]) + 1, Positions: n,
			Encoding: tensor.F32, K: make([]byte, 4*n*l.HeadDim()), V: make([]byte, 4*n*l.VDim()), Tokens: tokens, Metered: metered,
		}
		_, after, err := st.Append(context.Background(), &a, nil)
		if err == nil {
			chains[id] = NextChain(a.Chain, a.ID, a.Length)
			lengths[id] += n
			hashes[id] = after
		}
		return err
	}
	over := func(what string, kind quota.Kind, err error) {
		t.Helper()
		var refused *Error
		if !errors.As(err, &refused) || refused.Reason != OverBudget || refused.Quota == nil || refused.Quota.Kind != kind || refused.Quota.Tenant != "ann" {
			t.Fatalf("%s: %v", what, err)
		}
		audit(t, st, nil)
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		audit(t, st, nil)
	}
	book.Tell(map[string]quota.Terms{"ann": {Share: quota.Share{Held: 2, Bytes: 3 * page, Steps: -1}, Limit: quota.Limits{Sessions: 2, Bytes: 3 * page}}}, quota.Terms{Share: quota.NoShare})
	first, err := create("ann", true, 2)
	must("a first session", err)
	second, err := create("ann/evening", true, 2)
	must("a second one", err)
	_, err = create("ann/night", true, 2)
	over("a third one", quota.Sessions, err)
	_, err = st.Fork(context.Background(), ForkRequest{Session: first, Epoch: Epoch{Counter: 1}, Child: SessionID{99}, ChildEpoch: Epoch{Counter: 1}, Expect: []LayerState{{Hashes: []uint64{0}}}, Position: -1, Metered: true})
	over("a fork", quota.Sessions, err)
	bob, err := create("bob", true, 1)
	must("another tenant's", err)
	must("two pages", fill(first, 2, true))
	must("a third page", fill(second, 1, true))
	over("a fourth page", quota.Bytes, fill(second, 1, true))
	must("another tenant's pages", fill(bob, 10, true))
	must("a page of a copy", fill(second, 1, false))
	usage := map[string]quota.Usage{}
	for _, u := range st.Usage() {
		usage[u.Tenant] = u.Usage
	}
	if u := usage["ann"]; u.Held != 2 || u.Sessions != 1 || u.Bytes != 4*page {
		t.Errorf("ann has %+v", u)
	}
	if u := usage["bob"]; u.Held != 1 || u.Sessions != 1 || u.Bytes != 10*page {
		t.Errorf("bob has %+v", u)
	}
	// What is left of a session are prefixes, which make way for their tenant.
	must("a session ends", st.Drop(context.Background(), first, nil, 0, 0))
	must("its end gives a session", func() error { _, err := create("ann", true, 2); return err }())
	must("a page in the place of prefixes", fill(second, 1, true))
	over("more than prefixes leave", quota.Bytes, fill(second, 1, true))
}
