package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

const (
	// A worker stands still for stall, once in each stallEvery: ten times a minute.
	stall      = 200 * time.Millisecond
	stallEvery = 6 * time.Second
	// A round has so many stalls, and there are hedgeRounds of each kind.
	stalls      = 6
	hedgeRounds = 2
	// readEvery is when each session is asked again, however long the answer before took.
	readEvery = 50 * time.Millisecond
)

// hedgeTail measures attends of sessions while one of three workers stands still ten times a minute, with those that are late asked of
// another holder as well and without. The sessions are asked at fixed times, and an answer's time is from then on, so that one which
// holds up others counts as often as it does so. They append nothing: an append waits for all holders.
func hedgeTail(ctx context.Context, f *figures) (_ []float64, err error) {
	l, err := f.startLoad(ctx, localcluster.Options{}, true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.end(ctx)) }()
	var took [2][]float64 // without, with
	var asked client.Attends
	for round := range 2 * hedgeRounds {
		with := round % 2
		c, err := client.DialWith(l.Address(), client.DialOptions{HedgeShare: []float64{-1, 0}[with]})
		if err != nil {
			return nil, err
		}
		one, err := l.readRound(ctx, c)
		if at := c.Attends(); with == 1 {
			asked.Asked, asked.Hedged, asked.Won = asked.Asked+at.Asked, asked.Hedged+at.Hedged, asked.Won+at.Won
		}
		if err = errors.Join(err, c.Close()); err != nil {
			return nil, err
		}
		took[with] = append(took[with], one...)
		f.add("hedge_p99", p99(one), map[string]float64{"hedged": float64(with), "attends": float64(len(one)), "p50_seconds": middle(one)})
	}
	fmt.Fprintf(os.Stderr, "hedge: p99 %.1f ms with, %.1f ms without, medians %.1f and %.1f ms; of %d attends %d were asked twice, %d answered by the other first\n",
		1000*p99(took[1]), 1000*p99(took[0]), 1000*middle(took[1]), 1000*middle(took[0]), asked.Asked, asked.Hedged, asked.Won)
	return []float64{p99(took[1]) / p99(took[0]), float64(asked.Hedged) / float64(max(asked.Asked, 1))}, nil
}

// readRound has a client read all sessions while workers stand still, one after the other, and returns how long each attend took.
func (l *load) readRound(ctx context.Context, c *client.Client) (took []float64, err error) {
	readers := make([]reader, len(l.walkers))
	for i, w := range l.walkers {
		if readers[i].session, err = attach(ctx, c, w.session); err != nil {
			return nil, err
		}
		if err := readers[i].read(ctx, time.Now(), 100, 0); err != nil { // so that it is known how quick the workers are
			return nil, err
		}
		readers[i].took = nil
	}
	var reading sync.WaitGroup
	began := time.Now()
	for i := range readers {
		reading.Go(func() {
			readers[i].err = readers[i].read(ctx, began.Add(readEvery*time.Duration(i)/sessions), int(stalls*stallEvery/readEvery), readEvery)
		})
	}
	for i := range stalls {
		pause(ctx, stallEvery-stall)
		victim := l.Process(i % l.Workers())
		if err = syscall.Kill(victim, syscall.SIGSTOP); err != nil {
			break
		}
		pause(ctx, stall)
		if err = syscall.Kill(victim, syscall.SIGCONT); err != nil {
			break
		}
	}
	reading.Wait()
	for i := range readers {
		err = errors.Join(err, readers[i].err)
		took = append(took, readers[i].took...)
		l.walkers[i].session, err = readers[i].session, errors.Join(err, ctx.Err())
	}
	return took, err
}

// attach continues a session with another client.
func attach(ctx context.Context, c *client.Client, s *client.Session) (*client.Session, error) {
	receipt := s.Receipt()
	return c.Attach(ctx, s.ID(), client.AttachOptions{Receipt: &receipt, Direct: true, Codec: client.Raw})
}

// reader attends over one session.
type reader struct {
	session *client.Session
	took    []float64
	err     error
}

// read attends n times, at fixed times from began on.
func (r *reader) read(ctx context.Context, began time.Time, n int, every time.Duration) error {
	m := newModel(1)
	for i := range n {
		due := began.Add(time.Duration(i) * every)
		pause(ctx, time.Until(due))
		step := &client.Step{Session: r.session, Layer: i % layers, Q: m.q, Context: m.context, LSE: m.lse}
		if err := r.session.Do(ctx, step); err != nil {
			return err
		}
		r.took = append(r.took, time.Since(due).Seconds())
	}
	return nil
}
