package plainholder

import (
	"context"
	"fmt"

	"headwater.example/attention"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// given is a payload: the queries of each group that is answered for, and the rows of each shard, of those positions that it stores.
type given struct {
	answered []int // indices of shards
	queries  map[int][]float32
	rows     []encoded
}

// encoded are rows in a step's encoding.
type encoded struct{ k, v, kScale, vScale []byte }

// cut takes a payload apart.
func cut(layer *shard.LayerSpec, numbers []uint32, m *session.Step, payload []byte) (*given, error) {
	p := &given{queries: map[int][]float32{}, rows: make([]encoded, len(numbers))}
	short := false
	take := func(n int) (b []byte) {
		if n > len(payload) {
			n, short = len(payload), true
		}
		b, payload = payload[:n], payload[n:]
		return b
	}
	if m.Attend > 0 {
		m.Answered(len(numbers), func(i int) { p.answered = append(p.answered, i) })
	}
	for _, i := range p.answered {
		if g := layer.GroupOf(int(numbers[i])); p.queries[g] == nil {
			p.queries[g] = floats(take(4 * int(m.Attend) * layer.GroupSize() * layer.HeadDim()))
		}
	}
	size, scale := 4, 0
	if m.Encoding != headwaterv1.StorageType_STORAGE_TYPE_F32 {
		size = layer.Storage().Size()
	}
	if m.Encoding == headwaterv1.StorageType_STORAGE_TYPE_I8 {
		scale = 4
	}
	for _, one := range []struct {
		of   func(*encoded) *[]byte
		each int
	}{
		{func(e *encoded) *[]byte { return &e.k }, layer.HeadDim() * size},
		{func(e *encoded) *[]byte { return &e.v }, layer.VDim() * size},
		{func(e *encoded) *[]byte { return &e.kScale }, scale},
		{func(e *encoded) *[]byte { return &e.vScale }, scale},
	} {
		for i, n := range numbers {
			*one.of(&p.rows[i]) = take(one.each * layer.Stored(int(n), int(m.Length), int(m.Append)))
		}
	}
	if short || len(payload) > 0 {
		return nil, fmt.Errorf("layer %d: the payload is too short, or %d bytes too long", m.Layer, len(payload))
	}
	return p, nil
}

// appended returns the shard with a step's positions.
func (r *rows) appended(m *session.Step, hash uint64, given *encoded) (*rows, *session.Error) {
	n, count := uint64(len(r.hashes)), int(m.Append)
	repeat := count > 0 && n == m.Length+uint64(m.Append)
	switch {
	case n < m.Length:
		err := refuse(behind, "layer %d has %d positions of %d", m.Layer, n, m.Length)
		err.Why.Length = n
		return nil, err
	case n > m.Length && !repeat:
		err := refuse(ahead, "layer %d has %d positions, more than %d", m.Layer, n, m.Length)
		err.Why.Length = n
		return nil, err
	case r.hash(int(m.Length)) != hash:
		return nil, refuse(different, "layer %d has other positions", m.Layer)
	}
	if count == 0 {
		return r, nil
	}
	next := r.clone(int(m.Length))
	if bad := next.add(m.Encoding, given); bad != nil {
		return nil, refuse(invalid, "%v", bad)
	}
	all := int(m.Length) + count
	if bad := next.chain(all); bad != nil {
		return nil, refuse(invalid, "%v", bad)
	}
	if repeat && next.hash(all) != r.hash(all) {
		return nil, refuse(different, "layer %d has other positions", m.Layer)
	}
	return next, nil
}

// add adds rows as they are stored.
func (r *rows) add(encoding headwaterv1.StorageType, given *encoded) (err error) {
	l := r.layer
	k, v, ks, vs := given.k, given.v, floats(given.kScale), floats(given.vScale)
	if encoding == headwaterv1.StorageType_STORAGE_TYPE_F32 {
		if k, ks, err = narrow(floats(k), l.HeadDim(), l.Storage()); err == nil {
			v, vs, err = narrow(floats(v), l.VDim(), l.Storage())
		}
		if err != nil {
			return err
		}
	}
	for _, stored := range [][]byte{k, v} {
		if i, x, ok := tensor.CheckFinite(stored, l.Storage(), false); !ok {
			return fmt.Errorf("element %d is %v", i, x)
		}
	}
	oldK, oldV := len(r.k), len(r.v)
	r.k, r.v, r.kScale, r.vScale = append(r.k, k...), append(r.v, v...), append(r.kScale, ks...), append(r.vScale, vs...)
	return l.Layout.Settle(attention.Rows{K: r.k[oldK:], V: r.v[oldV:]})
}

// chain makes the hashes of n positions.
func (r *rows) chain(n int) error {
	var hasher kvcache.Hasher
	r.hashes = nil
	row := 0
	for at := range n {
		if r.layer.Stores(r.number, at/attention.SplitLen) {
			hasher.Pass(uint64(at))
			if err := hasher.Update(r.some(row, 1), 1, r.layer.Layout); err != nil {
				return err
			}
			row++
		}
		r.hashes = append(r.hashes, hasher.Receipt().Hash)
	}
	return nil
}

// some are n stored rows from one on.
func (r *rows) some(from, n int) attention.Rows {
	l := r.layer.Layout
	rows := attention.Rows{K: r.k[from*l.KRowBytes():][:n*l.KRowBytes()], V: r.v[from*l.VRowBytes():][:n*l.VRowBytes()]}
	if l.DType() == tensor.I8 {
		rows.KScale, rows.VScale = r.kScale[from:][:n], r.vScale[from:][:n]
	}
	return rows
}

// pages are fresh ones, with what is stored.
func (r *rows) pages() (attention.KV, error) {
	kv := attention.KV{Layout: r.layer.Layout, Len: len(r.hashes)}
	for at := 0; at < kv.Len; at += attention.PageLen {
		page := make([]byte, kv.Layout.PageBytes())
		n := min(attention.PageLen, kv.Len-at)
		if r.layer.Stores(r.number, at/attention.SplitLen) {
			if err := kv.Layout.Write(page, 0, n, r.some(r.layer.Stored(r.number, 0, at), n)); err != nil {
				return kv, err
			}
		}
		kv.Pages = append(kv.Pages, page)
	}
	return kv, nil
}

// answer makes the payload of an answer: the contexts of groups, or the parts of shards. Nothing is answered where nothing attends.
func answer(layer *shard.LayerSpec, m *session.Step, shards []*rows, p *given) ([]byte, *session.Error) {
	parted := m.Codec == headwaterv1.StepCodec_STEP_CODEC_PARTS
	if len(p.answered) > 0 && parted != layer.Striped() {
		return nil, refuse(invalid, "codec %s in %d stripes", m.Codec, layer.Stripes)
	}
	var parts []byte
	var contexts, lses []float32
	for _, i := range p.answered {
		r := shards[i]
		kv, bad := r.pages()
		if bad != nil {
			return nil, refuse(invalid, "%v", bad)
		}
		query := queryOf(layer, m, layer.GroupOf(r.number), kv.Len, p.queries[layer.GroupOf(r.number)])
		item := attention.Item{KV: kv, Query: query, Options: layer.Options}
		rows := query.Tokens * query.Heads
		if parted {
			item.Apart = &attention.Apart{First: r.number % layer.Stripes, Step: layer.Stripes}
			for range layer.SplitsBelow(r.number, m.SplitsSeen(layer)) {
				item.Apart.Parts = append(item.Apart.Parts, attention.Part{M: make([]float32, rows), L: make([]float32, rows), O: make([]float32, rows*layer.VDim())})
			}
		} else {
			item.Output = attention.Output{Context: make([]float32, rows*layer.VDim()), LSE: make([]float32, rows)}
		}
		if bad := attendOnce(item); bad != nil {
			return nil, refuse(notFinite, "%v", bad)
		}
		contexts, lses = append(contexts, item.Output.Context...), append(lses, item.Output.LSE...)
		if parted {
			for _, one := range item.Apart.Parts {
				parts = append(append(append(parts, floatBytes(one.M)...), floatBytes(one.L)...), floatBytes(one.O)...)
			}
		}
	}
	codec, framed := layerproto.ReadStepCodec(m.Codec)
	switch {
	case parted:
		return parts, nil
	case !framed || len(p.answered) == 0:
		return append(floatBytes(contexts), floatBytes(lses)...), nil
	}
	frame, bad := contextframe.Encode(nil, codec, 0, len(p.answered)*int(m.Attend), layer.GroupSize(), layer.VDim(), contexts, lses)
	if bad != nil {
		return nil, refuse(invalid, "%v", bad)
	}
	return frame, nil
}

// attendOnce lets the query of one item attend, on a thread of its own. Of parts, none may be asked for.
func attendOnce(item attention.Item) error {
	if item.Apart != nil && len(item.Apart.Parts) == 0 {
		return nil
	}
	pool := attention.NewPool(1)
	defer pool.Close()
	thread, err := pool.Acquire(context.Background(), attention.Foreground)
	if err != nil {
		return err
	}
	defer thread.Release()
	return thread.AttendAll(context.Background(), []attention.Item{item})
}

// queryOf makes the query of one group over n positions.
func queryOf(layer *shard.LayerSpec, m *session.Step, group, n int, q []float32) attention.Query {
	tokens := int(m.Attend)
	query := attention.Query{Q: q, Tokens: tokens, Heads: layer.GroupSize(), FirstHead: group * layer.GroupSize(), Offset: int64(m.QueryPosition)}
	if m.Tree == 0 {
		return query
	}
	query.MaskHeads, query.Mask = 1, make([]byte, tokens*n)
	stride := (int(m.Tree) + 7) / 8
	for t := range tokens {
		for p := range n {
			bit := p - (n - int(m.Tree))
			if bit < 0 || m.TreeMask[t*stride+bit/8]>>(bit%8)&1 == 1 {
				query.Mask[t*n+p] = 1
			}
		}
	}
	return query
}
