package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/tensor"
)

// What sessions are.
const (
	sessions  = 8
	positions = 4096
	growth    = 256 // positions more that a session may have before it is cut to positions
	layers    = 2
	heads     = 32
	kvHeads   = 8
	headDim   = 128
)

// load is a cluster whose sessions are stepped.
type load struct {
	*localcluster.Cluster
	client  *client.Client
	walkers []*walker
	stop    context.CancelFunc
	walking sync.WaitGroup
}

// walker steps one session as a model does: a token after the other, layer by layer.
type walker struct {
	session *client.Session
	patient bool // errors that say try again are counted and not its end

	mu     sync.Mutex
	tokens []time.Time // when each was done
	errors int
	err    error // its end
}

// startLoad starts a cluster with sessions, which are stepped once walk is called.
func (f *figures) startLoad(ctx context.Context, o localcluster.Options, direct bool) (_ *load, err error) {
	l, err := f.start(ctx, o)
	if err != nil {
		return nil, err
	}
	for range sessions {
		s, err := l.open(ctx, client.SessionOptions{Direct: direct}, positions)
		if err != nil {
			return nil, errors.Join(err, l.end(ctx))
		}
		l.walkers = append(l.walkers, &walker{session: s, patient: !direct})
	}
	return l, nil
}

// start starts a cluster without sessions: three workers and a copy of each shard, unless it is said how many workers.
func (f *figures) start(ctx context.Context, o localcluster.Options) (*load, error) {
	program, err := filepath.Abs(filepath.Join(f.bin, "coord"))
	if err != nil {
		return nil, err
	}
	if o.Workers == 0 {
		o.Workers, o.Replicas = 3, 1
	}
	o.Threads, o.Memory, o.Command, o.Log = 1, 2<<30, []string{program}, f.log
	cluster, err := localcluster.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	l := &load{Cluster: cluster, stop: func() {}}
	if l.client, err = cluster.Dial(); err != nil {
		return nil, errors.Join(err, l.end(ctx))
	}
	return l, nil
}

