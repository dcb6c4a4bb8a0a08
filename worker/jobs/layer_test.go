package jobs

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"headwater.example/attention"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
	"headwater.example/worker/internal/workertest"
)

// layer is a job whose queries, keys and values come from hidden states.
type layer struct {
	*job
	x                  []float32
	rope               attention.Rope
	wq, wk, wv, wo     []float32 // of all heads
	bq, bk, bv, bo     []float32
	y                  []float32
	dModel, dims, rows int
}

func newLayer(t workertest.Fataler, rng *rand.Rand, p *headwaterv1.Problem, biased bool) *layer {
	t.Helper()
	pr := p.Projection
	l := &layer{dModel: int(pr.DModel), dims: int(pr.RopeDims), rows: int(max(p.Tokens, p.KvLen))}
	heads, groups, hd, vd, tokens, n := int(p.NHeads), int(p.NKvHeads), int(p.HeadDim), int(p.VDim), int(p.Tokens), int(p.KvLen)
	bias := func(n int) []float32 {
		if !biased {
			return nil
		}
		return workertest.Normals(rng, n)
	}
	pr.QueryBias, pr.KeyBias, pr.ValueBias = biased, biased, biased
	l.x = workertest.Normals(rng, l.rows*l.dModel)
	l.wq, l.wk, l.wv, l.wo = workertest.Normals(rng, heads*hd*l.dModel), workertest.Normals(rng, groups*hd*l.dModel), workertest.Normals(rng, groups*vd*l.dModel), workertest.Normals(rng, l.dModel*heads*vd)
	l.bq, l.bk, l.bv, l.bo = bias(heads*hd), bias(groups*hd), bias(groups*vd), bias(l.dModel)
	// All heads at once: the order in which each element is computed is the same.
	project := func(x, w, b []float32, rows, in, out int) []float32 {
		y := make([]float32, rows*out)
		if err := attention.Project(context.Background(), 1, y, x[:rows*in], w, b, rows, in, out); err != nil {
			t.Fatal(err)
		}
		return y
	}
	rotate := func(x []float32, start int64, rows, heads int) {
		if l.dims == 0 {
			return
		}
		cos, sin := l.rope.Tables(start, rows)
		if err := attention.ApplyRope(x, cos, sin, rows, heads, hd, l.dims, pr.RopeInterleaved); err != nil {
			t.Fatal(err)
		}
	}
	l.rope = attention.Rope{Base: 1000, Dims: l.dims, Interleaved: pr.RopeInterleaved}
	q, k, v := project(l.x, l.wq, l.bq, tokens, l.dModel, heads*hd), project(l.x, l.wk, l.bk, n, l.dModel, groups*hd), project(l.x, l.wv, l.bv, n, l.dModel, groups*vd)
	rotate(q, p.Offset, tokens, heads)
	rotate(k, 0, n, groups)

	dt := workertest.StorageOf(p.Storage)
	layout, err := attention.NewLayout(dt, hd, vd)
	if err != nil {
		t.Fatal(err)
	}
	l.job = &job{problem: p, layout: layout, size: heads / groups, opts: attention.Options{Causal: p.Causal, WindowLeft: -1, WindowRight: -1, Scale: p.Scale}}
	for g := range groups {
		var rows attention.Rows
		rows.K, rows.KScale = workertest.Store(t, column(k, n, groups*hd, g*hd, hd), n, dt)
		rows.V, rows.VScale = workertest.Store(t, column(v, n, groups*vd, g*vd, vd), n, dt)
		l.job.rows = append(l.job.rows, rows)
		l.q = append(l.q, column(q, tokens, heads*hd, g*l.size*hd, l.size*hd))
	}
	l.attend(t, 0, 0)
	l.y = project(l.gathered(), l.wo, l.bo, tokens, heads*vd, l.dModel)
	return l
}

// column returns columns [from, from+width) of x [rows, in].
func column(x []float32, rows, in, from, width int) []float32 {
	var out []float32
	for i := range rows {
		out = append(out, x[i*in+from:i*in+from+width]...)
	}
	return out
}

// gathered is the context [tokens, heads, v_dim].
func (l *layer) gathered() []float32 {
	var out []float32
	width := l.size * int(l.problem.VDim)
	for t := range int(l.problem.Tokens) {
		for _, c := range l.context {
			out = append(out, c[t*width:(t+1)*width]...)
		}
	}
	return out
}

// weightBlocks cuts rows [first, first+n) of a projection to blocks of step rows.
func weightBlocks(kind headwaterv1.Weight, group uint32, w, b []float32, in, first, n, base, step int) []*headwaterv1.RunRequest {
	var out []*headwaterv1.RunRequest
	for row := first; row < first+n; row += step {
		end := min(row+step, first+n)
		m := &headwaterv1.WeightBlock{Weight: kind, Group: group, Row: uint32(row - base), Data: workertest.LittleEndian(w[row*in : end*in])}
		if b != nil {
			m.Bias = workertest.LittleEndian(b[row:end])
		}
		out = append(out, weightBlock(m))
	}
	return out
}

