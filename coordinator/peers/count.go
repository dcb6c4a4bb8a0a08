package peers

import (
	"context"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Counts says how many jobs of the caller the other coordinators have in each state. Those of one that does not answer are unreachable, as
// far as they are remembered.
func (p *Peers) Counts(ctx context.Context) (map[headwaterv1.JobState]uint64, error) {
	counts := map[headwaterv1.JobState]uint64{}
	if alone(ctx) {
		return counts, nil
	}
	leave, err := take(p.passed)
	if err != nil {
		return nil, err
	}
	defer leave()
	others := p.others()
	told, errs := make([]*headwaterv1.StatusResponse, len(others)), make([]error, len(others))
	p.each(ctx, others, func(ctx context.Context, i int) {
		told[i], errs[i] = pass(ctx, p, others[i], client.Status, &headwaterv1.StatusRequest{})
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	answered := []string{p.Name}
	for i, m := range others {
		if errs[i] != nil || told[i] == nil {
			p.Logger.Debug("a coordinator does not say how many jobs it has", "coordinator", m.Name, "error", errs[i])
			continue
		}
		answered = append(answered, m.Name)
		for _, c := range told[i].GetJobs() {
			counts[c.GetState()] += c.GetCount()
		}
	}
	if n := len(p.memory.unreachable(rpc.CallerOf(ctx), answered, nil)); n > 0 {
		counts[headwaterv1.JobState_JOB_STATE_UNREACHABLE] += uint64(n)
	}
	return counts, nil
}