// open opens a session and fills it.
func (l *load) open(ctx context.Context, o client.SessionOptions, positions int) (*client.Session, error) {
	shape := client.Layer{Heads: heads, KVHeads: kvHeads, HeadDim: headDim, Storage: tensor.BF16}
	o.Layers, o.Codec = []client.Layer{shape, shape}, client.Raw
	s, err := l.client.OpenSession(ctx, o)
	if err != nil {
		return nil, err
	}
	const piece = 1024
	m := newModel(piece)
	for layer := range layers {
		for done := 0; done < positions; done += piece {
			if err := s.Do(ctx, m.step(s, layer, min(piece, positions-done), false)); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// walk steps all sessions until end is called.
func (l *load) walk(ctx context.Context) {
	ctx, l.stop = context.WithCancel(ctx)
	for _, w := range l.walkers {
		l.walking.Go(func() { w.walk(ctx) })
	}
}

// end ends the sessions and the cluster.
func (l *load) end(ctx context.Context) error {
	l.stop()
	l.walking.Wait()
	var errs []error
	if l.client != nil {
		errs = append(errs, l.client.Close())
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return errors.Join(append(errs, l.Stop(ctx))...)
}

func (w *walker) walk(ctx context.Context) {
	m := newModel(1)
	for ctx.Err() == nil {
		err := w.token(ctx, m)
		w.mu.Lock()
		switch {
		case err == nil:
			w.tokens = append(w.tokens, time.Now())
		case ctx.Err() != nil:
		case w.patient && errors.Is(err, client.ErrTryAgain):
			w.errors++
		default:
			w.err = err
		}
		failed := w.err != nil
		w.mu.Unlock()
		if failed {
			return
		}
		if err != nil {
			pause(ctx, time.Millisecond)
		}
	}
}

// token does one token. After an error the layers that have it are not asked again.
func (w *walker) token(ctx context.Context, m *model) error {
	s := w.session
	if s.Len() >= positions+growth {
		return s.Truncate(ctx, positions)
	}
	for layer := range layers {
		if s.LayerLen(layer) > s.Len() {
			continue
		}
		if err := s.Do(ctx, m.step(s, layer, 1, true)); err != nil {
			return err
		}
	}
	return nil
}

// failed is the error of a session that was ended by one.
func (l *load) failed() error {
	for _, w := range l.walkers {
		w.mu.Lock()
		err := w.err
		w.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// gap is a time between two tokens of a session.
type gap struct {
	began time.Time
	lasts time.Duration
}

// gaps returns, of each session, the longest time between two tokens that began before until and ended after from.
func (l *load) gaps(from, until time.Time) ([]gap, error) {
	var all []gap
	for _, w := range l.walkers {
		w.mu.Lock()
		var longest gap
		for i := 1; i < len(w.tokens); i++ {
			if lasts := w.tokens[i].Sub(w.tokens[i-1]); w.tokens[i].After(from) && w.tokens[i-1].Before(until) && lasts > longest.lasts {
				longest = gap{w.tokens[i-1], lasts}
			}
		}
		w.mu.Unlock()
		if longest.lasts == 0 {
			return nil, fmt.Errorf("session %s had no tokens", w.session.ID())
		}
		all = append(all, longest)
	}
	return all, nil
}

// between returns the times of all tokens of all sessions in a while.
func (l *load) between(from, until time.Time) (took []float64) {
	for _, w := range l.walkers {
		w.mu.Lock()
		for i := 1; i < len(w.tokens); i++ {
			if w.tokens[i-1].After(from) && w.tokens[i].Before(until) {
				took = append(took, w.tokens[i].Sub(w.tokens[i-1]).Seconds())
			}
		}
		w.mu.Unlock()
	}
	return took
}

// whole waits until each shard of each session has its copy, and a token more was done of each.
func (l *load) whole(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, w := range l.walkers {
		for {
			found, err := l.client.FindSession(ctx, w.session.ID())
			if err == nil && shards(found) == 2*layers*kvHeads {
				break
			}
			if err := l.failed(); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return fmt.Errorf("session %s lacks copies: %d shards, %w", w.session.ID(), shards(found), errors.Join(err, ctx.Err()))
			}
			pause(ctx, 20*time.Millisecond)
		}
	}
	return l.steady(ctx)
}

// steady waits until each session has done a token more.
func (l *load) steady(ctx context.Context) error {
	began := time.Now()
	for _, w := range l.walkers {
		for {
			w.mu.Lock()
			done := len(w.tokens) > 0 && w.tokens[len(w.tokens)-1].After(began)
			w.mu.Unlock()
			if done {
				break
			}
			if err := l.failed(); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			pause(ctx, time.Millisecond)
		}
	}
	return nil
}

// shards is how many shards the holders of a session have.
func shards(s *client.SessionState) (n int) {
	if s == nil {
		return 0
	}
	for _, h := range s.Holders {
		for _, l := range h.Layers {
			n += len(l.Groups)
		}
	}
	return n
}

// pause waits for a time, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// model is random tensors of so many tokens, of which steps take what they need.
type model struct {
	q, k, v, context, lse []float32
}

func newModel(tokens int) *model {
	rng := rand.New(rand.NewPCG(1, 2))
	return &model{
		q: random(tokens*heads*headDim, rng), k: random(tokens*kvHeads*headDim, rng), v: random(tokens*kvHeads*headDim, rng),
		context: make([]float32, tokens*heads*headDim), lse: make([]float32, tokens*heads),
	}
}

func random(n int, rng *rand.Rand) []float32 {
	all := make([]float32, n)
	for i := range all {
		all[i] = float32(rng.NormFloat64())
	}
	return all
}

// step is one of n tokens; where nothing attends, they are only appended.
func (m *model) step(s *client.Session, layer, n int, attends bool) *client.Step {
	step := &client.Step{Session: s, Layer: layer, K: m.k[:n*kvHeads*headDim], V: m.v[:n*kvHeads*headDim]}
	if attends {
		step.Q, step.Context, step.LSE = m.q[:n*heads*headDim], m.context[:n*heads*headDim], m.lse[:n*heads]
	}
	return step
}
