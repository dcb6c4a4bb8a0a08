package coordinator_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/accuracy"
	"headwater.example/tensor"
)

// lessons is a job of kind attention_grad with every storage type that has gradients, masks and biases for one and for all
// heads, and options that differ. Without a bias that differs from head to head, a bias is shared by all groups.
func lessons(t *testing.T) (m *maker, options string) {
	t.Helper()
	m = newMaker(11)
	m.f32("seqs.0.q", 1, 150, 12, 24)
	m.f32("seqs.0.k", 1, 200, 4, 24)
	m.f32("seqs.0.v", 1, 200, 4, 16)
	m.f32("seqs.0.d_context", 1, 150, 12, 16)
	m.mask("seqs.0.mask", 1, 150, 200)
	m.f32("seqs.0.bias", 1, 1, 150, 200)
	m.f32("seqs.1.q", 1, 40, 6, 24)
	m.as(tensor.F16, "seqs.1.k", 130, 3, 24)
	m.as(tensor.F16, "seqs.1.v", 130, 3, 40)
	m.as(tensor.BF16, "seqs.1.d_context", 40, 6, 40)
	m.f32("seqs.1.bias", 1, 6, 40, 130)
	m.as(tensor.F16, "seqs.2.q", 3, 5, 7)
	m.as(tensor.BF16, "seqs.2.k", 70, 5, 7)
	m.as(tensor.BF16, "seqs.2.v", 70, 5, 7)
	m.f32("seqs.2.d_context", 3, 3, 5, 7)
	m.mask("seqs.2.mask", 5, 3, 70)
	m.f32("seqs.3.q", 1, 5, 8, 32)
	m.f32("seqs.3.k", 1, 2200, 1, 32)
	m.f32("seqs.3.v", 1, 2200, 1, 32)
	m.f32("seqs.3.d_context", 1, 5, 8, 32)
	m.f32("seqs.3.bias", 1, 1, 5, 2200)
	return m, `{"kind":"attention_grad","problems":{
		"seqs.0.":{"causal":true,"sinks":[1,2,3,4,5,6,7,8,9,10,11,12]},
		"seqs.1.":{"window_left":20,"softcap":30,"kv_len":128},
		"seqs.2.":{"alibi_slopes":[0.5,0.25,0.125,0.0625,0.03125]}}}`
}

// layerLessons is a job of kind layer_grad: three sequences that share weights, biases and a bias of attention, and one of its
// own, of other sizes.
func layerLessons(t *testing.T) (m *maker, options string) {
	t.Helper()
	m = newMaker(12)
	const model = 40
	weights := func(prefix string, dt tensor.DType, heads, groups, hd, vd int) {
		m.as(dt, prefix+"w_q", heads*hd, model)
		m.as(dt, prefix+"w_k", groups*hd, model)
		m.as(dt, prefix+"w_v", groups*vd, model)
		m.as(dt, prefix+"w_o", model, heads*vd)
	}
	weights("", tensor.F32, 12, 4, 8, 6)
	m.f32("b_q", 1, 12*8)
	m.f32("b_v", 1, 4*6)
	m.f32("b_o", 1, model)
	m.f32("bias", 1, 1, 70, 70)
	for _, prefix := range []string{"seqs.0.", "seqs.1.", "seqs.3."} {
		m.f32(prefix+"x", 0.2, 70, model)
		m.f32(prefix+"d_y", 1, 70, model)
	}
	m.as(tensor.F16, "seqs.2.x", 130, model)
	m.as(tensor.BF16, "seqs.2.d_y", 130, model)
	weights("seqs.2.", tensor.BF16, 6, 3, 8, 16)
	m.f32("seqs.2.b_k", 1, 3*8)
	m.f32("seqs.2.bias", 1, 6, 130, 130)
	m.mask("seqs.2.mask", 1, 130, 130)
	m.f32("seqs.2.b_q", 1, 6*8) // the shared ones are of another size
	m.f32("seqs.2.b_v", 1, 3*16)
	return m, `{"kind":"layer_grad","causal":true,"rope":{"dims":6,"mscale":1.25},"problems":{
		"seqs.0.":{"n_heads":12,"sinks":[1,2,3,4,5,6,7,8,9,10,11,12]},
		"seqs.1.":{"n_heads":12,"kv_len":66,"window_left":20,"softcap":30},
		"seqs.3.":{"n_heads":12},
		"seqs.2.":{"n_heads":6,"scale":0.1,"rope":{"interleaved":true}}}}`
}

