package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"headwater.example/internal/localcluster"
	"headwater.example/internal/testkit/cut"
)

const (
	// afterKill is how long a worker that was killed stays away, and standstill how long one hangs or is cut off.
	afterKill  = time.Second
	standstill = 3 * time.Second
)

// fault is one kind of fault: it is brought about, lasts, and ends.
type fault struct {
	name   string
	direct bool
	begin  func(l *load, worker int) error
	lasts  time.Duration
	end    func(ctx context.Context, l *load, worker int) error
}

// pauses brings faults about, one worker after the other, and returns the p99 over the longest gaps of all sessions. Copies are made
// again at the rate that is the default: without a bound they take the two cores from the sessions, and the gaps are theirs.
func (f *figures) pauses(ctx context.Context, one fault, kills int) (_ []float64, err error) {
	l, err := f.startLoad(ctx, localcluster.Options{}, one.direct)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.end(ctx)) }()
	l.walk(ctx)
	if err := l.steady(ctx); err != nil {
		return nil, err
	}
	var all []float64
	for i := range kills {
		victim := i % l.Workers()
		began := time.Now()
		if err := one.begin(l, victim); err != nil {
			return nil, err
		}
		pause(ctx, one.lasts)
		over := time.Now()
		if err := one.end(ctx, l, victim); err != nil {
			return nil, err
		}
		if err := l.whole(ctx); err != nil {
			return nil, fmt.Errorf("fault %d: %w", i, err)
		}
		first, err := l.gaps(began, over)
		if err != nil {
			return nil, err
		}
		whole, err := l.gaps(began, time.Now())
		if err != nil {
			return nil, err
		}
		for j, gap := range whole {
			all = append(all, milliseconds(gap.lasts))
			f.add(one.name, milliseconds(gap.lasts), map[string]float64{
				"fault": float64(i), "session": float64(j), "after_ms": milliseconds(gap.began.Sub(began)), "until_over_ms": milliseconds(first[j].lasts), "whole_after_s": time.Since(began).Seconds(),
			})
		}
		pause(ctx, 200*time.Millisecond)
	}
	fmt.Fprintf(os.Stderr, "%s: %d faults, largest %.0f ms\n", one.name, kills, maximum(all))
	return []float64{p99(all)}, nil
}

func maximum(all []float64) (most float64) {
	for _, x := range all {
		most = max(most, x)
	}
	return most
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }

func restart(ctx context.Context, l *load, worker int) error {
	if err := l.RestartWorker(ctx, worker); err != nil {
		return err
	}
	return l.AwaitWorkers(ctx)
}

func killPause(ctx context.Context, f *figures) ([]float64, error) {
	return f.pauses(ctx, fault{
		name: "kill_pause_ms", direct: true, lasts: afterKill, end: restart,
		begin: func(l *load, worker int) error { l.Kill(worker); return nil },
	}, f.kills)
}

func hangPause(ctx context.Context, f *figures) ([]float64, error) {
	return f.pauses(ctx, fault{
		name: "hang_pause_ms", direct: true, lasts: standstill,
		begin: func(l *load, worker int) error { return syscall.Kill(l.Process(worker), syscall.SIGSTOP) },
		end: func(ctx context.Context, l *load, worker int) error {
			if err := syscall.Kill(l.Process(worker), syscall.SIGCONT); err != nil {
				return err
			}
			return l.AwaitWorkers(ctx)
		},
	}, f.kills)
}

func blackholePause(ctx context.Context, f *figures) ([]float64, error) {
	if f.network == nil {
		fmt.Fprintln(os.Stderr, "blackhole_pause_ms: skipped, packets can't be dropped here")
		return nil, nil
	}
	return f.pauses(ctx, fault{
		name: "blackhole_pause_ms", direct: true, lasts: standstill,
		begin: func(l *load, worker int) error {
			service, gossip := l.Addresses(worker)
			return f.network.Drop(cut.Both, service, gossip)
		},
		end: func(ctx context.Context, l *load, _ int) error {
			return errors.Join(f.network.Heal(), l.AwaitWorkers(ctx))
		},
	}, f.kills)
}

func downKillPause(ctx context.Context, f *figures) ([]float64, error) {
	return f.pauses(ctx, fault{
		name: "coord_down_kill_ms", direct: true, lasts: afterKill,
		begin: func(l *load, worker int) error {
			l.KillCoordinator()
			l.Kill(worker)
			return nil
		},
		end: func(ctx context.Context, l *load, worker int) error {
			if err := l.RestartCoordinator(ctx); err != nil {
				return err
			}
			return restart(ctx, l, worker)
		},
	}, f.kills)
}

// restartPause kills the coordinator and starts it again at once.
func restartPause(ctx context.Context, f *figures) ([]float64, error) {
	return f.pauses(ctx, fault{
		name: "coord_restart_ms", lasts: afterKill,
		begin: func(l *load, _ int) error {
			l.KillCoordinator()
			return l.RestartCoordinator(ctx)
		},
		end: func(ctx context.Context, l *load, _ int) error { return l.AwaitWorkers(ctx) },
	}, f.kills)
}
