package jobs

import (
	"cmp"

	"google.golang.org/protobuf/proto"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

const (
	// PageJobs is the most jobs of a page, whatever is asked for, and pageBytes the most bytes, a single job apart.
	PageJobs  = 500
	pageBytes = 8 << 20
)

// Order is the order of lists of jobs: newest first.
func Order(a, b *headwaterv1.Job) int {
	return cmp.Or(b.GetCreated().AsTime().Compare(a.GetCreated().AsTime()), cmp.Compare(b.GetId(), a.GetId()))
}

// After tells whether a job comes after a place in that order; nil is before all.
func After(job *headwaterv1.Job, place *headwaterv1.JobPlace) bool {
	return place == nil || Order(job, &headwaterv1.Job{Created: place.GetCreated(), Id: place.GetId()}) > 0
}

// Page cuts ordered jobs to a page; a limit of 0 does not.
func Page(all *headwaterv1.ListJobsResponse, limit uint32) *headwaterv1.ListJobsResponse {
	if limit == 0 {
		return all
	}
	bytes := 0
	for i, job := range all.GetJobs() {
		bytes += proto.Size(job)
		if i >= int(min(limit, PageJobs)) || i > 0 && bytes > pageBytes {
			return &headwaterv1.ListJobsResponse{Jobs: all.GetJobs()[:i], More: true}
		}
	}
	return all
}

// brief is a job without what does not tell it from another.
func brief(job *headwaterv1.Job) *headwaterv1.Job {
	return &headwaterv1.Job{
		Id: job.GetId(), Key: job.GetKey(), Name: job.GetName(), State: job.GetState(), ContentHash: job.GetContentHash(), SizeBytes: job.GetSizeBytes(),
		Kind: job.GetKind(), Created: job.GetCreated(), Started: job.GetStarted(), Ended: job.GetEnded(), Tenant: job.GetTenant(), Codec: job.GetCodec(),
	}
}