// TestGradientsOfLayersOnAnyCluster: they are near the truth, and the same bits for any number of workers and size of blocks.
func TestGradientsOfLayersOnAnyCluster(t *testing.T) {
	m, options := layerLessons(t)
	onAnyCluster(t, m.write(t, options), 4+2*(4+3+1)+1)
}

// TestGradientsOnAnyCluster: they are near the truth, and the same bits for any number of workers and size of blocks.
func TestGradientsOnAnyCluster(t *testing.T) {
	m, options := lessons(t)
	onAnyCluster(t, m.write(t, options), 4*3+3+1)
}

// onAnyCluster holds the gradients of a job, so many tensors, against the truth, and those of any cluster against each other.
func onAnyCluster(t *testing.T, path string, tensors int) {
	t.Helper()
	_, want := startCluster(t, clusterOptions{workers: workers(1)}).run(t, client.SubmitOptions{Path: path})
	file, err := openTensors(t, path)
	if err != nil {
		t.Fatal(err)
	}
	nearTruth(t, want, file, tensors)
	for _, n := range []int{2, 3, 5, 7} {
		c := startCluster(t, clusterOptions{workers: workers(n), config: coordinator.Config{BlockBytes: 5000}})
		_, got := c.run(t, client.SubmitOptions{Path: path})
		same(t, fmt.Sprintf("%d workers", n), want, got)
		c.stop()
	}
}

func nearTruth(t *testing.T, result, job *tensor.File, tensors int) {
	t.Helper()
	found, err := accuracy.AgainstJob(context.Background(), result, job)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != tensors {
		t.Errorf("%d tensors were compared, not %d", len(found), tensors)
	}
	for _, e := range found {
		worst, row := e.Worst()
		if !(worst <= 16) {
			t.Errorf("%s, row %d: off by %.3g units", e.Tensor, row, worst)
		}
	}
}

// TestGradientsOfAGivenContext: contexts and LSEs that a job of kind attention gave lead to the bits that are computed
// without them, and others are refused where they can not be right.
func TestGradientsOfAGivenContext(t *testing.T) {
	m, options := lessons(t)
	c := startCluster(t, clusterOptions{workers: workers(2)})
	_, want := c.run(t, client.SubmitOptions{Path: m.write(t, options)})
	forward := &maker{}
	for _, d := range m.tensors {
		if len(d.Name) < 9 || d.Name[len(d.Name)-9:] != "d_context" {
			forward.tensors = append(forward.tensors, d)
		}
	}
	_, contexts := c.run(t, client.SubmitOptions{Path: forward.write(t, options), Overrides: []byte(`{"kind":"attention"}`)})
	for _, name := range contexts.Names() {
		info, _ := contexts.Lookup(name)
		m.tensors = append(m.tensors, tensor.Data{Info: info, Bytes: read(t, contexts, name)})
	}
	_, got := c.run(t, client.SubmitOptions{Path: m.write(t, options)})
	same(t, "contexts given", want, got)

	lse := m.tensors[len(m.tensors)-1]
	for i := range lse.Bytes {
		lse.Bytes[i] = 0 // the scores are above
	}
	job, err := c.Submit(t.Context(), client.SubmitOptions{Path: m.write(t, options)})
	if err != nil {
		t.Fatal(err)
	}
	const rule = "problem 3 gradients of group 0: head 0, token 0: its LSE 0 is below a score"
	if _, err = c.Wait(t.Context(), job.ID, nil); err == nil || !strings.Contains(err.Error(), rule) {
		t.Errorf("an LSE of 0 everywhere: %v, want %q", err, rule)
	}
}

