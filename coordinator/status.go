package coordinator

import (
	"context"
	"maps"
	"slices"
	"sync"

	"headwater.example/coordinator/jobs"
	"headwater.example/coordinator/peers"
	"headwater.example/coordinator/sessions"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// service is the coordinator's own: that of the jobs of all coordinators, and a status that counts them and says what sessions have seen of the
// workers.
type service struct {
	*peers.Peers
	jobs     *jobs.Queue
	sessions *sessions.Relay
}

// Status implements headwater.v1.CoordinatorService.
func (s service) Status(ctx context.Context, req *headwaterv1.StatusRequest) (*headwaterv1.StatusResponse, error) {
	var others map[headwaterv1.JobState]uint64
	var uncounted error
	var asking sync.WaitGroup
	asking.Go(func() {
		uncounted = rpc.Guard(s.Logger, "counting the jobs of other coordinators", func() (err error) {
			others, err = s.Counts(ctx)
			return err
		})
	})
	resp, err := s.jobs.Status(ctx, req)
	if asking.Wait(); err == nil {
		err = uncounted
	}
	if err != nil {
		return nil, err
	}
	resp.Jobs = together(resp.GetJobs(), others)
	times := s.sessions.AnswerTimes()
	for _, w := range resp.GetWorkers() {
		if w.GetError() == "" {
			if w.WeightShare = 1; !w.GetWorker().GetWeightGiven() {
				w.WeightShare = s.sessions.WeightShare(w.GetWorker().GetName())
			}
		}
		one, ok := times[w.GetWorker().GetName()]
		if !ok || one.Address != w.GetAddress() {
			continue
		}
		w.Answers = &headwaterv1.AnswerTimes{Count: one.Count, P50Nanos: uint64(one.P50), P95Nanos: uint64(one.P95), Waiting: uint64(max(one.Queue, 0)), Beside: one.Beside, Compared: one.Compared}
	}
	return resp, nil
}

// together adds to jobs by state the others, which it may change.
func together(jobs []*headwaterv1.StateCount, others map[headwaterv1.JobState]uint64) (all []*headwaterv1.StateCount) {
	for _, c := range jobs {
		others[c.GetState()] += c.GetCount()
	}
	for _, state := range slices.Sorted(maps.Keys(others)) {
		all = append(all, &headwaterv1.StateCount{State: state, Count: others[state]})
	}
	return all
}
