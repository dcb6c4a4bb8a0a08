package jobs

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"headwater.example/attention"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
	"headwater.example/worker/internal/workertest"
)

// lessonOf draws derivatives by a layer's outputs.
func lessonOf(l *layer, rng *rand.Rand) []float32 {
	l.problem.Gradients = &headwaterv1.Gradients{OutputBias: l.bo != nil}
	return workertest.Normals(rng, int(l.problem.Tokens)*l.dModel)
}

// turned returns x [rows, columns] as [columns, rows].
func turned(x []float32, rows, columns int) []float32 {
	y := make([]float32, len(x))
	for i, v := range x[:rows*columns] {
		y[i%columns*rows+i/columns] = v
	}
	return y
}

// teach asks for the gradients of some groups, in blocks of step tokens.
func (l *layer) teach(dY []float32, groups []uint32, step int) []*headwaterv1.RunRequest {
	p := l.problem
	width, tokens := l.size*int(p.VDim), int(p.Tokens)
	wo := turned(l.wo, l.dModel, int(p.NHeads*p.VDim))
	var out []*headwaterv1.RunRequest
	for _, g := range groups {
		out = append(out, weightBlocks(headwaterv1.Weight_WEIGHT_CONTEXT, g, wo, nil, l.dModel, int(g)*width, width, int(g)*width, step)...)
		for from := 0; from < tokens; from += step {
			to := min(from+step, tokens)
			cos, sin := l.tables(p.Offset+int64(from), to-from)
			out = append(out, gradientBlock(&headwaterv1.GradientBlock{
				Group: g, Start: uint64(from), Count: uint32(to - from), Cos: cos, Sin: sin,
				Q: workertest.LittleEndian(l.x[from*l.dModel : to*l.dModel]), DContext: workertest.LittleEndian(dY[from*l.dModel : to*l.dModel]),
			}))
		}
	}
	return out
}

// gradients is what the layer is to give, all heads at once: every product is a projection of operands turned round.
func (l *layer) gradients(t workertest.Fataler, dY []float32) map[headwaterv1.GradientTensor][]float32 {
	p := l.problem
	heads, groups, hd, vd, tokens, n := int(p.NHeads), int(p.NKvHeads), int(p.HeadDim), int(p.VDim), int(p.Tokens), int(p.KvLen)
	project := func(x, w []float32, rows, in, out int) []float32 {
		y := make([]float32, rows*out)
		if err := attention.Project(context.Background(), 1, y, x, w, make([]float32, out), rows, in, out); err != nil {
			t.Fatal(err)
		}
		return y
	}
	dContext := project(dY, turned(l.wo, l.dModel, heads*vd), tokens, l.dModel, heads*vd)
	dQ, dK, dV := make([]float32, tokens*heads*hd), make([]float32, n*groups*hd), make([]float32, n*groups*vd)
	pool := attention.NewPool(1)
	defer pool.Close()
	thread, err := pool.Acquire(context.Background(), attention.Foreground)
	if err != nil {
		t.Fatal(err)
	}
	defer thread.Release()
	put := func(dst, src []float32, width, from int) {
		each := len(src) / (len(dst) / width)
		for i := range len(dst) / width {
			copy(dst[i*width+from:][:each], src[i*each:])
		}
	}
	for g := range groups {
		rows := tokens * l.size
		to := attention.Gradients{Q: make([]float32, rows*hd), K: make([]float32, n*hd), V: make([]float32, n*vd)}
		err := thread.Differentiate(context.Background(), []attention.Differentiation{{
			KV: l.kv(t, g), Query: attention.Query{Q: l.q[g], Tokens: tokens, Heads: l.size, FirstHead: g * l.size, Offset: p.Offset}, Options: l.opts,
			Output:   attention.Output{Context: l.context[g], LSE: l.lse[g]},
			DContext: column(dContext, tokens, heads*vd, g*l.size*vd, l.size*vd), Gradients: to,
		}})
		if err != nil {
			t.Fatal(err)
		}
		put(dQ, to.Q, heads*hd, g*l.size*hd)
		put(dK, to.K, groups*hd, g*hd)
		put(dV, to.V, groups*vd, g*vd)
	}
	if l.dims > 0 {
		back := func(x []float32, start int64, rows, heads int) {
			cos, sin := l.rope.Tables(start, rows)
			for i := range sin {
				sin[i] = -sin[i]
			}
			if err := attention.ApplyRope(x, cos, sin, rows, heads, hd, l.dims, p.Projection.RopeInterleaved); err != nil {
				t.Fatal(err)
			}
		}
		back(dQ, p.Offset, tokens, heads)
		back(dK, 0, n, groups)
	}
	sum := func(d []float32, rows, columns int) []float32 {
		return project(slices.Repeat([]float32{1}, rows), turned(d, rows, columns), 1, rows, columns)
	}
	x := l.x[:tokens*l.dModel]
	of := map[headwaterv1.GradientTensor][]float32{
		1: dQ, 2: dK, 3: dV,
		6: project(turned(dQ, tokens, heads*hd), turned(x, tokens, l.dModel), heads*hd, tokens, l.dModel),
		7: project(turned(dK, n, groups*hd), turned(x[:n*l.dModel], n, l.dModel), groups*hd, n, l.dModel),
		8: project(turned(dV, n, groups*vd), turned(x[:n*l.dModel], n, l.dModel), groups*vd, n, l.dModel),
		9: project(turned(dY, tokens, l.dModel), turned(l.gathered(), tokens, heads*vd), l.dModel, tokens, heads*vd),
	}
	if l.bo != nil {
		of[10], of[11], of[12], of[13] = sum(dQ, tokens, heads*hd), sum(dK, n, groups*hd), sum(dV, n, groups*vd), sum(dY, tokens, l.dModel)
	}
	return of
}

