package coordinator_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/dashboard"
	"headwater.example/internal/observe"
	"headwater.example/internal/testkit/await"
)

// TestALostWorkerIsSeen: when one of two workers is lost, the dashboard shows the failover and the shards that lack their copy, and
// the metrics of these names have the same numbers. When another worker has joined the copy is made, which is seen as well.
func TestALostWorkerIsSeen(t *testing.T) {
	counts := observe.NewCoordinator()
	c := startCluster(t, clusterOptions{workers: workers(2), config: coordinator.Config{Replicas: 1, Observe: counts}})
	for { // The keeper of copies looks once when it starts. It is not to look while the session is being opened.
		copies, err := c.Copies(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !copies.Looked.IsZero() {
			break
		}
	}
	layer := client.Layer{Heads: 8, KVHeads: 4, HeadDim: 16}
	s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{layer, layer}})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	step := func() {
		t.Helper()
		for l := range 2 {
			if err := s.Do(t.Context(), drawn(rng, layer, l, 1, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// until returns the first picture that shows as many copies lacking and made, and these events.
	until := func(lacking, made uint64, texts ...string) dashboard.Totals {
		t.Helper()
		for {
			_, changed := counts.EventsAfter(0)
			p, err := c.coordinator.Picture(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			lacks := func(text string) bool {
				return !slices.ContainsFunc(p.Events, func(e dashboard.Event) bool { return e.Text == text })
			}
			if p.Coordinator.CopiesLacking == lacking && p.Coordinator.CopiesMade == made && !slices.ContainsFunc(texts, lacks) {
				return p.Coordinator
			}
			await.One(t, changed, fmt.Sprintf("%d copies lacking, %d made, and the events %q; there are %+v", lacking, made, texts, p.Coordinator))
		}
	}
	step()
	c.workers[0].server.Stop()
	c.view.set(c.workers[1].Member)
	step()
	seen := until(8, 0, "1 session goes on without worker w0, from copies", "under-replicated: 8 shards")
	if seen.SessionsMoved != 1 {
		t.Errorf("%d sessions have moved, want 1", seen.SessionsMoved)
	}
	holdToMetrics(t, counts, &seen)
	fresh := startWorker(t, "w9", workerOptions{})
	c.view.set(c.workers[1].Member, fresh.Member)
	seen = until(0, 1, "1 copy was made at worker w9", "no copies are missing")
	holdToMetrics(t, counts, &seen)
}

// holdToMetrics compares what is shown of losses and copies with the metrics of these names.
func holdToMetrics(t *testing.T, counts *observe.Coordinator, shown *dashboard.Totals) {
	t.Helper()
	all, err := counts.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	served := map[string]float64{}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			served[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, n := range map[string]uint64{
		"sessions_moved_total": shown.SessionsMoved, "copies_lacking": shown.CopiesLacking, "copies_made_total": shown.CopiesMade,
	} {
		if got := served["headwater_coordinator_"+name]; got != float64(n) {
			t.Errorf("headwater_coordinator_%s is %v, and %d is shown", name, got, n)
		}
	}
}
