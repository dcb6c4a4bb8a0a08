package sessions

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestATenantFillsItsPartOfTheTokens: alone it has all; beside others that wait, an equal part of them; and what it has waiting when another
// one comes takes nothing of that one's part.
func TestATenantFillsItsPartOfTheTokens(t *testing.T) {
	t.Parallel()
	var a standings
	enter := func(tenant string) *standing {
		s, err := a.enter("w", tenant)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ann, bob, cleo := enter("ann"), enter("bob"), enter("cleo")
	const piece = maxQueuedTokens / 64
	fill := func(s *standing) (n int64) {
		for ; ; n++ {
			if a.queue(s, piece) {
				a.dequeue(s, piece)
				return n
			}
		}
	}
	if n := fill(ann); n != 64 {
		t.Errorf("alone, %d of 64 pieces may wait", n)
	}
	if n := fill(bob); n != 32 {
		t.Errorf("a second tenant may have %d pieces waiting beside one that has all", n)
	}
	if n := fill(cleo); n != 21 {
		t.Errorf("a third one may have %d", n)
	}
	for _, s := range []*standing{ann, bob} {
		if n := fill(s); n != 0 {
			t.Errorf("%s may have %d more, and has more than its part", s.tenant, n)
		}
	}
	for s, n := range map[*standing]int{ann: 64, bob: 32, cleo: 21} {
		for range n {
			a.dequeue(s, piece)
		}
	}
	if a.waiting.Load() != 0 {
		t.Errorf("of %d tenants tokens wait at the end", a.waiting.Load())
	}
	if a.queue(ann, 2*maxQueuedTokens) {
		t.Error("one large step alone is refused")
	}
	for _, s := range []*standing{ann, bob, cleo} {
		a.leave(s)
	}
	if len(a.of) != 0 || a.count() != 0 {
		t.Errorf("%d tenants are remembered, with %d lanes", len(a.of), a.count())
	}
}

// TestATenantLeavesLanesToOthers: it has half of them at most; who is no tenant, as where there are none, may have all.
func TestATenantLeavesLanesToOthers(t *testing.T) {
	t.Parallel()
	open := func(a *standings, tenant string) (n int) {
		for ; ; n++ {
			if _, err := a.enter("w", tenant); status.Code(err) == codes.ResourceExhausted {
				return n
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	var a, alone standings
	if n := open(&a, "ann"); n != tenantLanes {
		t.Errorf("one tenant opens %d lanes", n)
	}
	if n := open(&a, "bob"); n != maxLanes-tenantLanes {
		t.Errorf("another one then opens %d", n)
	}
	if n := open(&alone, ""); n != maxLanes {
		t.Errorf("where there are no tenants, %d are opened", n)
	}
}
