package bench

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"headwater.example/client"
)

// load makes tokens come at a fixed rate, each for the session whose turn it is. A token's latency counts from when it was
// to come: where a session is late, those that wait for it are late as well, and that is what a user of a loaded cluster
// sees. (Timing only from when a step is sent would leave out the waiting: coordinated omission.)
//
// Tokens come for Spend. Where the cluster can not keep up the load ends after as long again, and those that are not done by
// then count with how long they have waited until then, which is less than they would have.
func (b *bench) load(ctx context.Context) error {
	if err := b.open(ctx, b.Positions-1); err != nil {
		return err
	}
	b.attend(1)
	if err := b.pass(ctx); err != nil {
		return err
	}
	b.told("load")
	between := time.Duration(float64(time.Second) / b.Rate)
	count := max(int(b.Spend.Seconds()*b.Rate), 1)
	tasks, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	end := began.Add(2 * b.Spend)
	rows := make([]*Row, len(b.sessions))
	for i, step := range b.steps {
		rows[i] = &Row{Latencies: newHistogram()}
		tasks.Go(func() error {
			for n := i; n < count; n += len(b.steps) {
				due := began.Add(time.Duration(n) * between)
				if err := await(ctx, due); err != nil {
					return err
				}
				if late := time.Now(); late.After(end) {
					record(rows[i].Latencies, late.Sub(due))
					continue
				}
				for layer := range b.Layers {
					step.Layer = layer
					if err := client.Do(ctx, step); err != nil {
						return err
					}
				}
				record(rows[i].Latencies, time.Since(due))
				rows[i].Tokens++
			}
			return nil
		})
	}
	if err := tasks.Wait(); err != nil {
		return err
	}
	b.row.Elapsed = time.Since(began)
	for _, r := range rows {
		b.row.Latencies.Merge(r.Latencies)
		b.row.Tokens += r.Tokens
	}
	return nil
}

// await waits until a time.
func await(ctx context.Context, until time.Time) error {
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
