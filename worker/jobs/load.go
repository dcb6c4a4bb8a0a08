package jobs

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// openShard is a shard that the stream has opened.
type openShard struct {
	id      shard.ID
	problem *problem
	epoch   uint64
	cache   *kvcache.Shard
	weights *groupWeights // nil where keys and values come ready
	sealed  bool
	queries sync.WaitGroup // tasks that read the shard
}

func (h *openShard) String() string {
	return fmt.Sprintf("problem %d group %d", h.id.Layer, h.id.Group)
}

func (h *openShard) close(budget *kvcache.Budget) {
	h.cache.Close()
	if h.weights != nil {
		h.weights.memory.close(budget)
	}
}

// groupWeights are the rows of w_q, w_k and w_v that belong to one group.
type groupWeights struct {
	memory            mapped
	query, key, value matrix
	context           matrix // for gradients: the columns of w_o that read the group's contexts
}

// matrix is the rows [rows, in] of a projection, which come in ascending order.
type matrix struct {
	name     string
	w, bias  []float32 // bias is nil where there is none
	rows, in int
	have     int
}

func (m *matrix) complete() bool { return m.have == m.rows }

// carve takes a matrix off the front of memory.
func carve(memory []float32, name string, rows, in int, biased bool) (matrix, []float32) {
	m := matrix{name: name, rows: rows, in: in}
	m.w, memory = memory[:rows*in:rows*in], memory[rows*in:]
	if biased {
		m.bias, memory = memory[:rows:rows], memory[rows:]
	}
	return m, memory
}

// newGroupWeights reserves the memory of one group's weights.
func (r *run) newGroupWeights(p *problem) (*groupWeights, error) {
	rows, contexts := p.GroupSize()*p.HeadDim()+p.HeadDim()+p.VDim(), 0
	if p.gradients != nil {
		contexts = p.GroupSize() * p.VDim()
		rows += contexts
	}
	// At most (2 · 4,096 + 2) · 512 rows of 8 Mi elements: no overflow.
	h, err := r.mapMemory(int64(rows) * int64(p.projection.dModel+1) * 4)
	if err != nil {
		return nil, err
	}
	g := &groupWeights{memory: h}
	memory := h.arena.Floats()
	g.query, memory = carve(memory, "w_q", p.GroupSize()*p.HeadDim(), p.projection.dModel, p.projection.queryBias)
	g.key, memory = carve(memory, "w_k", p.HeadDim(), p.projection.dModel, p.projection.keyBias)
	g.value, memory = carve(memory, "w_v", p.VDim(), p.projection.dModel, p.projection.valueBias)
	g.context, _ = carve(memory, "w_o", contexts, p.projection.dModel, false)
	return g, nil
}

// shard returns the open shard that a message names.
func (r *run) shard(index, group uint32) (*openShard, error) {
	p, err := r.problem(index)
	if err != nil {
		return nil, err
	}
	if int64(group) >= int64(p.KVHeads) {
		return nil, invalid("problem %d group %d: the problem has %d groups", index, group, p.KVHeads)
	}
	h := r.shards[shard.ID{Layer: shard.Layer(index), Group: shard.Group(group)}]
	if h == nil {
		return nil, misplaced("problem %d group %d: worker %s does not hold the shard", index, group, r.m.Name)
	}
	return h, nil
}

// groups returns the open shards that a block names, each once.
func (r *run) groups(index uint32, groups []uint32) ([]*openShard, error) {
	p, err := r.problem(index)
	switch {
	case err != nil:
		return nil, err
	case len(groups) < 1 || len(groups) > p.KVHeads:
		return nil, invalid("problem %d: a block names %d groups, the problem has %d", index, len(groups), p.KVHeads)
	}
	named := make(map[uint32]bool, len(groups))
	shards := make([]*openShard, len(groups))
	for i, g := range groups {
		if named[g] {
			return nil, invalid("problem %d group %d: a block names the group twice", index, g)
		}
		named[g] = true
		if shards[i], err = r.shard(index, g); err != nil {
			return nil, err
		}
	}
	return shards, nil
}

