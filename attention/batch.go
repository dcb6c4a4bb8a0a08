package attention

import (
	"context"
	"fmt"
	"slices"
)

// batch is one AttendAll: its calls, whose memory is kept from batch to batch, and the tasks that are shared out together.
type batch struct {
	limits
	calls []*call // [n], and others for larger batches
	n     int
	// The calls [from, from + len(ends)) are shared out. ends counts their tasks: those up to each call, and its own.
	from int
	ends []int
}

// finePieces is how many tasks a thread should have at least: a block of rows that is more work than that allows is cut
// into splits, if it has several.
const finePieces = 8

// take takes up the items.
func (b *batch) take(l limits, items []Item) error {
	b.limits, b.n = l, len(items)
	for len(b.calls) < len(items) {
		b.calls = append(b.calls, new(call))
	}
	for i := range items {
		c, in := b.calls[i], &items[i]
		c.limits, c.kv, c.q, c.opts, c.out, c.apart = l, in.KV, in.Query, in.Options, in.Output, in.Apart
		if err := c.check(); err != nil {
			return &ItemError{Item: i, Err: fmt.Errorf("attend: %w", err)}
		}
	}
	return nil
}

// forget drops what belongs to the caller.
func (b *batch) forget() {
	for _, c := range b.calls[:b.n] {
		c.kv, c.q, c.opts, c.out, c.apart, c.firstError = KV{}, Query{}, Options{}, Output{}, nil, nil
	}
}

// failure returns the error of the first call with a row that has no finite answer.
func (b *batch) failure() error {
	for i, c := range b.calls[:b.n] {
		if c.firstError != nil {
			return &ItemError{Item: i, Err: c.firstError}
		}
	}
	return nil
}

// run cuts the calls into tasks and shares them out, all at once if there is room for the parts of their splits.
func (b *batch) run(ctx context.Context, t *Thread) error {
	threads, total := t.pool.threads, 0.0
	for _, c := range b.calls[:b.n] {
		c.size, c.cut = min(c.rows(), c.mostRows()), false
		total += c.work(c.rows())
	}
	helped := threads > 1 && total >= float64(b.alone)
	if helped {
		b.cut(threads, total)
	}
	for b.from = 0; b.from < b.n; b.from += len(b.ends) {
		c := b.calls[b.from]
		wave := max(b.room/c.splitBytes(), threads)
		if !c.cut || wave >= c.splits() {
			if err := b.share(ctx, t, helped); err != nil {
				return err
			}
			continue
		}
		for first := 0; first < c.splits(); first += wave {
			c.begin(first, min(wave, c.splits()-first))
			b.ends = append(b.ends[:0], c.tasks())
			if err := t.share(ctx, b, c.tasks(), helped); err != nil {
				return err
			}
		}
	}
	return nil
}

// share shares out the calls from b.from on, as many as there is room for, at least one.
func (b *batch) share(ctx context.Context, t *Thread, helped bool) error {
	tasks, room := 0, b.room
	b.ends = b.ends[:0]
	for _, c := range b.calls[b.from:b.n] {
		if c.cut {
			if room -= c.splits() * c.splitBytes(); room < 0 && len(b.ends) > 0 {
				break
			}
			c.begin(0, c.splits())
		}
		tasks += c.tasks()
		b.ends = append(b.ends, tasks)
	}
	return t.share(ctx, b, tasks, helped)
}

// cut cuts into splits the blocks that are too much work for one task, and rows only if there is little else to cut: then
// several threads read the same pages.
func (b *batch) cut(threads int, total float64) {
	calls := b.calls[:b.n]
	tasks := 0
	for _, c := range calls {
		c.cut = c.apart == nil && c.splits() > 1 && c.work(c.size)*finePieces*float64(threads) > total
		c.first, c.wave = 0, c.splits()
		tasks += c.tasks()
	}
	if 2*tasks > threads {
		return
	}
	for _, c := range calls {
		c.size = min(c.size, (c.rows()*tasks+threads-1)/threads)
	}
}

func (b *batch) task(ctx context.Context, t *Thread, i int) error {
	k, _ := slices.BinarySearch(b.ends, i+1)
	if k > 0 {
		i -= b.ends[k-1]
	}
	return b.calls[b.from+k].task(ctx, t, i)
}
