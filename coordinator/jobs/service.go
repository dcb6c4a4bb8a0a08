package jobs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"headwater.example/coordinator/workers"
	"headwater.example/internal/certs"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// GetJob implements headwater.v1.CoordinatorService.
func (q *Queue) GetJob(ctx context.Context, r *headwaterv1.GetJobRequest) (*headwaterv1.GetJobResponse, error) {
	e, err := q.jobs.find(rpc.CallerOf(ctx), r.GetId())
	if err != nil {
		return nil, err
	}
	return &headwaterv1.GetJobResponse{Job: e.snapshot()}, nil
}

// ListJobs implements headwater.v1.CoordinatorService.
func (q *Queue) ListJobs(ctx context.Context, r *headwaterv1.ListJobsRequest) (*headwaterv1.ListJobsResponse, error) {
	all := &headwaterv1.ListJobsResponse{}
	for _, job := range q.list(rpc.CallerOf(ctx)) {
		if !After(job, r.GetAfter()) {
			continue
		}
		if r.GetBrief() {
			job = brief(job)
		}
		all.Jobs = append(all.Jobs, job)
	}
	return Page(all, r.GetLimit()), nil
}

// WatchJob implements headwater.v1.CoordinatorService.
func (q *Queue) WatchJob(r *headwaterv1.WatchJobRequest, stream headwaterv1.CoordinatorService_WatchJobServer) error {
	e, err := q.jobs.find(rpc.CallerOf(stream.Context()), r.GetId())
	if err != nil {
		return err
	}
	for {
		job, changed := e.watch()
		if err := stream.Send(&headwaterv1.WatchJobResponse{Job: job}); err != nil {
			return err
		}
		if ended(job.GetState()) {
			return nil
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-q.stopping:
			return status.Error(codes.Unavailable, "the coordinator stops; the job is kept")
		}
	}
}

// CancelJob implements headwater.v1.CoordinatorService.
func (q *Queue) CancelJob(ctx context.Context, r *headwaterv1.CancelJobRequest) (*headwaterv1.CancelJobResponse, error) {
	e, err := q.jobs.findUnended(rpc.CallerOf(ctx), r.GetId())
	if err != nil {
		return nil, err
	}
	q.audit(ctx, "a job is cancelled", e)
	if err := q.cancel(e); err != nil {
		return nil, statusOf(err).Err()
	}
	for {
		job, changed := e.watch()
		if ended(job.GetState()) {
			return &headwaterv1.CancelJobResponse{Job: job}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-q.stopping:
			return nil, status.Error(codes.Unavailable, "the coordinator stops; the job is kept")
		}
	}
}

// audit logs what an admin does to a job.
func (q *Queue) audit(ctx context.Context, did string, e *entry) {
	if job := e.snapshot(); rpc.CallerOf(ctx).Holder.Role == certs.Admin {
		rpc.Audit(ctx, q.Logger, did, slog.String("job", job.GetId()), slog.String("tenant", job.GetTenant()))
	}
}

// DeleteJob implements headwater.v1.CoordinatorService.
func (q *Queue) DeleteJob(ctx context.Context, r *headwaterv1.DeleteJobRequest) (*headwaterv1.DeleteJobResponse, error) {
	e, err := q.jobs.find(rpc.CallerOf(ctx), r.GetId())
	if err != nil {
		return nil, err
	}
	q.audit(ctx, "a job is deleted", e)
	job, err := q.delete(e)
	if err != nil {
		return nil, statusOf(err).Err()
	}
	return &headwaterv1.DeleteJobResponse{Job: job}, nil
}

