package coordinator

import (
	"context"

	"headwater.example/coordinator/jobs"
	"headwater.example/coordinator/peers"
	"headwater.example/coordinator/sessions"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// service is the coordinator's own: that of the jobs of all coordinators, and a status that says what sessions have seen of the workers.
type service struct {
	*peers.Peers
	jobs     *jobs.Queue
	sessions *sessions.Relay
}

// Status implements headwater.v1.CoordinatorService.
func (s service) Status(ctx context.Context, req *headwaterv1.StatusRequest) (*headwaterv1.StatusResponse, error) {
	resp, err := s.jobs.Status(ctx, req)
	if err != nil {
		return nil, err
	}
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
