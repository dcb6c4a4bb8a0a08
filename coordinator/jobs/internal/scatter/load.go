package scatter

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"

	"headwater.example/attention"
	"headwater.example/coordinator/jobs/internal/ledger"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// share is what one stream takes of one problem.
type share struct {
	stream *stream
	groups []shard.Group
	asks   []ledger.Ask
}

// batch is what one plan wants loaded: by problem, each stream's share.
type batch map[int][]*share

// bytes is what of the job's file a batch reads.
func (b batch) bytes(r *run) int64 {
	var n int64
	for i := range b {
		n += r.problems[i].loadBytes()
	}
	return n
}

// loadBytes is what is read to load a problem: keys and values, or hidden states.
func (p *problem) loadBytes() int64 {
	if p.projects() {
		return int64(p.KVLen) * int64(p.DModel) * 4
	}
	return int64(p.KVLen) * int64(p.Shape.KVHeads) * p.rowBytes()
}

// rowBytes is what one position of one group has: key, value, and their scales.
func (p *problem) rowBytes() int64 {
	row := p.layout.KRowBytes() + p.layout.VRowBytes()
	if p.KScale != "" {
		row += 8
	}
	return int64(row)
}

// load reads each block of the batch's problems once and gives every stream its groups' part of it; then come the seal and the
// asks.
func (r *run) load(ctx context.Context, b batch) error {
	for i, p := range r.problems {
		shares := b[i]
		if len(shares) == 0 {
			continue
		}
		read := r.loadKeyValues
		if p.projects() {
			read = r.loadHidden
		}
		if err := read(ctx, p, shares); err != nil {
			return err
		}
		for _, s := range shares {
			asks := make([]ask, len(s.asks))
			for i, a := range s.asks {
				asks[i] = ask{block: a.Block, groups: a.Groups}
			}
			s.stream.add(p, p.cutAsks(asks))
		}
	}
	return nil
}

func (r *run) loadKeyValues(ctx context.Context, p *problem, shares []*share) error {
	groups := p.Shape.KVHeads
	kRow, vRow := p.layout.KRowBytes(), p.layout.VRowBytes()
	positions := max(r.blockBytes/(groups*(kRow+vRow)), 1)
	if positions > attention.PageLen {
		positions -= positions % attention.PageLen
	}
	positions = min(positions, p.KVLen)
	hashers := make(map[shard.Group]*kvcache.Hasher)
	for _, s := range shares {
		for _, g := range s.groups {
			hashers[g] = &kvcache.Hasher{}
		}
	}
	k, v := make([]byte, positions*groups*kRow), make([]byte, positions*groups*vRow)
	var ks, vs []byte
	if p.KScale != "" {
		ks, vs = make([]byte, positions*groups*4), make([]byte, positions*groups*4)
	}
	for start := 0; start < p.KVLen; start += positions {
		n := min(positions, p.KVLen-start)
		if err := r.readRows(start, n*groups, positionRows{p.K, k, groups, kRow}, positionRows{p.V, v, groups, vRow},
			positionRows{p.KScale, ks, groups, 4}, positionRows{p.VScale, vs, groups, 4}); err != nil {
			return err
		}
		for _, s := range shares {
			rows := len(s.groups) * n
			memory := rpc.NewBuffer(int(p.rowBytes()) * rows)
			free := memory.Bytes()
			take := func(data []byte, row int) (picked []byte) {
				picked, free = free[:rows*row:rows*row], free[rows*row:]
				pick(picked, data, s.groups, n, groups, row)
				return picked
			}
			m := &headwaterv1.KeyValueBlock{
				Problem: uint32(p.index), Groups: numbers(s.groups), Start: uint64(start), Count: uint32(n),
				K: take(k, kRow), V: take(v, vRow),
			}
			if p.KScale != "" {
				m.KScale, m.VScale = take(ks, 4), take(vs, 4)
			}
			for i, g := range s.groups {
				rows := attention.Rows{K: m.K[i*n*kRow : (i+1)*n*kRow], V: m.V[i*n*vRow : (i+1)*n*vRow]}
				if err := p.layout.Settle(rows); err != nil {
					return fmt.Errorf("%s: problem %q group %d, positions from %d: %w", r.input.Path(), p.Prefix, g, start, err)
				}
				if p.KScale != "" {
					rows.KScale, rows.VScale = floats(m.KScale[i*n*4:(i+1)*n*4]), floats(m.VScale[i*n*4:(i+1)*n*4])
				}
				if err := hashers[g].Update(rows, n, p.layout); err != nil {
					return fmt.Errorf("problem %q group %d: %w", p.Prefix, g, err)
				}
			}
			if err := s.stream.push(ctx, &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_KeyValues{KeyValues: m}}, memory); err != nil {
				return err
			}
		}
		r.emit(ctx, event{loaded: int64(n) * int64(p.loadBytes()/int64(p.KVLen))})
	}
	return r.seal(ctx, p, shares, func(g shard.Group) *headwaterv1.Receipt {
		receipt := hashers[g].Receipt()
		return &headwaterv1.Receipt{Length: receipt.Length, Hash: receipt.Hash}
	})
}

// positionRows is a tensor of the input with one row of bytes for each group of each position. It is absent if it has no name.
type positionRows struct {
	name        string
	data        []byte
	groups, row int
}

// readRows reads so many rows of tensors from a position on.
func (r *run) readRows(start, rows int, tensors ...positionRows) error {
	for _, t := range tensors {
		if t.name == "" {
			continue
		}
		if err := r.input.ReadAt(t.data[:rows*t.row], t.name, int64(start)*int64(t.groups*t.row)); err != nil {
			return err
		}
	}
	return nil
}