// TestGradientsAccumulate: a batch that is cut between its sequences gives the bits of one job, when each part adds onto the
// gradients of the parts before it, on any cluster; and the sums are near the truth.
func TestGradientsAccumulate(t *testing.T) {
	m, options := layerLessons(t)
	whole := m.write(t, options)
	// Sequence 2 has weights and biases of its own.
	parts := func(own func(name string) bool) *maker {
		return &maker{tensors: slices.DeleteFunc(slices.Clone(m.tensors), func(d tensor.Data) bool { return !own(d.Name) })}
	}
	shared := func(name string) bool { return !strings.HasPrefix(name, "seqs.") }
	of := func(prefixes ...string) func(name string) bool {
		return func(name string) bool {
			return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
		}
	}
	first := parts(func(name string) bool { return shared(name) || of("seqs.0.")(name) }).write(t, onlyProblems(t, options, "seqs.0."))
	second := parts(func(name string) bool { return shared(name) || of("seqs.1.", "seqs.2.", "seqs.3.")(name) }).write(t, onlyProblems(t, options, "seqs.1.", "seqs.2.", "seqs.3."))
	c := startCluster(t, clusterOptions{workers: workers(3)})
	_, want := c.run(t, client.SubmitOptions{Path: whole})
	_, half := c.run(t, client.SubmitOptions{Path: first})
	// d_x and d_sinks of sequence 0 are of no tensor of the second job.
	earlier := &maker{}
	for _, name := range half.Names() {
		if info, _ := half.Lookup(name); shared(name) {
			earlier.tensors = append(earlier.tensors, tensor.Data{Info: info, Bytes: read(t, half, name)})
		}
	}
	file, err := openTensors(t, earlier.write(t, "{}"))
	if err != nil {
		t.Fatal(err)
	}
	_, got := c.run(t, client.SubmitOptions{Path: second, Accumulate: file})
	for _, name := range got.Names() {
		if !bytes.Equal(read(t, got, name), read(t, want, name)) {
			t.Errorf("%s has other bits than in one job", name)
		}
	}

	// Twice the same: what is not summed over problems is added, too.
	again := parts(of("seqs.2."))
	path := again.write(t, onlyProblems(t, options, "seqs.2."))
	_, once := c.run(t, client.SubmitOptions{Path: path})
	_, twice := c.run(t, client.SubmitOptions{Path: path, Accumulate: once})
	for _, name := range once.Names() {
		x, y := floats(read(t, once, name)), floats(read(t, twice, name))
		for i := range x {
			if math.Float32bits(x[i]+x[i]) != math.Float32bits(y[i]) {
				t.Fatalf("%s[%d] is %g once and %g twice", name, i, x[i], y[i])
			}
		}
		info, _ := once.Lookup(name)
		again.tensors = append(again.tensors, tensor.Data{Info: info, Bytes: read(t, once, name)})
	}
	if file, err = openTensors(t, again.write(t, onlyProblems(t, options, "seqs.2."))); err != nil {
		t.Fatal(err)
	}
	nearTruth(t, twice, file, len(once.Names()))
	for _, opts := range []client.SubmitOptions{{File: file}, {Path: path}} {
		opts.Accumulate = once
		_, err = c.Submit(t.Context(), opts)
		if both := opts.File != nil; both != (err != nil && strings.Contains(err.Error(), "is in ")) {
			t.Errorf("%v", err)
		}
	}
}

// TestGradientsThatAreNotFinite: the error names the element, also where it comes of adding up, or of the last product.
func TestGradientsThatAreNotFinite(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(2)})
	// One token attends to itself alone, so v passes: y is w_o·w_v·x, and all else is 0.
	const large = 3e38
	layer := func(prefix string, x, dY float32) []tensor.Data {
		m := &maker{}
		for _, s := range []struct {
			name string
			x    []float32
		}{{"x", []float32{0, x}}, {"d_y", []float32{dY, 0}}} {
			m.put(tensor.Info{Name: prefix + s.name, DType: tensor.F32, Shape: []int{1, 2}}, s.x)
		}
		return m.tensors
	}
	weights := func(m *maker, o, v float32) *maker {
		for name, x := range map[string][]float32{"w_q": {0, 0}, "w_k": {0, 0}, "w_v": {0, v}, "w_o": {o, 0}} {
			shape := []int{1, 2}
			if name == "w_o" {
				shape = []int{2, 1}
			}
			m.put(tensor.Info{Name: name, DType: tensor.F32, Shape: shape}, x)
		}
		return m
	}
	for name, job := range map[string]*maker{
		"d_x: row 0, column 1: is not finite": weights(&maker{tensors: layer("", 0, large)}, 1, 2),
		"d_w_v: [0 1]: is not finite":         weights(&maker{tensors: slices.Concat(layer("seqs.0.", 1, large), layer("seqs.1.", 1, large))}, 1, 0),
		"d_w_v: head 0, row 0, column 1: is":  weights(&maker{tensors: layer("", 2, large)}, 1, 0),
	} {
		submitted, err := c.Submit(t.Context(), client.SubmitOptions{Path: job.write(t, `{"kind":"layer_grad","head_dim":1}`)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = c.Wait(t.Context(), submitted.ID, nil); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
	}
}

// onlyProblems leaves out what options say of other problems.
func onlyProblems(t *testing.T, options string, prefixes ...string) string {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal([]byte(options), &fields); err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(fields["problems"].(map[string]any), func(prefix string, _ any) bool { return !slices.Contains(prefixes, prefix) })
	text, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func floats(p []byte) []float32 {
	x := make([]float32, len(p)/4)
	for i := range x {
		x[i] = math.Float32frombits(binary.LittleEndian.Uint32(p[4*i:]))
	}
	return x
}