func (r *run) openShard(m *headwaterv1.ShardOpen) error {
	p, err := r.problem(m.GetProblem())
	id := shard.ID{Layer: shard.Layer(m.GetProblem()), Group: shard.Group(m.GetGroup())}
	switch {
	case err != nil:
		return err
	case int64(m.GetGroup()) >= int64(p.KVHeads):
		return invalid("problem %d group %d: the problem has %d groups", m.GetProblem(), m.GetGroup(), p.KVHeads)
	case m.GetEpoch() < 1:
		return invalid("problem %d group %d: epoch 0: epochs start at 1", m.GetProblem(), m.GetGroup())
	case m.GetEpoch() < p.epoch:
		return misplaced("problem %d group %d: epoch %d is stale, the problem is at %d", m.GetProblem(), m.GetGroup(), m.GetEpoch(), p.epoch)
	case r.shards[id] != nil:
		return misplaced("problem %d group %d: the shard is open already, of epoch %d", m.GetProblem(), m.GetGroup(), r.shards[id].epoch)
	}
	h := &openShard{id: id, problem: p, epoch: m.GetEpoch()}
	err = r.take(func() (err error) {
		h.cache, err = kvcache.OpenShard(r.m.Budget, r.owner, p.Layout, p.kvLen)
		return err
	})
	if err != nil {
		return r.exhausted(h, "keys and values", err)
	}
	reserved := h.cache.Reserved()
	if p.projection != nil {
		if h.weights, err = r.newGroupWeights(p); err != nil {
			h.cache.Close()
			return r.exhausted(h, "weights", err)
		}
		reserved += h.weights.memory.bytes
	}
	r.shards[id], p.epoch = h, h.epoch
	return r.answer(&headwaterv1.RunResponse{Response: &headwaterv1.RunResponse_ShardOpened{ShardOpened: &headwaterv1.ShardOpened{
		Problem: m.GetProblem(), Group: m.GetGroup(), ReservedBytes: uint64(reserved),
	}}}, nil)
}

// exhausted says that there is no memory for something, whether the budget or the machine says so; or that the stream has
// ended, which took no memory either.
func (r *run) exhausted(what fmt.Stringer, part string, err error) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	return status.Errorf(codes.ResourceExhausted, "%s: %s: %v", what, part, err)
}

// extends checks that a block of count positions from start follows what the shards hold.
func extends(shards []*openShard, start, count uint64) error {
	for _, h := range shards {
		switch {
		case h.sealed:
			return misplaced("%s: the shard is sealed and takes no more positions", h)
		case start != uint64(h.cache.Len()):
			return misplaced("%s: a block starts at position %d, the shard holds %d", h, start, h.cache.Len())
		case count > uint64(h.problem.kvLen)-start:
			return invalid("%s: a block ends at position %d, kv_len is %d", h, start+count, h.problem.kvLen)
		}
	}
	return nil
}

func (r *run) append(m *headwaterv1.KeyValueBlock) error {
	shards, err := r.groups(m.GetProblem(), m.GetGroups())
	if err != nil {
		return err
	}
	p := shards[0].problem
	n, groups := int(m.GetCount()), len(shards)
	dt, scale := p.Layout.DType(), 0
	if dt == tensor.I8 {
		scale = 4
	}
	switch {
	case p.projection != nil:
		return invalid("problem %d: the worker projects keys and values itself and takes none", m.GetProblem())
	case n < 1:
		return invalid("problem %d: a block of keys and values holds no position", m.GetProblem())
	}
	if err := extends(shards, m.GetStart(), uint64(n)); err != nil {
		return err
	}
	for _, part := range []struct {
		name  string
		bytes []byte
		row   int
		dt    tensor.DType
	}{
		{"k", m.GetK(), p.Layout.KRowBytes(), dt},
		{"v", m.GetV(), p.Layout.VRowBytes(), dt},
		{"k_scale", m.GetKScale(), scale, tensor.F32},
		{"v_scale", m.GetVScale(), scale, tensor.F32},
	} {
		// groups · n · row is at most 2¹² · 2³² · 2¹¹.
		if want := int64(groups) * int64(n) * int64(part.row); int64(len(part.bytes)) != want {
			return invalid("problem %d: %s has %d bytes, %d groups of %d positions are %d", m.GetProblem(), part.name, len(part.bytes), groups, n, want)
		}
		if part.dt == tensor.I8 {
			continue
		}
		if i, v, ok := tensor.CheckFinite(part.bytes, part.dt, false); !ok {
			return invalid("problem %d: %s at position %d: element %d of the block is %v", m.GetProblem(), part.name,
				m.GetStart()+uint64(i*int64(part.dt.Size())/int64(part.row))%uint64(n), i, v)
		}
	}
	var kScale, vScale []float32
	if scale != 0 {
		kScale, vScale = make([]float32, groups*n), make([]float32, groups*n)
		if err := tensor.Widen(kScale, m.GetKScale(), tensor.F32); err != nil {
			return err
		}
		if err := tensor.Widen(vScale, m.GetVScale(), tensor.F32); err != nil {
			return err
		}
	}
	for i, h := range shards {
		rows := attention.Rows{K: part(m.GetK(), i, groups), V: part(m.GetV(), i, groups), KScale: part(kScale, i, groups), VScale: part(vScale, i, groups)}
		if err := h.cache.Append(rows, n); err != nil {
			return fmt.Errorf("%s: %w", h, err)
		}
	}
	return r.ctx.Err()
}

