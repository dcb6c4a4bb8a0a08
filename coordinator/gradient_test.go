package coordinator_test

import (
	"context"
	"fmt"
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

// layerLessons is a job of kind layer_grad: two sequences that share weights, biases and a bias of attention, and one of its
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
	for _, prefix := range []string{"seqs.0.", "seqs.1."} {
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
		"seqs.2.":{"n_heads":6,"scale":0.1,"rope":{"interleaved":true}}}}`
}

// TestGradientsOfLayersOnAnyCluster: they are near the truth, and the same bits for any number of workers and size of blocks.
func TestGradientsOfLayersOnAnyCluster(t *testing.T) {
	m, options := layerLessons(t)
	onAnyCluster(t, m.write(t, options), 3+2*(4+3+1)+1)
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
	found, err := accuracy.AgainstJob(context.Background(), want, file)
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
	for _, n := range []int{2, 3, 5, 7} {
		c := startCluster(t, clusterOptions{workers: workers(n), config: coordinator.Config{BlockBytes: 5000}})
		_, got := c.run(t, client.SubmitOptions{Path: path})
		same(t, fmt.Sprintf("%d workers", n), want, got)
		c.stop()
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
