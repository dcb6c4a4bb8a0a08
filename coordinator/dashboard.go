package coordinator

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"headwater.example/coordinator/jobs"
	"headwater.example/coordinator/peers"
	"headwater.example/internal/dashboard"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// What a picture shows at most.
const (
	shownSessions = 100
	shownJobs     = 100
)

// ofDashboard is the context of what the dashboard asks: it knows by itself who may see and do what.
func ofDashboard(ctx context.Context) context.Context { return rpc.As(ctx, rpc.Anyone) }

// Picture is the cluster as the dashboard shows it: what Status, ListSessions and ListJobs answer, and what is counted here.
func (c *Coordinator) Picture(ctx context.Context) (*dashboard.Snapshot, error) {
	ctx = ofDashboard(ctx)
	status, err := service{c.peers, c.jobs, c.sessions}.Status(ctx, &headwaterv1.StatusRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask for the status: %w", err)
	}
	list, err := c.sessions.ListSessions(ctx, &headwaterv1.ListSessionsRequest{Limit: shownSessions + 1})
	if err != nil {
		return nil, fmt.Errorf("list the sessions: %w", err)
	}
	listed, err := c.peers.ListJobs(ctx, &headwaterv1.ListJobsRequest{Limit: shownJobs})
	if err != nil {
		return nil, fmt.Errorf("list the jobs: %w", err)
	}
	s := &dashboard.Snapshot{
		At: time.Now(), Name: status.GetName(), Version: status.GetVersion(), Coordinator: c.totals(status.GetJobs()),
		Workers: []dashboard.Worker{}, Sessions: []dashboard.Session{}, Jobs: []dashboard.Job{}, Events: []dashboard.Event{},
	}
	caches := map[string]*headwaterv1.CacheState{}
	for _, cache := range list.GetCaches() {
		caches[cache.GetWorker()] = cache
	}
	for _, w := range status.GetWorkers() {
		s.Workers = append(s.Workers, workerOf(w, caches[w.GetWorker().GetName()]))
	}
	for _, m := range list.GetSessions()[:min(len(list.GetSessions()), shownSessions)] {
		s.Sessions = append(s.Sessions, sessionOf(m))
	}
	s.SessionsLeft = len(list.GetSessions()) > shownSessions
	for _, j := range listed.GetJobs() {
		one := dashboard.Job{
			ID: j.GetId(), Name: j.GetName(), State: jobs.StateName(j.GetState()), Phase: j.GetProgress().GetPhase(), Error: j.GetError(), Done: doneOf(j),
			Elsewhere:   peers.Owner(j.GetId()) != c.config.Name,
			Arithmetics: []string{},
		}
		for _, a := range j.GetArithmetics() {
			one.Arithmetics = append(one.Arithmetics, layerproto.ReadArithmetic(a).String())
		}
		s.Jobs = append(s.Jobs, one)
	}
	for _, n := range s.Coordinator.Jobs {
		s.JobsLeft += int(n)
	}
	s.JobsLeft = max(s.JobsLeft-len(s.Jobs), 0) // they were counted before
	for _, e := range c.config.Observe.Events() {
		s.Events = append(s.Events, dashboard.Event{Number: e.Number, At: e.At, Text: e.Text()})
	}
	return s, nil
}

// totals are the numbers that the coordinator's metrics have, too, but for the jobs, which are those of all coordinators.
func (c *Coordinator) totals(all []*headwaterv1.StateCount) (t dashboard.Totals) {
	lanes, known := c.sessions.Open()
	members, leftOut := c.jobs.Workers()
	t.Lanes, t.Known, t.Workers, t.LeftOut = uint64(lanes), uint64(known), uint64(members), uint64(leftOut)
	lost := c.config.Observe.Losses()
	t.WorkersLost, t.SessionsLost, t.SessionsMoved, t.JobWorkersLost = lost.Workers, lost.Sessions, lost.Moved, lost.Jobs
	t.CopiesLacking, t.CopiesMade, _ = c.sessions.Copies()
	hedges := c.sessions.Hedges()
	t.Attends, t.Hedged = hedges.Attends, hedges.Asked
	t.Jobs = map[string]uint64{}
	for _, n := range all {
		t.Jobs[jobs.StateName(n.GetState())] = n.GetCount()
	}
	return t
}

