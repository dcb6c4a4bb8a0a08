package browser

import (
	"context"
	"fmt"
	"time"

	"headwater.example/internal/dashboard"
)

// Fake is a cluster of any size, for pages that no machine has the processes for. It moves: each picture is a second later.
type Fake struct {
	Workers, Sessions, Layers, Groups int
	Replicas                          int
	Bad                               bool // whether something is wrong with it

	began time.Time
}

// Seen is an expression of JavaScript that is true once all of the cluster is on the page.
func (f *Fake) Seen() string {
	drawn := `document.querySelector("#map caption")?.textContent === "No session is open."`
	if f.Sessions > 0 {
		drawn = fmt.Sprintf(`document.querySelectorAll("#map td").length === %d`, f.Layers*f.Groups)
	}
	return fmt.Sprintf(`document.querySelectorAll("#workers tr").length === %d && %s`, min(f.Workers, 100), drawn)
}

// shown is how many sessions a coordinator tells of at most.
const shown = 100

// Picture implements dashboard.Cluster.
func (f *Fake) Picture(context.Context) (*dashboard.Snapshot, error) {
	if f.began.IsZero() {
		f.began = time.Now()
	}
	now := time.Now()
	second := uint64(now.Sub(f.began)/time.Second) + 1
	s := &dashboard.Snapshot{
		At: now, Name: "coordinator-0", Version: "v1.0.0",
		Coordinator: dashboard.Totals{Workers: uint64(f.Workers), Lanes: uint64(min(f.Sessions, 12)), Known: uint64(f.Sessions), Attends: 4000, Hedged: 31, Jobs: map[string]uint64{"succeeded": 3, "running": 1, "failed": 1}},
		Jobs: []dashboard.Job{
			{ID: "coordinator-0-01JD", Name: "layer17.safetensors", State: "running", Phase: "attending", Done: 0.62},
			{ID: "coordinator-0-01JC", Name: "a-prompt-with-a-name-that-is-rather-long-for-a-column.safetensors", State: "failed", Error: "not enough memory: 12 GiB are needed, 3.1 GiB are there", Done: 0.31},
			{ID: "coordinator-0-01JB", Name: "", State: "succeeded", Done: 1},
		},
		Events: []dashboard.Event{}, Sessions: []dashboard.Session{},
	}
	for i := range f.Workers {
		w := dashboard.Worker{
			Name: fmt.Sprintf("worker-%d", i), Boot: fmt.Sprint(i), Budget: 64 << 30, Used: uint64(i%7+1) << 33, Spare: 1 << 32, Sessions: uint64(f.Sessions), Queued: uint64(i * i % 5),
			PrefixAsked: 4096, PrefixHits: uint64(i%9) * 512, Counts: true, Bus: 20e9, Read: second * uint64(i%11) * 2e9, Steps: second * 137 * uint64(i%11), Waited: float64(second) * 0.01,
			Answers: dashboard.Answers{P50: float64(i%5) * 0.0004, P95: float64(i%5) * 0.003},
		}
		if f.Bad && i%17 == 1 {
			w = dashboard.Worker{Name: w.Name, Error: "worker \"" + w.Name + "\" at 10.0.0.7:7601: Unavailable desc = connection refused"}
		}
		s.Workers = append(s.Workers, w)
	}
	for i := range min(f.Sessions, shown) {
		s.Sessions = append(s.Sessions, dashboard.Session{
			ID: f.id(i), Name: fmt.Sprintf("chat %d", i), Length: uint64(i*997%40000 + 12), Bytes: uint64(i*997%40000+12) << 10, Used: f.began.Add(-time.Duration(i) * time.Second), Holders: min(f.Workers, 16),
		})
	}
	s.SessionsLeft = f.Sessions > shown
	if f.Bad {
		s.Coordinator.WorkersLost, s.Coordinator.SessionsLost = 2, 41
		s.Coordinator.SessionsMoved, s.Coordinator.CopiesLacking, s.Coordinator.CopiesMade = 40, 32, 7
		for i, text := range []string{
			"1 copy was made at worker worker-0", "under-replicated: 32 shards", "40 sessions go on without worker worker-1, from copies",
			"worker worker-1 is gone, and with it its part of 41 sessions", "worker worker-3 has joined",
			"13 copies could not be made at worker worker-4: restore session 00c0ffee at worker-4 (10.0.0.7:7601): not enough memory: 12 GiB are needed, 3.1 GiB are there",
		} {
			s.Events = append(s.Events, dashboard.Event{Number: uint64(100 - i), At: f.began.Add(-time.Duration(i) * time.Minute), Text: text})
		}
	}
	return s, nil
}