// part returns the i-th of n equal parts of s.
func part[E any](s []E, i, n int) []E {
	size := len(s) / n
	return s[i*size : (i+1)*size]
}

func (r *run) weights(m *headwaterv1.WeightBlock) error {
	p, err := r.problem(m.GetProblem())
	switch {
	case err != nil:
		return err
	case p.projection == nil:
		return invalid("problem %d: it has no projection and takes no weights", m.GetProblem())
	case m.GetWeight() == headwaterv1.Weight_WEIGHT_OUTPUT:
		return r.outputWeights(p, m)
	}
	h, err := r.shard(m.GetProblem(), m.GetGroup())
	if err != nil {
		return err
	}
	var w *matrix
	switch m.GetWeight() {
	case headwaterv1.Weight_WEIGHT_QUERY:
		w = &h.weights.query
	case headwaterv1.Weight_WEIGHT_KEY:
		w = &h.weights.key
	case headwaterv1.Weight_WEIGHT_VALUE:
		w = &h.weights.value
	case headwaterv1.Weight_WEIGHT_CONTEXT:
		w = &h.weights.context
	default:
		return invalid("%s: weight %d is not known", h, m.GetWeight())
	}
	n := len(m.GetData()) / (4 * w.in)
	biases := 0
	if w.bias != nil {
		biases = n
	}
	switch {
	case n < 1 || len(m.GetData()) != 4*n*w.in:
		return invalid("%s: %s: %d bytes are not whole rows of %d elements", h, w.name, len(m.GetData()), w.in)
	case int64(m.GetRow()) != int64(w.have):
		return misplaced("%s: %s: a block starts at row %d, the shard has %d", h, w.name, m.GetRow(), w.have)
	case n > w.rows-w.have:
		return invalid("%s: %s: a block ends at row %d of %d", h, w.name, w.have+n, w.rows)
	case len(m.GetBias()) != 4*biases:
		return invalid("%s: %s: %d bytes of bias, %d rows need %d", h, w.name, len(m.GetBias()), n, 4*biases)
	}
	if err := decode(fmt.Sprintf("%s: %s", h, w.name), w.w[w.have*w.in:(w.have+n)*w.in], m.GetData(), false); err != nil {
		return err
	}
	if biases > 0 {
		if err := decode(fmt.Sprintf("%s: %s: bias", h, w.name), w.bias[w.have:w.have+n], m.GetBias(), false); err != nil {
			return err
		}
	}
	w.have += n
	return nil
}

// pieceRows bounds the hidden states that are projected at once, and pieceElements their elements.
const (
	pieceRows     = 256
	pieceElements = 1 << 18
)