func (l *layer) tables(start int64, n int) (cos, sin []byte) {
	if l.dims == 0 {
		return nil, nil
	}
	c, s := l.rope.Tables(start, n)
	return workertest.LittleEndian(c), workertest.LittleEndian(s)
}

// load opens, fills and seals some groups.
func (l *layer) load(groups []uint32, step int) []*headwaterv1.RunRequest {
	hd, vd, qd := int(l.problem.HeadDim), int(l.problem.VDim), l.size*int(l.problem.HeadDim)
	var out []*headwaterv1.RunRequest
	for _, g := range groups {
		out = append(out, shardOpen(&headwaterv1.ShardOpen{Group: g, Epoch: 7}))
		out = append(out, weightBlocks(headwaterv1.Weight_WEIGHT_KEY, g, l.wk, l.bk, l.dModel, int(g)*hd, hd, int(g)*hd, step)...)
		out = append(out, weightBlocks(headwaterv1.Weight_WEIGHT_VALUE, g, l.wv, l.bv, l.dModel, int(g)*vd, vd, int(g)*vd, step)...)
		out = append(out, weightBlocks(headwaterv1.Weight_WEIGHT_QUERY, g, l.wq, l.bq, l.dModel, int(g)*qd, qd, int(g)*qd, step)...)
	}
	n := int(l.problem.KvLen)
	for from := 0; from < n; from += step {
		to := min(from+step, n)
		cos, sin := l.tables(int64(from), to-from)
		out = append(out, hidden(&headwaterv1.HiddenBlock{Groups: groups, Start: uint64(from), X: workertest.LittleEndian(l.x[from*l.dModel : to*l.dModel]), Cos: cos, Sin: sin}))
	}
	for _, g := range groups {
		out = append(out, shardSeal(&headwaterv1.ShardSeal{Group: g, Receipt: &headwaterv1.Receipt{Length: uint64(n)}}))
	}
	return out
}

func (l *layer) query(block uint32, groups []uint32, from, to int) *headwaterv1.RunRequest {
	cos, sin := l.tables(l.problem.Offset+int64(from), to-from)
	return queryBlock(&headwaterv1.QueryBlock{
		Block: block, Groups: groups, Start: uint64(from), Count: uint32(to - from),
		Q: workertest.LittleEndian(l.x[from*l.dModel : to*l.dModel]), Cos: cos, Sin: sin,
	})
}

func TestLayersDoNotDependOnTheShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size, groups := rapid.IntRange(1, 3).Draw(t, "group size"), rapid.IntRange(1, 3).Draw(t, "n_kv_heads")
		hd := rapid.IntRange(1, 10).Draw(t, "head_dim")
		tokens := rapid.IntRange(1, 5).Draw(t, "tokens")
		l := newLayer(t, rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)), &headwaterv1.Problem{
			NHeads: uint32(size * groups), NKvHeads: uint32(groups), HeadDim: uint32(hd), VDim: rapid.Uint32Range(1, 10).Draw(t, "v_dim"),
			Tokens: uint64(tokens), KvLen: rapid.Uint64Range(1, 90).Draw(t, "kv_len"), Offset: rapid.Int64Range(0, 20).Draw(t, "offset"),
			Storage: headwaterv1.StorageType(rapid.Int32Range(1, 4).Draw(t, "storage")),
			Causal:  true, WindowLeft: -1, WindowRight: -1, Scale: 0.05,
			Projection: &headwaterv1.Projection{
				DModel: rapid.Uint32Range(1, 12).Draw(t, "d_model"), RopeDims: uint32(2 * rapid.IntRange(0, hd/2).Draw(t, "rope pairs")), RopeInterleaved: rapid.Bool().Draw(t, "interleaved"),
			},
		}, rapid.Bool().Draw(t, "biased"))
		var all []uint32
		for g := range groups {
			all = append(all, uint32(g))
		}
		all = rapid.Permutation(all).Draw(t, "order")
		share := all[:rapid.IntRange(1, groups).Draw(t, "share")]
		w := newPlace(t, 64<<20, rapid.IntRange(1, 3).Draw(t, "threads"))
		messages := []*headwaterv1.RunRequest{open(&headwaterv1.Open{Codec: headwaterv1.ContextCodec_CONTEXT_CODEC_EXACT, Problems: []*headwaterv1.Problem{l.problem}})}
		messages = append(messages, l.load(share, rapid.IntRange(1, 40).Draw(t, "step"))...)
		step := rapid.IntRange(1, tokens).Draw(t, "tokens of a block")
		blocks := 0
		for from := 0; from < tokens; from += step {
			messages = append(messages, l.query(uint32(blocks), share, from, min(from+step, tokens)))
			blocks++
		}
		// A few of the output rows, sent in pieces that meet, with some of them again.
		width := int(l.problem.NHeads * l.problem.VDim)
		first := rapid.IntRange(0, l.dModel-1).Draw(t, "first output row")
		rows := rapid.IntRange(1, l.dModel-first).Draw(t, "output rows")
		cut := rapid.IntRange(0, rows).Draw(t, "cut")
		again := rapid.IntRange(0, rows-cut).Draw(t, "again")
		for _, r := range [][2]int{{first + cut, rows - cut}, {first, cut + again}} {
			if r[1] > 0 {
				messages = append(messages, weightBlocks(headwaterv1.Weight_WEIGHT_OUTPUT, 0, l.wo, l.bo, width, r[0], r[1], 0, r[1])...)
			}
		}
		messages = append(messages, outputBlock(&headwaterv1.OutputBlock{Block: 3, Row: uint32(first), Rows: uint32(rows), Count: uint32(tokens), Context: workertest.LittleEndian(l.gathered())}))
		answers, err := play(t, w, false, messages...)
		if err != nil {
			t.Fatal(err)
		}
		contexts, outputs := 0, 0
		for _, a := range answers {
			if c := a.GetContext(); c != nil {
				contexts++
				l.check(t, c, int(c.Block)*step, min((int(c.Block)+1)*step, tokens))
			}
			if o := a.GetOutput(); o != nil {
				outputs++
				y := make([]float32, tokens*rows)
				if err := tensor.Widen(y, o.Y, tensor.F32); err != nil || o.Block != 3 || int(o.Row) != first {
					t.Fatal(o, err)
				}
				if i := workertest.Differs(y, column(l.y, tokens, l.dModel, first, rows)); i >= 0 {
					t.Fatalf("y[%d] is %v", i, y[i])
				}
			}
		}
		if contexts != blocks*len(share) || outputs != 1 {
			t.Fatalf("%d contexts and %d outputs", contexts, outputs)
		}
	})
}