func (f *Fake) id(i int) string { return fmt.Sprintf("%08x%024x", 0xc0ffee*(i+1)&0xffffffff, i) }

// Map implements dashboard.Cluster.
func (f *Fake) Map(_ context.Context, session string) (*dashboard.Map, error) {
	second := uint64(time.Since(f.began)/time.Second) + 1
	m := &dashboard.Map{Session: session, Name: "chat 0", Replicas: f.Replicas}
	holders := min(f.Workers, 16)
	for i := range holders {
		h := dashboard.Holder{Worker: fmt.Sprintf("worker-%d", i)}
		for l := range f.Layers {
			h.Load = append(h.Load, [3]uint64{uint64(l), second * 100, second * uint64((i*7+l*3)%23) * 2e6})
		}
		m.Holders = append(m.Holders, h)
	}
	for l := range f.Layers {
		layer := dashboard.Layer{Heads: 4 * f.Groups}
		for g := range f.Groups {
			owner, copies := (l*f.Groups+g)%holders, f.Replicas
			if f.Bad && owner == 1 {
				if owner, copies = (owner+1)%holders, f.Replicas-1; f.Replicas == 0 {
					owner, copies = -1, 0
				}
			}
			layer.Owner, layer.Copies = append(layer.Owner, owner), append(layer.Copies, max(copies, 0))
		}
		m.Layers = append(m.Layers, layer)
	}
	return m, nil
}

// WatchAttention implements dashboard.Cluster: three heads that look at different things, a new query each tenth of a second.
func (f *Fake) WatchAttention(ctx context.Context, look dashboard.Look, send func(*dashboard.Attention) error) error {
	for position := int64(300); ; position++ {
		if err := send(attention(position, min(look.Positions, int(position)+1), look.Group*4)); err != nil {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// attention is a query of four heads: one looks at what is near, one at the first token, one at every tenth, one at all alike.
func attention(position int64, n, firstHead int) *dashboard.Attention {
	a := &dashboard.Attention{Position: position, FirstHead: firstHead, Start: position + 1 - int64(n), Token: "stream", Before: []uint16{0, 100, 0, 40}, Sink: []uint16{0, 900, 0, 0}}
	words := []string{" the", " water", " flows", "\n", " down", " to", " a", " mill", ".", " head"}
	for range 4 {
		a.Weights = append(a.Weights, make([]uint16, n))
	}
	for i := range n {
		at := a.Start + int64(i)
		a.Tokens = append(a.Tokens, words[at%int64(len(words))])
		a.Weights[0][i] = dashboard.Parts(0.5 / float64(uint64(1)<<min(position-at, 60)))
		a.Weights[2][i] = dashboard.Parts(float64(max(0, 1-at%10)) * 10 / float64(n))
		a.Weights[3][i] = dashboard.Parts(1 / float64(n))
	}
	a.Weights[1][0] = 9000
	return a
}

// JobProblems implements dashboard.Cluster.
func (f *Fake) JobProblems(context.Context, string) ([]dashboard.Problem, error) {
	return []dashboard.Problem{{Prefix: "layers.3.", Layer: 3, Groups: 8, Heads: 32, From: 0, Queries: 2048, Positions: 2048}, {Prefix: "layers.17.", Layer: 17, Groups: 8, Heads: 32, From: 0, Queries: 2048, Positions: 2048}}, nil
}

// JobAttention implements dashboard.Cluster.
func (f *Fake) JobAttention(_ context.Context, look dashboard.Look) (*dashboard.Attention, error) {
	return attention(look.Query, min(look.Positions, int(look.Query)+1), look.Group*4), nil
}

// CancelJob implements dashboard.Cluster.
func (f *Fake) CancelJob(context.Context, string) error { return nil }

// DropSession implements dashboard.Cluster.
func (f *Fake) DropSession(context.Context, string) error { return nil }
