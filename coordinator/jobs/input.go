package jobs

import (
	"errors"
	"io/fs"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/jobfile"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
)

// Input opens, for whom sees all jobs, the file of a job that has not ended, with its options as the job has them. The caller closes it.
func (q *Queue) Input(id string) (*tensor.File, *jobfile.Job, error) {
	e, err := q.jobs.find(rpc.Anyone, id)
	if err != nil {
		return nil, nil, err
	}
	job := e.snapshot()
	if ended(job.GetState()) { // its file is removed soon after
		return nil, nil, notKept(job)
	}
	input, err := tensor.Open(q.store.Input(job.GetId()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, notKept(e.snapshot())
	}
	if err != nil {
		return nil, nil, err
	}
	parsed, err := jobfile.Parse(input, e.begun().GetOverrides())
	if err != nil {
		return nil, nil, errors.Join(err, input.Close())
	}
	return input, parsed, nil
}

func notKept(job *headwaterv1.Job) error {
	return status.Errorf(codes.NotFound, "the file of job %s is not kept: it is %s", job.GetId(), StateName(job.GetState()))
}