// ofGroup cuts a group's part out of a gradient of all heads.
func (l *layer) ofGroup(tensor headwaterv1.GradientTensor, x []float32, g int) []float32 {
	p := l.problem
	heads, groups, hd, vd, tokens, n := int(p.NHeads), int(p.NKvHeads), int(p.HeadDim), int(p.VDim), int(p.Tokens), int(p.KvLen)
	switch tensor {
	case headwaterv1.GradientTensor_GRADIENT_TENSOR_Q:
		return column(x, tokens, heads*hd, g*l.size*hd, l.size*hd)
	case headwaterv1.GradientTensor_GRADIENT_TENSOR_K:
		return column(x, n, groups*hd, g*hd, hd)
	case headwaterv1.GradientTensor_GRADIENT_TENSOR_V:
		return column(x, n, groups*vd, g*vd, vd)
	case headwaterv1.GradientTensor_GRADIENT_TENSOR_W_O:
		return column(x, l.dModel, heads*vd, g*l.size*vd, l.size*vd)
	case headwaterv1.GradientTensor_GRADIENT_TENSOR_B_O:
		return x
	}
	return part(x, g, groups)
}

// TestGradientsOfLayersAreTheContract: each group's answer is its part of what whole matrices give, to the bit.
func TestGradientsOfLayersAreTheContract(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size, groups := rapid.IntRange(1, 3).Draw(t, "group size"), rapid.IntRange(1, 3).Draw(t, "n_kv_heads")
		hd, tokens := rapid.IntRange(1, 10).Draw(t, "head_dim"), rapid.IntRange(1, 90).Draw(t, "tokens")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		l := newLayer(t, rng, &headwaterv1.Problem{
			NHeads: uint32(size * groups), NKvHeads: uint32(groups), HeadDim: uint32(hd), VDim: rapid.Uint32Range(1, 10).Draw(t, "v_dim"),
			Tokens: uint64(tokens), KvLen: rapid.Uint64Range(1, uint64(tokens)).Draw(t, "kv_len"),
			Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, Causal: true, WindowLeft: -1, WindowRight: -1, Scale: 0.05,
			Projection: &headwaterv1.Projection{
				DModel: rapid.Uint32Range(1, 12).Draw(t, "d_model"), RopeDims: uint32(2 * rapid.IntRange(0, hd/2).Draw(t, "rope pairs")), RopeInterleaved: rapid.Bool().Draw(t, "interleaved"),
			},
		}, rapid.Bool().Draw(t, "biased"))
		dY := lessonOf(l, rng)
		var all []uint32
		for g := range groups {
			all = append(all, uint32(g))
		}
		share := rapid.Permutation(all).Draw(t, "order")[:rapid.IntRange(1, groups).Draw(t, "share")]
		w := newPlace(t, 64<<20, rapid.IntRange(1, 3).Draw(t, "threads"))
		messages := append([]*headwaterv1.RunRequest{openOf(l.problem)}, l.load(share, rapid.IntRange(1, 40).Draw(t, "step"))...)
		answers, err := play(t, w, false, append(messages, l.teach(dY, share, rapid.IntRange(1, 40).Draw(t, "tokens of a block"))...)...)
		if err != nil {
			t.Fatal(err)
		}
		want, came := l.gradients(t, dY), 0
		for _, a := range answers {
			m := a.GetGradient()
			if m == nil {
				continue
			}
			came++
			exact := l.ofGroup(m.Tensor, want[m.Tensor], int(m.Group))
			got := make([]float32, len(exact))
			if err := tensor.Widen(got, m.Data, tensor.F32); err != nil {
				t.Fatalf("%s of group %d: %v", m.Tensor, m.Group, err)
			}
			if i := workertest.Differs(got, exact); i >= 0 {
				t.Fatalf("%s of group %d: element %d is %v, not %v", m.Tensor, m.Group, i, got[i], exact[i])
			}
		}
		owed := 7 * len(share)
		if l.bo != nil {
			owed += 3 * len(share)
			if slices.Contains(share, 0) {
				owed++
			}
		}
		if came != owed {
			t.Fatalf("%d tensors came, not %d", came, owed)
		}
	})
}

