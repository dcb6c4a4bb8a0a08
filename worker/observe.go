package worker

import (
	"headwater.example/internal/observe"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// load is what the worker has done, nil if it does not count.
func (w *Worker) load() *headwaterv1.WorkerLoad {
	if w.cfg.Observe == nil {
		return nil
	}
	done := w.cfg.Observe.Load()
	m := &headwaterv1.WorkerLoad{
		BusBytesPerSecond: uint64(w.cfg.Bus), ReadBytes: done.ReadBytes, Steps: done.Steps, QueueNanos: uint64(done.Queue),
	}
	for _, l := range done.Layers {
		m.Layers = append(m.Layers, &headwaterv1.LayerLoad{Layer: l.Layer, Steps: l.Steps, KernelNanos: uint64(l.Kernel)})
	}
	return m
}

// observe registers the metrics that are read at a scrape. They are what Describe and ListSessions answer, and so what coord
// status shows.
func (w *Worker) observe() {
	o := w.cfg.Observe
	if o == nil {
		return
	}
	o.ReadProcess(w.cfg.Version, w.machine.Flight, w.cfg.Security)
	o.Read([]*observe.Metric{
		&observe.MemoryBudget, &observe.MemoryUsed, &observe.MemorySpare, &observe.Threads, &observe.Bus,
	}, func(emit observe.Emit) {
		d := w.describe()
		emit(&observe.MemoryBudget, float64(d.GetBudgetBytes()))
		emit(&observe.MemoryUsed, float64(d.GetUsedBytes()))
		emit(&observe.MemorySpare, float64(d.GetSpareBytes()))
		emit(&observe.Threads, float64(d.GetThreads()))
		emit(&observe.Bus, w.cfg.Bus)
	})
	o.Read([]*observe.Metric{
		&observe.Sessions, &observe.Lanes, &observe.QueuedSteps, &observe.QueuedTokens, &observe.Pages, &observe.CacheUsed,
		&observe.CacheFree, &observe.CacheRoom, &observe.CacheRows, &observe.CacheHeap, &observe.PrefixBytes, &observe.PrefixAsked,
		&observe.PrefixHits, &observe.PrefixSaved, &observe.Evicted,
	}, func(emit observe.Emit) {
		c := w.sessions.Cache()
		pages := uint64(0)
		for _, p := range c.GetPages() {
			pages += p.GetUsed()
		}
		emit(&observe.Sessions, float64(c.GetSessions()))
		emit(&observe.Lanes, float64(c.GetLanes()))
		emit(&observe.QueuedSteps, float64(c.GetQueuedSteps()))
		emit(&observe.QueuedTokens, float64(c.GetQueuedTokens()))
		emit(&observe.Pages, float64(pages))
		emit(&observe.CacheUsed, float64(c.GetUsedBytes()))
		emit(&observe.CacheFree, float64(c.GetFreeBytes()))
		emit(&observe.CacheRoom, float64(c.GetRoomBytes()))
		emit(&observe.CacheRows, float64(c.GetRowBytes()))
		emit(&observe.CacheHeap, float64(c.GetSessionBytes()))
		emit(&observe.PrefixBytes, float64(c.GetPrefixBytes()))
		emit(&observe.PrefixAsked, float64(c.GetPrefixAsked()))
		emit(&observe.PrefixHits, float64(c.GetPrefixHits()))
		emit(&observe.PrefixSaved, float64(c.GetPrefixSavedBytes()))
		emit(&observe.Evicted, float64(c.GetEvicted()))
	})
}