// smallLayer is a layer of 2 groups of 2 heads, and the messages that load it.
func smallLayer(t workertest.Fataler) (*layer, []*headwaterv1.RunRequest) {
	l := newLayer(t, rand.New(rand.NewPCG(1, 2)), &headwaterv1.Problem{
		NHeads: 4, NKvHeads: 2, HeadDim: 4, VDim: 3, Tokens: 5, KvLen: 5, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32,
		Causal: true, WindowLeft: -1, WindowRight: -1, Scale: 0.5,
		Projection: &headwaterv1.Projection{DModel: 6, RopeDims: 2},
	}, true)
	o := open(&headwaterv1.Open{Codec: headwaterv1.ContextCodec_CONTEXT_CODEC_EXACT, Problems: []*headwaterv1.Problem{l.problem}})
	return l, append([]*headwaterv1.RunRequest{o}, l.load([]uint32{0, 1}, 3)...)
}

func TestOutputRowsThatDifferAreRefused(t *testing.T) {
	l, messages := smallLayer(t)
	width := 4 * 3
	block := func(from, to int) *headwaterv1.RunRequest {
		return weightBlocks(headwaterv1.Weight_WEIGHT_OUTPUT, 0, l.wo, l.bo, width, from, to-from, 0, 100)[0]
	}
	w := newPlace(t, 1<<20, 1)
	other := block(3, 6)
	other.GetWeights().Data[0] ^= 1
	_, err := play(t, w, true, append(messages, block(0, 4), other)...)
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "w_o: rows 3 to 3 were sent before, with other values") {
		t.Fatalf("got %v", err)
	}
	other = block(3, 6)
	other.GetWeights().Bias = nil
	if _, err := play(t, w, true, append(messages, block(0, 4), other)...); status.Code(err) != codes.InvalidArgument {
		t.Fatalf("got %v", err)
	}
}

func TestProjectionsThatOverflowAreOutOfRange(t *testing.T) {
	for _, kind := range []headwaterv1.Weight{headwaterv1.Weight_WEIGHT_QUERY, headwaterv1.Weight_WEIGHT_KEY, headwaterv1.Weight_WEIGHT_VALUE} {
		l, messages := smallLayer(t)
		for _, m := range messages {
			if w := m.GetWeights(); w != nil && w.Weight == kind {
				copy(w.Data, workertest.LittleEndian([]float32{3e38, 3e38, -3e38, 3e38, -3e38, 3e38}))
			}
		}
		_, err := play(t, newPlace(t, 1<<20, 1), true, append(messages, l.query(0, []uint32{0, 1}, 0, 5))...)
		if status.Code(err) != codes.OutOfRange {
			t.Errorf("%s: got %v", kind, err)
		}
	}
}