func workerOf(w *headwaterv1.WorkerStatus, cache *headwaterv1.CacheState) dashboard.Worker {
	d, load := w.GetWorker(), w.GetWorker().GetLoad()
	one := dashboard.Worker{
		Name: d.GetName(), Boot: hex.EncodeToString(d.GetBoot()), Error: w.GetError(),
		Budget: d.GetBudgetBytes(), Used: d.GetUsedBytes(), Spare: d.GetSpareBytes(),
		Counts: load != nil, Bus: load.GetBusBytesPerSecond(), Read: load.GetReadBytes(), Steps: load.GetSteps(),
		Waited: time.Duration(load.GetQueueNanos()).Seconds(),
	}
	if a := w.GetAnswers(); a != nil {
		one.Answers = dashboard.Answers{P50: time.Duration(a.GetP50Nanos()).Seconds(), P95: time.Duration(a.GetP95Nanos()).Seconds(), Waiting: a.GetWaiting()}
	}
	if cache != nil && one.Error == "" {
		one.Sessions, one.Queued = cache.GetSessions(), cache.GetQueuedSteps()
		one.PrefixAsked, one.PrefixHits = cache.GetPrefixAsked(), cache.GetPrefixHits()
	}
	return one
}

func sessionOf(m *headwaterv1.SessionState) dashboard.Session {
	one := dashboard.Session{
		ID: hex.EncodeToString(m.GetSession()), Name: m.GetName(), Tenant: m.GetTenant(), Bytes: m.GetPageBytes(), Used: m.GetUsed().AsTime(), Holders: len(m.GetHolders()),
	}
	for _, l := range m.GetLayers() {
		one.Length = max(one.Length, l.GetLength())
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

// Map is who holds which group of a session.
func (c *Coordinator) Map(ctx context.Context, id string) (*dashboard.Map, error) {
	key, err := hex.DecodeString(id)
	if err != nil {
		return nil, fmt.Errorf("a session's id is 32 hexadecimal digits, not %q", id)
	}
	shards, err := c.sessions.Shards(ofDashboard(ctx), key)
	if err != nil {
		return nil, err
	}
	m := &dashboard.Map{
		Session: id, Name: shards.State.GetName(), Tenant: shards.State.GetTenant(), Replicas: int(shards.State.GetConfig().GetReplicas()),
		Holders: []dashboard.Holder{}, Layers: make([]dashboard.Layer, len(shards.Layers)),
	}
	index := map[string]int{}
	at := func(name string) int {
		i, ok := index[name]
		if !ok {
			i, index[name] = len(m.Holders), len(m.Holders)
			m.Holders = append(m.Holders, dashboard.Holder{Worker: name, Load: [][3]uint64{}})
		}
		return i
	}
	for l, groups := range shards.Held {
		layer := &m.Layers[l]
		layer.Arithmetic = shards.Layers[l].Arithmetic().String()
		if layer.Heads = shards.Layers[l].Heads; shards.Layers[l].Striped() {
			layer.Stripes = shards.Layers[l].Stripes
		}
		for _, held := range groups {
			owner := -1
			for _, name := range slices.Backward(held) { // the first answers
				owner = at(name)
			}
			layer.Owner, layer.Copies = append(layer.Owner, owner), append(layer.Copies, max(len(held)-1, 0))
		}
	}
	for i, load := range c.sessions.Loads(ofDashboard(ctx), index) {
		for _, l := range load.GetLayers() {
			m.Holders[i].Load = append(m.Holders[i].Load, [3]uint64{uint64(l.GetLayer()), l.GetSteps(), l.GetKernelNanos()})
		}
	}
	return m, nil
}

// CancelJob ends a job, also one of another coordinator.
func (c *Coordinator) CancelJob(ctx context.Context, id string) error {
	_, err := c.peers.CancelJob(ofDashboard(ctx), &headwaterv1.CancelJobRequest{Id: id})
	return err
}

// DropSession ends a session.
func (c *Coordinator) DropSession(ctx context.Context, id string) error {
	key, err := hex.DecodeString(id)
	if err != nil {
		return fmt.Errorf("a session's id is 32 hexadecimal digits, not %q", id)
	}
	_, err = c.sessions.DropSession(ofDashboard(ctx), &headwaterv1.DropSessionRequest{Session: key})
	return err
}