// TestGradientsOfLayersThatAreRefused: weights or rotations that are missing, and gradients that are not finite, by name.
func TestGradientsOfLayersThatAreRefused(t *testing.T) {
	small, _ := smallLayer(t)
	dY := lessonOf(small, rand.New(rand.NewPCG(4, 4)))
	large := func(edit func(l *layer, dY []float32)) []*headwaterv1.RunRequest {
		l, d := *small, slices.Clone(dY)
		for _, x := range []*[]float32{&l.x, &l.wq, &l.wk, &l.wv, &l.wo} {
			*x = slices.Clone(*x)
		}
		edit(&l, d)
		return slices.Concat([]*headwaterv1.RunRequest{openOf(l.problem)}, l.load([]uint32{0, 1}, 3), l.teach(d, []uint32{1}, 2))
	}
	good := large(func(*layer, []float32) {})
	if _, err := play(t, newPlace(t, 1<<22, 1), false, good...); err != nil {
		t.Fatal(err)
	}
	without := func(kind headwaterv1.Weight) []*headwaterv1.RunRequest {
		return slices.DeleteFunc(slices.Clone(good), func(m *headwaterv1.RunRequest) bool { return m.GetWeights().GetWeight() == kind })
	}
	last := func(edit func(m *headwaterv1.GradientBlock)) []*headwaterv1.RunRequest {
		m := proto.CloneOf(good[len(good)-1])
		edit(m.GetGradient())
		return append(slices.Clone(good[:len(good)-1]), m)
	}
	const most = math.MaxFloat32 / 2
	for name, c := range map[string]struct {
		messages []*headwaterv1.RunRequest
		code     codes.Code
		rule     string
	}{
		"no w_q":        {without(headwaterv1.Weight_WEIGHT_QUERY), codes.FailedPrecondition, "0 of 8 rows of w_q are here"},
		"no w_o":        {without(headwaterv1.Weight_WEIGHT_CONTEXT), codes.FailedPrecondition, "0 of 6 rows of w_o are here"},
		"no cosines":    {last(func(m *headwaterv1.GradientBlock) { m.Cos = nil }), codes.InvalidArgument, "cos has 0 and sin 4 bytes"},
		"short x":       {last(func(m *headwaterv1.GradientBlock) { m.Q = m.Q[4:] }), codes.InvalidArgument, "q from token 4: 20 bytes are not 6"},
		"NaN in d_y":    {last(func(m *headwaterv1.GradientBlock) { copy(m.DContext, bytesOf(nan)) }), codes.InvalidArgument, "d_y from token 4: element 0 is NaN"},
		"given context": {last(func(m *headwaterv1.GradientBlock) { m.Context = m.Q }), codes.InvalidArgument, "context must not be given"},
		"d_context": {large(func(l *layer, dY []float32) {
			dY[3*6+1], dY[3*6+2] = most, most
			for c := range l.wo {
				l.wo[c] = 10
			}
		}), codes.OutOfRange, "d_context: head 2, token 3, element 0: is not finite"},
		"d_w_o": {large(func(l *layer, dY []float32) {
			clear(l.wo)
			for i := range l.wv {
				l.wv[i] = 10
			}
			for i := range l.x {
				l.x[i] = 1
			}
			dY[4], dY[6+4] = most, most
		}), codes.OutOfRange, "d_w_o: head 2, row 4, column 6: is not finite"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := play(t, newPlace(t, 1<<22, 1), false, c.messages...)
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.rule) {
				t.Errorf("got %v, want %s and %q", err, c.code, c.rule)
			}
		})
	}
}
