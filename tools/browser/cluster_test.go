package browser

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// start starts a cluster of processes with a dashboard, until the test ends.
func start(t *testing.T, workers int, more ...string) (*localcluster.Cluster, *client.Client) {
	t.Helper()
	program := os.Getenv("HEADWATER_COORD")
	if program == "" {
		t.Skip("HEADWATER_COORD names no program: make test-browser builds it")
	}
	admin := []string{"--admin", "127.0.0.1:0"}
	c, err := localcluster.Start(t.Context(), localcluster.Options{
		Workers: workers, Memory: 64 << 20, Threads: 1, Command: []string{program}, CoordinatorArgs: append(admin, more...), WorkerArgs: admin, DataDir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	connection, err := client.Dial(c.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	return c, connection
}

// generating lets a session grow by a token at a time until the test ends.
func generating(t *testing.T, s *client.Session, layers []client.Layer) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	t.Cleanup(ended.Wait)
	t.Cleanup(stop)
	rng := rand.New(rand.NewPCG(1, 1))
	floats := func(n int) []float32 {
		f := make([]float32, n)
		for i := range f {
			f[i] = float32(rng.NormFloat64())
		}
		return f
	}
	ended.Go(func() {
		for ctx.Err() == nil {
			for i, l := range layers {
				step := &client.Step{
					Layer: i, Q: floats(l.Heads * l.HeadDim), K: floats(l.KVHeads * l.HeadDim), V: floats(l.KVHeads * l.HeadDim),
					Context: make([]float32, l.Heads*l.HeadDim), LSE: make([]float32, l.Heads), Tokens: []uint32{uint32(s.Len())},
				}
				if err := s.Do(ctx, step); err != nil {
					if ctx.Err() == nil && !errors.Is(err, client.ErrTryAgain) {
						t.Error(err)
					}
					return
				}
			}
			if s.Len() >= 4000 {
				if err := s.Truncate(ctx, 64); err != nil {
					return
				}
			}
		}
	})
}

var model = []client.Layer{{Heads: 8, KVHeads: 4, HeadDim: 16}, {Heads: 8, KVHeads: 4, HeadDim: 16}, {Heads: 8, KVHeads: 4, HeadDim: 16}}

func TestAKilledWorkerLeavesTheMap(t *testing.T) {
	c, cl := start(t, 3)
	if _, err := cl.OpenSession(t.Context(), client.SessionOptions{Name: "seen", Layers: model}); err != nil {
		t.Fatal(err)
	}
	p := open(t, "http://"+c.Admin(-1), View{1024, 768, false})
	p.until(t, `document.querySelectorAll("#map td").length === 12 && document.querySelectorAll("#map td.lacks").length === 0`)
	p.until(t, `document.querySelector("#legend").children.length === 3`)
	c.Kill(1)
	p.until(t, `document.querySelectorAll("#map td.lacks").length === 4 && document.querySelector("#legend").children.length === 2`)
	p.until(t, fmt.Sprintf(`[...document.querySelectorAll("#events li")].some(li => li.textContent.includes("worker %s is gone, and with it its part of 1 session"))`, c.Name(1)))
	p.until(t, `document.querySelector("#map-note").textContent.includes("4 shards lack a holder")`)
	p.shoot(t, "killed")
	p.readable(t)
}

// TestUnderReplicatedShardsAreShown: with one of two workers gone, each shard lacks its copy.
func TestUnderReplicatedShardsAreShown(t *testing.T) {
	c, cl := start(t, 2)
	if _, err := cl.OpenSession(t.Context(), client.SessionOptions{Name: "copied", Layers: model, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	p := open(t, "http://"+c.Admin(-1), View{1024, 768, true})
	total := `[...document.querySelectorAll("#totals div")].find(d => d.textContent.startsWith("under-replicated shards"))?.lastChild`
	p.until(t, fmt.Sprintf(`%s?.textContent === "0" && !%s.matches(".bad")`, total, total))
	p.until(t, `document.querySelectorAll("#map td").length === 12 && document.querySelectorAll("#map td.lacks").length === 0`)
	c.Kill(1)
	p.until(t, fmt.Sprintf(`%s.textContent === "12" && %s.matches(".bad")`, total, total))
	p.until(t, `document.querySelectorAll("#map td.lacks").length === 12 && document.querySelector("#map-note").matches(".bad")`)
	p.until(t, `[...document.querySelectorAll("#events li")].some(li => li.textContent.includes("under-replicated: 12 shards"))`)
	p.shoot(t, "under-replicated")
	p.readable(t)
}

func TestADeadCoordinatorIsSaid(t *testing.T) {
	c, _ := start(t, 1)
	p := open(t, "http://"+c.Admin(-1), View{1024, 768, false})
	p.until(t, `!document.body.classList.contains("stale")`)
	c.KillCoordinator()
	p.until(t, `document.body.classList.contains("stale") && /^not connected since \d\d:\d\d:\d\d$/.test(document.querySelector("#state").textContent)`)
	p.shoot(t, "dead")
	p.readable(t)
}

// TestAttentionIsWatchedWhileAModelGenerates opens the view by keyboard and sees its weights move.
func TestAttentionIsWatchedWhileAModelGenerates(t *testing.T) {
	c, cl := start(t, 2)
	s, err := cl.OpenSession(t.Context(), client.SessionOptions{Name: "live", Layers: model})
	if err != nil {
		t.Fatal(err)
	}
	generating(t, s, model)
	p := open(t, "http://"+c.Admin(-1), View{1920, 1080, true})
	p.until(t, `document.querySelectorAll("#map td").length === 12`)
	eval[bool](t, p, `document.querySelector("#map td").focus(), true`)
	for _, key := range []string{kb.ArrowDown, kb.ArrowRight, kb.Enter} {
		if err := p.Press(key); err != nil {
			t.Fatal(err)
		}
	}
	p.until(t, `document.querySelector("#attention-of").textContent.endsWith("layer 1, group 1") && document.querySelectorAll("#heads li").length === 2`)
	if heads := eval[string](t, p, `[...document.querySelectorAll("#heads h3")].map(h => h.textContent).join()`); heads != "head 2,head 3" {
		t.Errorf("the rows are %s", heads)
	}
	before := eval[string](t, p, `document.querySelector("#attention-note").textContent`)
	p.until(t, fmt.Sprintf(`document.querySelector("#attention-note").textContent !== %q`, before))
	// Something is drawn, and each head's weights and what is before them make a whole.
	p.until(t, `[...document.querySelectorAll("#heads canvas")].every(c => c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some(x => x))`)
	p.shoot(t, "attention")
	p.readable(t)
}
