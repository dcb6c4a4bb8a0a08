package coordinator

import (
	"context"
	"fmt"
	"time"

	"headwater.example/coordinator/jobs"
	"headwater.example/internal/dashboard"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// What a picture shows at most.
const (
	shownSessions = 200
	shownJobs     = 100
)

// Picture is the cluster as the dashboard shows it: what Status, ListSessions and ListJobs answer.
func (c *Coordinator) Picture(ctx context.Context) (*dashboard.Snapshot, error) {
	status, err := c.jobs.Status(ctx, &headwaterv1.StatusRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask for the status: %w", err)
	}
	list, err := c.sessions.ListSessions(ctx, &headwaterv1.ListSessionsRequest{Limit: shownSessions})
	if err != nil {
		return nil, fmt.Errorf("list the sessions: %w", err)
	}
	listed, err := c.jobs.ListJobs(ctx, &headwaterv1.ListJobsRequest{})
	if err != nil {
		return nil, fmt.Errorf("list the jobs: %w", err)
	}
	s := &dashboard.Snapshot{
		At: time.Now(), Coordinator: status.GetName(), Version: status.GetVersion(),
		Workers: []dashboard.Worker{}, Sessions: []dashboard.Session{}, Jobs: []dashboard.Job{},
	}
	caches := map[string]*headwaterv1.CacheState{}
	for _, cache := range list.GetCaches() {
		caches[cache.GetWorker()] = cache
	}
	for _, w := range status.GetWorkers() {
		d, load := w.GetWorker(), w.GetWorker().GetLoad()
		one := dashboard.Worker{
			Name: d.GetName(), Boot: fmt.Sprintf("%x", d.GetBoot()), Error: w.GetError(), Budget: d.GetBudgetBytes(),
			Used: d.GetUsedBytes() - min(d.GetUsedBytes(), d.GetSpareBytes()), Counts: load != nil,
			Bus: load.GetBusBytesPerSecond(), Read: load.GetReadBytes(), Steps: load.GetSteps(),
		}
		if cache := caches[one.Name]; cache != nil && one.Error == "" {
			one.Sessions, one.Queued = cache.GetSessions(), cache.GetQueuedSteps()
		}
		s.Workers = append(s.Workers, one)
	}
	for _, m := range list.GetSessions() {
		s.Sessions = append(s.Sessions, pictureOf(m))
	}
	for _, j := range listed.GetJobs()[:min(len(listed.GetJobs()), shownJobs)] {
		s.Jobs = append(s.Jobs, dashboard.Job{ID: j.GetId(), Name: j.GetName(), State: jobs.StateName(j.GetState()), Phase: j.GetProgress().GetPhase(), Done: doneOf(j)})
	}
	s.Left = len(listed.GetJobs()) - len(s.Jobs)
	return s, nil
}

func pictureOf(m *headwaterv1.SessionState) dashboard.Session {
	one := dashboard.Session{ID: fmt.Sprintf("%x", m.GetSession()), Name: m.GetName(), Bytes: m.GetPageBytes(), Used: m.GetUsed().AsTime(), Holders: []dashboard.Holder{}}
	for _, l := range m.GetLayers() {
		one.Length = max(one.Length, l.GetLength())
	}
	for _, h := range m.GetHolders() {
		holder := dashboard.Holder{Worker: h.GetName(), Layers: [][]uint32{}}
		for _, l := range h.GetLayers() {
			holder.Layers = append(holder.Layers, append([]uint32{l.GetLayer()}, l.GetGroups()...))
		}
		one.Holders = append(one.Holders, holder)
	}
	return one
}

// doneOf is how far a job is, 0 to 1: half is to load, half to answer.
func doneOf(j *headwaterv1.Job) float64 {
	if j.GetState() == headwaterv1.JobState_JOB_STATE_SUCCEEDED {
		return 1
	}
	part := func(done, all uint64) float64 {
		if all == 0 {
			return 0
		}
		return float64(done) / float64(all)
	}
	p := j.GetProgress()
	return (part(p.GetLoadedBytes(), p.GetLoadBytes()) + part(p.GetUnitsDone(), p.GetUnits())) / 2
}
