package coordinator_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"headwater.example/client"
	"headwater.example/internal/dashboard"
	"headwater.example/internal/explain"
	"headwater.example/internal/jobfile"
	"headwater.example/internal/testkit/await"
	"headwater.example/tensor"
)

// scene is a session whose keys are known, and what a watcher of it was sent.
type scene struct {
	t       *testing.T
	session *client.Session
	layer   client.Layer
	rng     *rand.Rand
	keys    []float32
	last    map[int64][]float32 // queries by position
	looks   chan *dashboard.Attention
}

// step appends a token and lets it ask.
func (s *scene) step() {
	s.t.Helper()
	step := drawn(s.rng, s.layer, 0, 1, 1)
	at := int64(s.session.Len())
	if err := s.session.Do(s.t.Context(), step); err != nil {
		s.t.Fatal(err)
	}
	s.keys = append(s.keys, step.K...)
	s.last[at] = step.Q
}

// next steps until a watcher has been sent where a query from a position on looks, and checks that.
func (s *scene) next(group int, from int64) *dashboard.Attention {
	s.t.Helper()
	var found *dashboard.Attention
	await.That(s.t, fmt.Sprintf("a look at a query from position %d on", from), func() bool {
		s.step()
		select {
		case found = <-s.looks:
			return found.Position >= from
		default:
			return false
		}
	})
	s.check(group, found)
	return found
}

// check compares a group's weights with softmax(q·k/√d).
func (s *scene) check(group int, a *dashboard.Attention) {
	s.t.Helper()
	dim, size := s.layer.HeadDim, s.layer.Heads/s.layer.KVHeads
	for h := range size {
		q := s.last[a.Position][(group*size+h)*dim:][:dim]
		want, sum := make([]float64, a.Position+1), 0.0
		for i := range want {
			for j, x := range q {
				want[i] += float64(x) * float64(s.keys[(i*s.layer.KVHeads+group)*dim+j])
			}
			want[i] = math.Exp(want[i] / math.Sqrt(float64(dim)))
			sum += want[i]
		}
		if a.FirstHead != group*size || len(a.Weights[h]) < 1 || a.Start+int64(len(a.Weights[h])) != a.Position+1 {
			s.t.Fatalf("head %d, position %d: weights of %d positions from %d on", a.FirstHead, a.Position, len(a.Weights[h]), a.Start)
		}
		for i, w := range a.Weights[h] {
			at := int(a.Start) + i
			if math.Abs(float64(w)/1e4-want[at]/sum) > 1e-4 {
				s.t.Fatalf("position %d: head %d gives position %d %v, want %v", a.Position, h, at, float64(w)/1e4, want[at]/sum)
			}
		}
	}
}

// TestASessionIsWatchedAlsoAfterItsWorkerIsGone watches a group while the worker that answers for it is killed and its copy goes on.
func TestASessionIsWatchedAlsoAfterItsWorkerIsGone(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(3)})
	s := &scene{t: t, layer: client.Layer{Heads: 6, KVHeads: 3, HeadDim: 8}, rng: rand.New(rand.NewPCG(1, 2)), last: map[int64][]float32{}, looks: make(chan *dashboard.Attention, 1)}
	var err error
	if s.session, err = c.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{s.layer}, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	const group = 1
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- c.coordinator.WatchAttention(ctx, dashboard.Look{Session: s.session.ID().String(), Group: group}, func(a *dashboard.Attention) error {
			select {
			case <-s.looks:
			default:
			}
			s.looks <- a
			return nil
		})
	}()
	before := s.next(group, 0)
	m, err := c.coordinator.Map(t.Context(), s.session.ID().String())
	if err != nil || m.Layers[0].Copies[group] != 1 || m.Layers[0].Arithmetic != "chain" {
		t.Fatalf("the map is %+v, %v", m, err)
	}
	for _, w := range c.workers {
		if w.Name == m.Holders[m.Layers[0].Owner[group]].Worker {
			w.server.Stop()
		}
	}
	s.next(group, before.Position+100)
	leave()
	if err := await.One(t, ended, "the end of the watch"); !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended with %v", err)
	}
	gone := dashboard.Look{Session: strings.Repeat("ab", 16)}
	if err := c.coordinator.WatchAttention(t.Context(), gone, nil); err == nil {
		t.Error("a session that there is not is watched")
	}
	if err := c.coordinator.WatchAttention(t.Context(), dashboard.Look{Session: s.session.ID().String(), Group: 3}, nil); err == nil {
		t.Error("a group that there is not is watched")
	}
}