// loadHidden gives each stream its groups' rows of the projections, then the hidden states.
func (r *run) loadHidden(ctx context.Context, p *problem, shares []*share) error {
	gs, hd, vd := p.Shape.GroupSize(), p.Shape.HeadDim, p.Shape.VDim
	for _, s := range shares {
		for _, g := range s.groups {
			for _, w := range []struct {
				kind      headwaterv1.Weight
				name, add string
				rows      int
			}{
				{headwaterv1.Weight_WEIGHT_KEY, p.WK, p.BK, hd},
				{headwaterv1.Weight_WEIGHT_VALUE, p.WV, p.BV, vd},
				{headwaterv1.Weight_WEIGHT_QUERY, p.WQ, p.BQ, gs * hd},
			} {
				err := r.weights(w.name, w.add, int(g)*w.rows, w.rows, p.DModel, func(row int, data, bias []byte) error {
					return s.stream.push(ctx, &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Weights{Weights: &headwaterv1.WeightBlock{
						Problem: uint32(p.index), Weight: w.kind, Group: uint32(g), Row: uint32(row - int(g)*w.rows), Data: data, Bias: bias,
					}}}, nil)
				})
				if err != nil {
					return err
				}
			}
			if err := r.contextWeights(ctx, p, s, g); err != nil {
				return err
			}
		}
	}
	positions := max(r.blockBytes/(p.DModel*4), 1)
	for start := 0; start < p.KVLen; start += positions {
		n := min(positions, p.KVLen-start)
		x, err := r.rows(p.X, start, n, p.DModel)
		if err != nil {
			return err
		}
		cos, sin := p.tables(int64(start), n)
		for _, s := range shares {
			if err := s.stream.push(ctx, &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Hidden{Hidden: &headwaterv1.HiddenBlock{
				Problem: uint32(p.index), Groups: numbers(s.groups), Start: uint64(start), X: x, Cos: cos, Sin: sin,
			}}}, nil); err != nil {
				return err
			}
		}
		r.emit(ctx, event{loaded: int64(n) * int64(p.DModel) * 4})
	}
	return r.seal(ctx, p, shares, func(shard.Group) *headwaterv1.Receipt { return &headwaterv1.Receipt{Length: uint64(p.KVLen)} })
}

func (r *run) seal(ctx context.Context, p *problem, shares []*share, receipt func(shard.Group) *headwaterv1.Receipt) error {
	for _, s := range shares {
		for _, g := range s.groups {
			if err := s.stream.push(ctx, &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_ShardSeal{ShardSeal: &headwaterv1.ShardSeal{
				Problem: uint32(p.index), Group: uint32(g), Receipt: receipt(g),
			}}}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// weights cuts rows [first, first+rows) of a projection [.., width] to messages, widened to f32.
func (r *run) weights(name, bias string, first, rows, width int, send func(row int, data, bias []byte) error) error {
	step := max(rpc.BlockBytes/(width*4), 1)
	for row := first; row < first+rows; row += step {
		n := min(step, first+rows-row)
		data, err := r.rows(name, row, n, width)
		if err != nil {
			return err
		}
		var b []byte
		if bias != "" {
			if b, err = r.rows(bias, row, n, 1); err != nil {
				return err
			}
		}
		if err := send(row, data, b); err != nil {
			return err
		}
	}
	return nil
}

// rows reads rows [start, start+n) of a tensor [.., width] and widens them to f32, little endian.
func (r *run) rows(name string, start, n, width int) ([]byte, error) {
	info, ok := r.input.Lookup(name)
	if !ok {
		return nil, fmt.Errorf("%s: tensor %q: missing", r.input.Path(), name)
	}
	data := make([]byte, n*width*info.DType.Size())
	if err := r.input.ReadAt(data, name, int64(start)*int64(width*info.DType.Size())); err != nil {
		return nil, err
	}
	if info.DType == tensor.F32 {
		return data, nil
	}
	wide := make([]float32, n*width)
	if err := tensor.Widen(wide, data, info.DType); err != nil {
		return nil, fmt.Errorf("%s: tensor %q: %w", r.input.Path(), name, err)
	}
	return littleEndian(wide), nil
}

// tables returns the rotation of positions [start, start+n), little endian; nothing without rotation.
func (p *problem) tables(start int64, n int) (cos, sin []byte) {
	if p.Rope == nil {
		return nil, nil
	}
	c, s := p.Rope.Tables(start, n)
	return littleEndian(c), littleEndian(s)
}

// pick gathers some groups' rows out of data [n, groups, row] into out [picked, n, row].
func pick(out, data []byte, picked []shard.Group, n, groups, row int) {
	for _, g := range picked {
		for t := range n {
			at := (t*groups + int(g)) * row
			copy(out[:row], data[at:at+row])
			out = out[row:]
		}
	}
}

func numbers(groups []shard.Group) []uint32 {
	out := make([]uint32, len(groups))
	for i, g := range groups {
		out[i] = uint32(g)
	}
	return out
}

func littleEndian(x []float32) []byte {
	out := make([]byte, 4*len(x))
	for i, v := range x {
		binary.LittleEndian.PutUint32(out[4*i:], math.Float32bits(v))
	}
	return out
}

func floats(p []byte) []float32 {
	out := make([]float32, len(p)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(p[4*i:]))
	}
	return out
}
