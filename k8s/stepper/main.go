// Command stepper steps sessions of a cluster without a pause, half of them directly, and compares every context with the bits that
// this machine computes. Each line on its standard input ends a window, of which it prints one line of JSON: how many tokens were
// done, how many calls failed, and the longest gap between two tokens of one session. It ends with its input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/tensor"
)

// What sessions are. Keys and values are functions of layer and position, so that one computation tells what all have to see.
const (
	layers    = 2
	kvHeads   = 6
	groupSize = 2
	headDim   = 64
	positions = 512
	growth    = 256 // positions more that a session may have before it is cut to positions
	heads     = kvHeads * groupSize
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "stepper:", err)
		os.Exit(1)
	}
}

func run() error {
	coordinator := flag.String("coordinator", "", "`host:port` of the coordinator")
	tls := flag.String("tls-dir", "", "`folder` of the client's certificate")
	token := flag.String("token-file", "", "`file` of the tenant's token")
	sessions := flag.Int("sessions", 4, "sessions")
	attach := flag.String("attach", "", "`id` of the one session to go on with, which another stepper began")
	flag.Parse()
	want, err := expected()
	if err != nil {
		return err
	}
	c, err := client.DialWith(*coordinator, client.DialOptions{TLSDir: *tls, TokenFile: *token})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var all []*walker
	begin := func(s *client.Session) {
		all = append(all, &walker{session: s, want: want})
		fmt.Printf("{\"session\":%q}\n", s.ID())
	}
	if *attach != "" {
		s, err := attached(ctx, c, *attach)
		if err != nil {
			return err
		}
		begin(s)
		*sessions = 0
	}
	for i := range *sessions {
		s, err := opened(ctx, c, i%2 == 1)
		if err != nil {
			return err
		}
		begin(s)
	}
	var walking sync.WaitGroup
	for _, w := range all {
		w.last = time.Now()
		walking.Go(func() { w.walk(ctx) })
	}
	windows := bufio.NewScanner(os.Stdin)
	for windows.Scan() {
		if err := json.NewEncoder(os.Stdout).Encode(window(all)); err != nil {
			return err
		}
	}
	cancel()
	walking.Wait()
	var errs []error
	for _, w := range all {
		if w.failure != nil {
			errs = append(errs, fmt.Errorf("session %s: %w", w.session.ID(), w.failure))
		}
		errs = append(errs, w.session.Close())
	}
	return errors.Join(append(errs, windows.Err())...)
}

// opened returns a session of its own with the first positions.
func opened(ctx context.Context, c *client.Client, direct bool) (*client.Session, error) {
	shape := client.Layer{Heads: heads, KVHeads: kvHeads, HeadDim: headDim, Storage: tensor.F32}
	s, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{shape, shape}, Direct: direct, Name: "stepper"})
	if err != nil {
		return nil, err
	}
	for layer := range layers {
		k, v := rows(layer, 0, positions)
		if err := s.Step(ctx, layer, nil, k, v, nil, nil); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// attached returns a session that is there, to which nothing but its positions is known.
func attached(ctx context.Context, c *client.Client, id string) (*client.Session, error) {
	parsed, err := client.ParseSessionID(id)
	if err != nil {
		return nil, err
	}
	s, err := c.Attach(ctx, parsed, client.AttachOptions{})
	if err == nil && s.Len() < positions {
		err = fmt.Errorf("session %s has %d positions, fewer than %d", id, s.Len(), positions)
	}
	return s, err
}

// report is one window.
type report struct {
	Tokens int     `json:"tokens"`
	Errors int     `json:"errors"`
	GapMS  float64 `json:"gap_ms"`
	Ended  int     `json:"ended"` // sessions that go on no more
	Said   string  `json:"said,omitempty"`
}

func window(all []*walker) (r report) {
	for _, w := range all {
		w.mu.Lock()
		r.Tokens += w.tokens
		r.Errors += w.errors
		w.gap = max(w.gap, time.Since(w.last))
		r.GapMS = max(r.GapMS, float64(w.gap)/float64(time.Millisecond))
		if w.failure != nil {
			r.Ended++
		}
		if w.said != "" {
			r.Said = w.said
		}
		w.tokens, w.errors, w.gap, w.said = 0, 0, 0, ""
		w.mu.Unlock()
	}
	return r
}

// walker steps one session as a model does: a token after the other, layer by layer.
type walker struct {
	session *client.Session
	want    [layers][growth][]float32

	mu             sync.Mutex // guards what follows
	tokens, errors int
	last           time.Time // when the newest token was done
	gap            time.Duration
	said           string
	failure        error // its end
}

func (w *walker) walk(ctx context.Context) {
	for ctx.Err() == nil {
		err := w.token(ctx)
		if ctx.Err() != nil {
			return
		}
		w.mu.Lock()
		if now := time.Now(); err == nil {
			w.tokens++
			w.gap = max(w.gap, now.Sub(w.last))
			w.last = now
		} else {
			w.errors++
			w.said = err.Error()
			if !errors.Is(err, client.ErrTryAgain) {
				w.failure = err
			}
		}
		ended := w.failure != nil
		w.mu.Unlock()
		if ended {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond)
		}
	}
}