// TestARunningJobIsLookedAt compares with what explain says of the job's file.
func TestARunningJobIsLookedAt(t *testing.T) {
	h := newHeld()
	c := startCluster(t, clusterOptions{workers: []workerOptions{{stream: h.intercept}}})
	path := variety(t)
	job, err := c.Submit(t.Context(), client.SubmitOptions{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	await.One(t, h.arrived, "the job's first answer, at the worker")
	f, err := tensor.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	parsed, err := jobfile.Parse(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &parsed.Problems[0]
	problems, err := c.coordinator.JobProblems(t.Context(), job.ID)
	if err != nil || len(problems) != len(parsed.Problems) || problems[0].Groups != p.Shape.KVHeads || problems[0].Positions != p.KVLen {
		t.Fatalf("the job's problems are %+v, %v", problems, err)
	}
	const group, most = 1, 50
	at := p.Offset + int64(p.Tokens) - 2 // the second last
	a, err := c.coordinator.JobAttention(t.Context(), dashboard.Look{Job: job.ID, Problem: p.Prefix, Group: group, Query: at, Positions: most})
	if err != nil {
		t.Fatal(err)
	}
	size := p.Shape.GroupSize()
	if a.Position != at || a.FirstHead != group*size || a.Start != int64(p.KVLen-most) || len(a.Weights) != size || len(a.Weights[0]) != most {
		t.Fatalf("it looks at %+v", a)
	}
	for h := range size {
		e, err := explain.Explain(t.Context(), f, parsed, p, explain.Choice{Heads: []int{a.FirstHead + h}, Positions: []int64{at}}, p.KVLen)
		if err != nil {
			t.Fatal(err)
		}
		before := 0.0
		for _, m := range e.Rows[0].Matches {
			if m.Position < int(a.Start) {
				before += m.Weight
			} else if got := float64(a.Weights[h][m.Position-int(a.Start)]) / 1e4; math.Abs(got-m.Weight) > 1e-4 {
				t.Errorf("head %d gives position %d %v, explain says %v", h, m.Position, got, m.Weight)
			}
		}
		if math.Abs(float64(a.Before[h])/1e4-before) > 1e-4 || math.Abs(float64(a.Sink[h])/1e4-e.Rows[0].Sink) > 1e-4 || before == 0 || e.Rows[0].Sink == 0 {
			t.Errorf("head %d gives %d before and its sink %d, explain says %v and %v", h, a.Before[h], a.Sink[h], before, e.Rows[0].Sink)
		}
	}
	for _, look := range []dashboard.Look{{Job: job.ID, Problem: "no."}, {Job: job.ID, Problem: p.Prefix, Group: 99, Query: at}, {Job: job.ID, Problem: p.Prefix, Query: at + 2}, {Job: "no"}} {
		if a, err := c.coordinator.JobAttention(t.Context(), look); err == nil {
			t.Errorf("%+v is answered with %+v", look, a)
		}
	}
	close(h.release)
	if _, err := c.Watch(t.Context(), job.ID, func(*client.Job) {}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.coordinator.JobProblems(t.Context(), job.ID); err == nil || !strings.Contains(err.Error(), "is not kept: it is succeeded") {
		t.Errorf("the file of a job that has ended: %v", err)
	}
}
