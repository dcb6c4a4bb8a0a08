package jobs

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/quota"
	"headwater.example/internal/quotaproto"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// TestATenantHasSoManyJobs: what has ended counts no more, another tenant's never, and a key that is known finds its job.
func TestATenantHasSoManyJobs(t *testing.T) {
	t.Parallel()
	jobs := newTable()
	submit := func(tenant, key string) (claim, error) {
		return jobs.claim(&headwaterv1.Job{Id: key, Tenant: tenant, Key: key, State: headwaterv1.JobState_JOB_STATE_UPLOADING}, &headwaterv1.SubmitBegin{}, 2)
	}
	first, err := submit("ann", "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := submit("ann", "b"); err != nil {
		t.Fatal(err)
	}
	_, err = submit("ann", "c")
	over := quotaproto.FromStatus(status.Convert(err))
	if status.Code(err) != codes.ResourceExhausted || over == nil || *over != (quota.Exceeded{Tenant: "ann", Kind: quota.Jobs, Limit: 2, Used: 2, RetryAfter: quota.Every}) {
		t.Fatalf("a third job: %v, %+v", err, over)
	}
	if c, err := submit("ann", "a"); err != nil || c.fresh {
		t.Errorf("a key that is there: %v", err)
	}
	if _, err := submit("bob", "c"); err != nil {
		t.Errorf("another tenant's: %v", err)
	}
	first.show(&headwaterv1.Job{Id: "a", Tenant: "ann", Key: "a", State: headwaterv1.JobState_JOB_STATE_FAILED, ErrorCode: uint32(codes.Unavailable)})
	if _, err := submit("ann", "c"); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
	if _, err := submit("ann", "a"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the one that has ended, again: %v", err)
	}
	if jobs.refused["ann"] != 2 || jobs.refused["bob"] != 0 {
		t.Errorf("refused are %v", jobs.refused)
	}
}
