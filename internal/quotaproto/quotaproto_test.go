package quotaproto

import (
	"math"
	"testing"
	"time"

	"headwater.example/internal/quota"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

func TestTermsComeBack(t *testing.T) {
	t.Parallel()
	for _, want := range []quota.Terms{
		{Share: quota.NoShare},
		{Share: quota.Share{Held: 0, Bytes: 5, Steps: 0}, Limit: quota.Limits{Sessions: 1, Bytes: 9, Steps: 0.5}, Used: quota.Usage{Sessions: 0.5, Bytes: 4, Steps: 3}},
		{Share: quota.Share{Held: -1, Bytes: 5, Steps: -1}, Limit: quota.Limits{Bytes: 9}},
	} {
		if got := ReadTerms(WriteTerms("ann", want)); got != want {
			t.Errorf("%+v is %+v", want, got)
		}
	}
	if got := ReadTerms(nil); got.Share != quota.NoShare {
		t.Errorf("nothing said is %+v", got)
	}
	for _, x := range []float64{math.NaN(), math.Inf(1), -1, 1e300} { // whatever is said bounds, or does not, and is no number that is none
		m := &headwaterv1.TenantAmounts{Sessions: x, StepsPerSecond: x, Bytes: math.MaxUint64}
		got := ReadTerms(&headwaterv1.TenantShare{Limit: m, Used: m, Share: m})
		if got.Share.Held < -1 || got.Share.Bytes < 0 || got.Share.Held > 1<<53 {
			t.Errorf("%v is %+v", x, got)
		}
	}
	e := quota.Exceeded{Tenant: "ann", Kind: quota.Bytes, Limit: 5, Used: 4, RetryAfter: 1500 * time.Millisecond}
	if got := FromStatus(Status(&e)); got == nil || *got != e {
		t.Errorf("%+v is %+v", e, got)
	}
	if Read(nil) != nil {
		t.Error("no limit is one")
	}
}
