package drivers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/tensor"
)

// layers is the one layer that sessions have: several groups, so that several workers have a part.
func (r *run) layers() []client.Layer {
	return []client.Layer{{Heads: groups, KVHeads: groups, HeadDim: r.config.Dim}}
}

const groups = 4

// rows are the keys and values [positions, groups, dim] of positions, which say their seeds.
func rows(seeds []uint32, dim int) (k, v []float32) {
	for _, s := range seeds {
		for g := range groups {
			k = append(k, float32(s)/(1<<20), float32(g), value(s, g), value(s+1, g))
			v = append(v, value(s, g), value(s, g+1), float32(s)/(1<<20), 1)
			for i := 4; i < dim; i++ {
				k = append(k, 0)
				v = append(v, value(s, i))
			}
		}
	}
	return k, v
}

// value is some number of a position and group.
func value(s uint32, g int) float32 {
	x := s*2654435761 + uint32(g)*40503
	return float32(int32(x^x>>15)%1000) / 1000
}

// queries are those of one token, [groups, dim].
func (d *driver) queries() []float32 {
	q := make([]float32, groups*d.config.Dim)
	for i := range q {
		q[i] = float32(d.rand.NormFloat64())
	}
	return q
}

// contexts computes what queries at the newest position see, over fresh pages.
func contexts(seeds []uint32, q []float32, dim int) ([]float32, error) {
	layout, err := attention.NewLayout(tensor.F32, dim, dim)
	if err != nil {
		return nil, err
	}
	k, v := rows(seeds, dim)
	out := make([]float32, len(q))
	for g := range groups {
		kv := attention.KV{Layout: layout, Len: len(seeds)}
		for at := 0; at < len(seeds); at += attention.PageLen {
			page := make([]byte, layout.PageBytes())
			n := min(attention.PageLen, len(seeds)-at)
			var own attention.Rows
			for i := at; i < at+n; i++ {
				own.K = append(own.K, floats(k[(i*groups+g)*dim:][:dim])...)
				own.V = append(own.V, floats(v[(i*groups+g)*dim:][:dim])...)
			}
			if err := layout.Write(page, 0, n, own); err != nil {
				return nil, err
			}
			kv.Pages = append(kv.Pages, page)
		}
		opts := attention.DefaultOptions(dim)
		opts.Causal = true
		query := attention.Query{Q: q[g*dim:][:dim], Tokens: 1, Heads: 1, FirstHead: g, Offset: int64(len(seeds) - 1)}
		one := attention.Output{Context: out[g*dim:][:dim], LSE: make([]float32, 1)}
		if err := attention.Attend(context.Background(), 1, kv, query, opts, one); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func floats(x []float32) []byte {
	b := make([]byte, 4*len(x))
	_ = tensor.Narrow(b, x, tensor.F32) // lengths match
	return b
}

// read returns the seeds of a session's positions, which must be the same in all groups.
func (d *driver) read(ctx context.Context, s *client.Session) ([]uint32, error) {
	n := s.Len()
	if n == 0 {
		return nil, nil
	}
	seeds, dim := make([][]uint32, groups), d.config.Dim
	err := s.Export(ctx, 0, 0, n, func(group, position, positions int, rows client.Rows) error {
		k := make([]float32, positions*dim)
		if err := tensor.Widen(k, rows.K, tensor.F32); err != nil {
			return err
		}
		for i := range positions {
			seeds[group] = append(seeds[group], uint32(k[i*dim]*(1<<20)))
		}
		return nil
	})
	if refused := new(client.SessionError); errors.As(err, &refused) && refused.Reason == client.ReasonInvalid {
		// An export is nobody's, so that it may find the positions gone that another driver has taken back.
		if err := d.attend(ctx, s, make([]uint32, n)); err != nil && !errors.As(err, new(wrong)) {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	// That the groups agree is checked once it is sure that nobody has changed the session meanwhile.
	for g := 1; g < groups; g++ {
		for i, seed := range seeds[g] {
			if seed != seeds[0][i] {
				if err := d.attend(ctx, s, seeds[0]); err != nil && !errors.As(err, new(wrong)) {
					return nil, err
				}
				return nil, wrong{fmt.Errorf("session %s is a mixture: group 0 has %v, group %d %v", d.book.id, seeds[0], g, seeds[g])}
			}
		}
	}
	return seeds[0], nil
}

// snapshot has a snapshot written of a session that somebody else drives, and looks at what is restored of it.
func (d *driver) snapshot(ctx context.Context) error {
	promised, began, call := d.book.promised(), time.Now(), d.book.now()
	one, cancel := d.deadline(ctx)
	defer cancel()
	var b bytes.Buffer
	if _, err := d.client.SnapshotSession(one, d.book.id, &b, nil); err != nil {
		return err
	}
	written := d.book.now()
	since := d.losses.tick()
	s, err := d.client.RestoreSession(ctx, &b, client.RestoreOptions{Direct: d.direct})
	if err != nil {
		return d.other(err, since)
	}
	defer d.drop(ctx, s)
	seeds, err := d.read(ctx, s)
	if err != nil {
		return d.other(err, since)
	}
	d.tally.snapshots.Add(1)
	if err := d.heeded(ctx, "a snapshot", began, seeds, func() error { return d.book.check("a snapshot", seeds, promised) }); err != nil {
		return err
	}
	d.book.showed(call, written, newest(seeds))
	return d.other(d.attend(ctx, s, seeds), since)
}
