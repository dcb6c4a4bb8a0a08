package peers

import (
	"cmp"
	"context"
	"slices"

	"google.golang.org/protobuf/proto"

	"headwater.example/coordinator/jobs"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// maxListed bounds the jobs of another coordinator that a list without pages has.
const maxListed = 4096

// ListJobs implements headwater.v1.CoordinatorService: the jobs of all coordinators, in one order. Those of one that does not answer are as
// they are remembered.
func (p *Peers) ListJobs(ctx context.Context, r *headwaterv1.ListJobsRequest) (*headwaterv1.ListJobsResponse, error) {
	if alone(ctx) {
		return p.local.ListJobs(ctx, r)
	}
	leave, err := take(p.lists)
	if err != nil {
		return nil, err
	}
	defer leave()
	others := p.others()
	lists, errs := make([]*headwaterv1.ListJobsResponse, len(others)), make([]error, len(others))
	p.each(ctx, others, func(ctx context.Context, i int) { lists[i], errs[i] = p.listOf(ctx, others[i], r) })
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	all, err := p.local.ListJobs(ctx, r)
	if err != nil {
		return nil, err
	}
	all = &headwaterv1.ListJobsResponse{Jobs: slices.Clone(all.GetJobs()), More: all.GetMore()}
	answered := []string{p.Name}
	for i, m := range others {
		if errs[i] != nil || lists[i] == nil {
			p.Logger.Debug("a coordinator does not say what jobs it has", "coordinator", m.Name, "error", errs[i])
			continue
		}
		answered = append(answered, m.Name)
		all.Jobs, all.More = append(all.Jobs, lists[i].GetJobs()...), all.More || lists[i].GetMore()
	}
	all.Jobs = append(all.Jobs, p.memory.unreachable(rpc.CallerOf(ctx), answered, r.GetAfter())...)
	slices.SortStableFunc(all.Jobs, jobs.Order)
	return jobs.Page(all, r.GetLimit()), nil
}

// listOf asks another coordinator for a page of its jobs, or for all.
func (p *Peers) listOf(ctx context.Context, m membership.Member, r *headwaterv1.ListJobsRequest) (*headwaterv1.ListJobsResponse, error) {
	all := &headwaterv1.ListJobsResponse{}
	asked := &headwaterv1.ListJobsRequest{Limit: cmp.Or(min(r.GetLimit(), jobs.PageJobs), jobs.PageJobs), After: r.GetAfter(), Brief: r.GetBrief()}
	for {
		resp, err := pass(ctx, p, m, client.ListJobs, asked)
		if err != nil {
			return nil, err
		}
		// One from before pages answers with all.
		told := resp.GetJobs()[:min(len(resp.GetJobs()), maxListed)]
		told = slices.DeleteFunc(told, func(job *headwaterv1.Job) bool {
			return p.check(ctx, m, job) != nil || !jobs.After(job, asked.GetAfter())
		})
		all.Jobs, all.More = append(all.Jobs, told...), resp.GetMore()
		if len(told) == 0 || !resp.GetMore() || r.GetLimit() > 0 || len(all.Jobs) >= maxListed {
			break
		}
		last := told[len(told)-1]
		asked = proto.CloneOf(asked)
		asked.After = &headwaterv1.JobPlace{Created: last.GetCreated(), Id: last.GetId()}
	}
	if who := rpc.CallerOf(ctx); who.Unbound && r.GetAfter() == nil && !all.GetMore() {
		p.memory.hear(m, all.GetJobs(), p.Now())
	}
	return all, nil
}
