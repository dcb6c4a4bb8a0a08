package sessions

import (
	"math"
	"testing"
	"time"

	"headwater.example/internal/membership"
	"headwater.example/internal/quota"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// TestQuotasGoByWhatWorkersSay: of three workers two answer; what the third has said last is not given away. Rates are those since the
// answer before, and a worker that was started anew is not taken for one that has done less than nothing.
func TestQuotasGoByWhatWorkersSay(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	has := func(bytes uint64, steps float64) *headwaterv1.ShareQuotasResponse {
		return &headwaterv1.ShareQuotasResponse{Tenants: []*headwaterv1.TenantUsage{{
			Tenant: "ann", Held: 2, Sessions: 2.0 / 3, Bytes: bytes, Steps: steps, Refused: &headwaterv1.TenantAmounts{Sessions: 1},
		}}}
	}
	q := &quotas{last: map[string]*reported{}}
	for _, name := range []string{"a", "b", "c"} {
		first := report(nil, [16]byte{1}, now, has(100, 1000))
		if u := first.usage["ann"]; u.Steps != 0 || u.Grown != 0 {
			t.Errorf("the first answer is taken for %+v", u)
		}
		q.last[name] = report(first, [16]byte{1}, now.Add(2*time.Second), has(150, 1020))
	}
	if u := q.last["a"].usage["ann"]; u.Steps != 10 || u.Grown != 50 {
		t.Errorf("after two seconds it is %+v", u)
	}
	if u := report(q.last["a"], [16]byte{2}, now.Add(3*time.Second), has(10, 5)).usage["ann"]; u.Steps != 0 || u.Grown != 0 {
		t.Errorf("after a restart it is %+v", u)
	}
	l := quota.Limits{Sessions: 4, Bytes: 1050, Steps: 60}
	terms, states := q.terms(map[string]quota.Limits{"ann": l}, quota.Limits{Sessions: 7}, []membership.Member{{Name: "a"}, {Name: "b"}})
	of := terms["ann"]
	if len(of) != 2 || len(terms) != 1 {
		t.Fatalf("terms of %d tenants, for %d workers", len(terms), len(of))
	}
	for _, one := range of {
		if one.Share.Held != 4 || one.Share.Bytes != 150+300 || math.Abs(one.Share.Steps-30) > 1e-9 || one.Limit != l {
			t.Errorf("a worker is told %+v", one)
		}
	}
	if len(states) != 1 || math.Abs(states[0].Used.Sessions-2) > 1e-9 || states[0].Used.Bytes != 450 || states[0].Refused[quota.Sessions] != 3 {
		t.Errorf("the tenant stands at %+v", states)
	}
	q.forget([]membership.Member{{Name: "a"}})
	if len(q.last) != 1 {
		t.Errorf("%d workers are remembered", len(q.last))
	}
}