// DownloadResult implements headwater.v1.CoordinatorService.
func (q *Queue) DownloadResult(r *headwaterv1.DownloadResultRequest, stream headwaterv1.CoordinatorService_DownloadResultServer) (err error) {
	e, err := q.jobs.find(rpc.CallerOf(stream.Context()), r.GetId())
	if err != nil {
		return err
	}
	job := e.snapshot()
	if job.GetState() != headwaterv1.JobState_JOB_STATE_SUCCEEDED {
		return status.Errorf(codes.FailedPrecondition, "job %s has no result: it is %s", job.GetId(), StateName(job.GetState()))
	}
	if err := q.checkResult(stream.Context(), e); err != nil {
		return statusOf(err).Err()
	}
	f, err := os.Open(q.store.Result(job.GetId()))
	if errors.Is(err, os.ErrNotExist) {
		return status.Errorf(codes.NotFound, "the result of job %s is not kept any more", job.GetId())
	}
	if err != nil {
		return status.Errorf(codes.Internal, "open result: %v", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	m := &headwaterv1.DownloadResultResponse{Job: job}
	for {
		memory := rpc.NewBuffer(rpc.BlockBytes)
		n, err := io.ReadFull(f, memory.Bytes())
		if n > 0 || m.GetJob() != nil {
			m.Data = memory.Bytes()[:n]
			if err := rpc.SendBulk(stream, m, memory); err != nil {
				return err
			}
			m = &headwaterv1.DownloadResultResponse{}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return status.Errorf(codes.DataLoss, "read result of job %s: %v", job.GetId(), err)
		}
	}
}

func (q *Queue) counts(caller rpc.Caller) map[headwaterv1.JobState]uint64 {
	counts := map[headwaterv1.JobState]uint64{}
	for _, job := range q.list(caller) {
		counts[job.GetState()]++
	}
	return counts
}

// Counts returns how many jobs are kept in each state that any is in, by the state's name.
func (q *Queue) Counts() map[string]uint64 {
	named := map[string]uint64{}
	for state, n := range q.counts(rpc.Anyone) {
		named[StateName(state)] = n
	}
	return named
}

// Workers returns how many workers the membership shows, and how many announce themselves and are left out.
func (q *Queue) Workers() (members, leftOut int) {
	return len(q.workers.List()), len(q.workers.Outsiders())
}

// tenants are what a caller's tenants may have and have.
func (q *Queue) tenants(caller rpc.Caller) (all []*headwaterv1.TenantStatus) {
	if q.Tenants == nil {
		return nil
	}
	jobs := q.unended()
	for _, t := range q.Tenants() {
		if caller.Owns(t.GetTenant()) {
			t.Used.Jobs = jobs[t.GetTenant()]
			all = append(all, t)
		}
	}
	return all
}

// unended returns how many jobs of each tenant have not ended.
func (q *Queue) unended() map[string]uint64 {
	jobs := map[string]uint64{}
	for _, e := range q.jobs.all() {
		if job := e.snapshot(); !ended(job.GetState()) {
			jobs[job.GetTenant()]++
		}
	}
	return jobs
}

// Refused returns how many submissions were refused for which a tenant had too many jobs, by tenant.
func (q *Queue) Refused() map[string]uint64 {
	q.jobs.mu.Lock()
	defer q.jobs.mu.Unlock()
	return maps.Clone(q.jobs.refused)
}

// Status implements headwater.v1.CoordinatorService.
func (q *Queue) Status(ctx context.Context, _ *headwaterv1.StatusRequest) (*headwaterv1.StatusResponse, error) {
	resp := &headwaterv1.StatusResponse{Name: q.Name, Version: q.Version, Protocol: rpc.Version, Started: timestamppb.New(q.started), Panics: rpc.Panics()}
	described := q.workers.Describe(ctx, q.workers.List())
	if placeable, err := workers.Placeable(described); err == nil {
		resp.AutoArithmetic = layerproto.Arithmetic(workers.Arithmetic(placeable))
	}
	for _, d := range described {
		w := &headwaterv1.WorkerStatus{Address: d.Address, Worker: d.Said}
		if d.Err != nil {
			w.Worker, w.Error = &headwaterv1.DescribeResponse{Name: d.Name}, workers.OneLine(d.Err)
		}
		resp.Workers = append(resp.Workers, w)
	}
	for _, o := range q.workers.Outsiders() {
		resp.Workers = append(resp.Workers, &headwaterv1.WorkerStatus{Address: o.Address, Worker: &headwaterv1.DescribeResponse{Name: o.Name}, Error: o.Why})
	}
	caller := rpc.CallerOf(ctx)
	resp.Tenants = q.tenants(caller)
	counts := q.counts(caller)
	for state := headwaterv1.JobState(1); int(state) < len(headwaterv1.JobState_name); state++ {
		if counts[state] > 0 {
			resp.Jobs = append(resp.Jobs, &headwaterv1.StateCount{State: state, Count: counts[state]})
		}
	}
	return resp, nil
}