// token does one token. After an error the layers that have it are not asked again.
func (w *walker) token(ctx context.Context) error {
	s := w.session
	if s.Len() >= positions+growth {
		return s.Truncate(ctx, positions)
	}
	at := s.Len()
	for layer := range layers {
		if s.LayerLen(layer) > at {
			continue
		}
		k, v := rows(layer, at, 1)
		got := make([]float32, heads*headDim)
		if err := s.Step(ctx, layer, query(layer, at), k, v, got, nil); err != nil {
			return err
		}
		for i, want := range w.want[layer][at-positions] {
			if math.Float32bits(got[i]) != math.Float32bits(want) {
				return fmt.Errorf("layer %d, position %d: element %d of the context is %x, not %x", layer, at, i, got[i], want)
			}
		}
	}
	return nil
}

// number is element i of a tensor of a layer at a position.
func number(layer, position, tensor, i int) float32 {
	x := uint64(layer*7919+position)*2654435761 + uint64(tensor*104729+i)*40503
	x ^= x >> 13
	x *= 0x9e3779b97f4a7c15
	return float32(int(x>>40)-1<<23) / (1 << 23)
}

func query(layer, position int) []float32 {
	q := make([]float32, heads*headDim)
	for i := range q {
		q[i] = number(layer, position, 0, i)
	}
	return q
}

// rows are keys and values [n, kvHeads, headDim] from a position on.
func rows(layer, from, n int) (k, v []float32) {
	for p := from; p < from+n; p++ {
		for i := range kvHeads * headDim {
			k, v = append(k, number(layer, p, 1, i)), append(v, number(layer, p, 2, i))
		}
	}
	return k, v
}

// expected are the contexts that each position after positions has to see, by this machine's own kernel.
func expected() (want [layers][growth][]float32, err error) {
	layout, err := attention.NewLayout(tensor.F32, headDim, headDim)
	if err != nil {
		return want, err
	}
	opts := attention.DefaultOptions(headDim)
	for layer := range layers {
		k, v := rows(layer, 0, positions+growth)
		for group := range kvHeads {
			kv := attention.KV{Layout: layout}
			for p := range positions + growth {
				if p%attention.PageLen == 0 {
					kv.Pages = append(kv.Pages, make([]byte, layout.PageBytes()))
				}
				at := (p*kvHeads + group) * headDim
				if err := layout.Write(kv.Pages[p/attention.PageLen], p%attention.PageLen, 1, attention.Rows{K: bytesOf(k[at : at+headDim]), V: bytesOf(v[at : at+headDim])}); err != nil {
					return want, err
				}
				if kv.Len = p + 1; p < positions {
					continue
				}
				out := attention.Output{Context: make([]float32, groupSize*headDim), LSE: make([]float32, groupSize)}
				q := query(layer, p)[group*groupSize*headDim:][:groupSize*headDim]
				if err := attention.Attend(context.Background(), 1, kv, attention.Query{Q: q, Tokens: 1, Heads: groupSize, Offset: int64(p)}, opts, out); err != nil {
					return want, err
				}
				want[layer][p-positions] = append(want[layer][p-positions], out.Context...)
			}
		}
	}
	return want, nil
}

func bytesOf(x []float32) []byte {
	b := make([]byte, 4*len(x))
	if err := tensor.Narrow(b, x, tensor.F32); err != nil {
		panic(err) // float32 is what it is
	}
	return b
}