func (r *run) project(m *headwaterv1.HiddenBlock) error {
	shards, err := r.groups(m.GetProblem(), m.GetGroups())
	if err != nil {
		return err
	}
	p := shards[0].problem
	if p.projection == nil {
		return invalid("problem %d: it has no projection and takes no hidden states", m.GetProblem())
	}
	in, half := p.projection.dModel, p.projection.ropeDims/2
	n := len(m.GetX()) / (4 * in)
	if n < 1 || len(m.GetX()) != 4*n*in {
		return invalid("problem %d: x: %d bytes are not whole hidden states of %d elements", m.GetProblem(), len(m.GetX()), in)
	}
	if err := extends(shards, m.GetStart(), uint64(n)); err != nil {
		return err
	}
	for _, h := range shards {
		for _, w := range []*matrix{&h.weights.key, &h.weights.value} {
			if !w.complete() {
				return misplaced("%s: hidden states came before %s: %d of %d rows are here", h, w.name, w.have, w.rows)
			}
		}
	}
	cos, sin, err := rotation(m.GetProblem(), m.GetCos(), m.GetSin(), n, half)
	if err != nil {
		return err
	}
	piece := min(max(pieceElements/in, 1), pieceRows, n)
	x := make([]float32, piece*in)
	for from := 0; from < n; from += piece {
		to := min(from+piece, n)
		x = x[:(to-from)*in]
		if err := decode(fmt.Sprintf("problem %d: x from position %d", m.GetProblem(), m.GetStart()+uint64(from)), x, m.GetX()[4*from*in:4*to*in], false); err != nil {
			return err
		}
		for _, h := range shards {
			if err := r.projectPiece(h, x, cos[from*half:to*half], sin[from*half:to*half], to-from); err != nil {
				return fmt.Errorf("%s: from position %d: %w", h, m.GetStart()+uint64(from), err)
			}
		}
	}
	return nil
}

// projectPiece appends the keys and values of n hidden states.
func (r *run) projectPiece(h *openShard, x, cos, sin []float32, n int) error {
	p := h.problem
	k, v := make([]float32, n*p.HeadDim()), make([]float32, n*p.VDim())
	err := r.m.Use(r.ctx, attention.Background, r.turn(int64(n)*int64(h.weights.key.in)*int64(p.HeadDim())), func(thread *attention.Thread) error {
		if err := project(r.ctx, thread, k, x, &h.weights.key, n); err != nil {
			return err
		}
		return project(r.ctx, thread, v, x, &h.weights.value, n)
	})
	if err != nil {
		return err
	}
	if err := p.rotate("keys", k, cos, sin, n, 1); err != nil {
		return err
	}
	var rows attention.Rows
	dt := p.Layout.DType()
	if rows.K, rows.KScale, err = stored(k, n, dt); err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	if rows.V, rows.VScale, err = stored(v, n, dt); err != nil {
		return fmt.Errorf("values: %w", err)
	}
	return h.cache.Append(rows, n)
}

// stored narrows n rows of x to a storage type.
func stored(x []float32, n int, dt tensor.DType) (p []byte, scales []float32, err error) {
	p = make([]byte, len(x)*dt.Size())
	if dt != tensor.I8 {
		return p, nil, tensor.Narrow(p, x, dt)
	}
	scales = make([]float32, n)
	q := make([]int8, len(x)/n)
	for i := range n {
		scales[i] = tensor.QuantizeI8(q, part(x, i, n))
		for j, c := range q {
			p[i*len(q)+j] = byte(c)
		}
	}
	return p, scales, nil
}

func (r *run) seal(m *headwaterv1.ShardSeal) error {
	h, err := r.shard(m.GetProblem(), m.GetGroup())
	if err != nil {
		return err
	}
	want, got := m.GetReceipt(), h.cache.Receipt()
	switch {
	case want == nil:
		return invalid("%s: a seal without a receipt", h)
	case h.sealed:
		return misplaced("%s: the shard is sealed already", h)
	case want.GetLength() != got.Length:
		return status.Errorf(codes.DataLoss, "%s: the shard holds %d positions, its receipt says %d", h, got.Length, want.GetLength())
	case h.problem.projection == nil && want.GetHash() != got.Hash:
		return status.Errorf(codes.DataLoss, "%s: the shard's hash is %016x, its receipt says %016x", h, got.Hash, want.GetHash())
	case h.cache.Len() != h.problem.kvLen:
		return invalid("%s: sealed with %d positions, kv_len is %d", h, h.cache.Len(), h.problem.kvLen)
	}
	h.sealed = true
	return r.answer(&headwaterv1.RunResponse{Response: &headwaterv1.RunResponse_ShardSealed{ShardSealed: &headwaterv1.ShardSealed{
		Problem: m.GetProblem(), Group: m.GetGroup(), Receipt: &headwaterv1.Receipt{Length: got.Length, Hash: got.Hash},
	}}}, nil)
}

func (r *run) closeShard(m *headwaterv1.ShardClose) error {
	h, err := r.shard(m.GetProblem(), m.GetGroup())
	if err != nil {
		return err
	}
	// Queries that came before the close are answered first; they end at the latest with the stream.
	h.queries.Wait()
	delete(r.shards, h.id)
	h.close(r.m.Budget)
	return nil
}
