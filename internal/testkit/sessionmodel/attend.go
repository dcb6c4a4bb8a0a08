package sessionmodel

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"

	"pgregory.net/rapid"

	"headwater.example/attention/reference"
	"headwater.example/client"
	"headwater.example/tensor"
)

// maxUnits is the bound on the error of a context, in units of its row; see docs/numerics.md.
const maxUnits = 8

// Attend is what queries saw of a session, and what they were to see.
type Attend struct {
	what     string
	layer    client.Layer
	kept     []*position
	q        []float32 // [tokens, n_heads, head_dim]
	position int
	mask     []byte // [tokens, len(kept)], 0 hides; nil is none
	codec    client.Codec

	context, lse []float32 // [tokens, n_heads, v_dim] and [tokens, n_heads]
}

func (a *Attend) tokens() int { return len(a.q) / (a.layer.Heads * a.layer.HeadDim) }

// lossless says whether the context came back as it was computed.
func (a *Attend) lossless() bool {
	return a.codec == client.Auto || a.codec == client.Raw || a.codec == client.Exact
}

// check holds a context to the float64 reference.
func (a *Attend) check(t *rapid.T, context []float32) {
	l := a.layer
	p := reference.Problem{
		Tokens: a.tokens(), KVTokens: len(a.kept), KVLen: len(a.kept), Heads: l.Heads, KVHeads: l.KVHeads, HeadDim: l.HeadDim, VDim: l.VDim,
		Q: wide(a.q), Offset: int64(a.position), Causal: !l.NotCausal, WindowLeft: -1, WindowRight: -1,
		Scale: float64(l.Scale), Softcap: float64(l.Softcap), AlibiSlopes: wide(l.AlibiSlopes), Sinks: wide(l.Sinks),
	}
	if l.Scale == 0 {
		p.Scale = float64(float32(1 / math.Sqrt(float64(l.HeadDim))))
	}
	if n, bounded := l.WindowLeft.Positions(); bounded {
		p.WindowLeft = int64(n)
	}
	if n, bounded := l.WindowRight.Positions(); bounded {
		p.WindowRight = int64(n)
	}
	if a.mask != nil {
		p.Mask, p.MaskHeads = a.mask, 1
	}
	for _, at := range a.kept {
		p.K = append(p.K, widen(at.storedK, at.kScale, l.HeadDim, l.Storage)...)
		p.V = append(p.V, widen(at.storedV, at.vScale, l.VDim, l.Storage)...)
	}
	if units, token, head := reference.Attend(p).Units(context); units > maxUnits {
		t.Fatalf("%s: token %d, head %d is %.1f units from the reference", a.what, token, head, units)
	}
}

func wide(x []float32) []float64 {
	w := make([]float64, len(x))
	for i := range x {
		w[i] = float64(x[i])
	}
	return w
}

// CompareWithJobs computes what was attended anew, as one job of a problem each, and compares every bit.
func CompareWithJobs(t *rapid.T, c *client.Client, attends []Attend) {
	if len(attends) == 0 {
		return
	}
	dir, err := os.MkdirTemp("", "headwater-model-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	job, err := c.Submit(t.Context(), client.SubmitOptions{Path: writeJob(t, dir, attends)})
	if err == nil {
		job, err = c.Wait(t.Context(), job.ID, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "result.safetensors")
	if _, err := c.Download(t.Context(), job.ID, path, nil); err != nil {
		t.Fatal(err)
	}
	result, err := tensor.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	for i := range attends {
		a := &attends[i]
		context, lse := make([]float32, len(a.context)), make([]float32, len(a.lse))
		read(t, result, prefix(i)+"context", context)
		read(t, result, prefix(i)+"lse", lse)
		if !a.lossless() {
			a.check(t, context)
			narrow(t, context, a.layer.VDim, a.codec)
		}
		same(t, a.what+": context", a.context, context)
		same(t, a.what+": LSE", a.lse, lse)
	}
}

func prefix(i int) string { return fmt.Sprintf("seqs.%d.", i) }

// writeJob writes what was attended as a job file.
func writeJob(t *rapid.T, dir string, attends []Attend) string {
	var all []tensor.Data
	problems := map[string]any{}
	for i := range attends {
		a := &attends[i]
		l, n := a.layer, len(a.kept)
		add := func(name string, dt tensor.DType, b []byte, shape ...int) {
			all = append(all, tensor.Data{Info: tensor.Info{Name: prefix(i) + name, DType: dt, Shape: shape}, Bytes: b})
		}
		var k, v []byte
		var kScale, vScale []float32
		for _, at := range a.kept {
			k, v = append(k, at.storedK...), append(v, at.storedV...)
			kScale, vScale = append(kScale, at.kScale...), append(vScale, at.vScale...)
		}
		add("q", tensor.F32, floatBytes(a.q), a.tokens(), l.Heads, l.HeadDim)
		add("k", l.Storage, k, n, l.KVHeads, l.HeadDim)
		add("v", l.Storage, v, n, l.KVHeads, l.VDim)
		if l.Storage == tensor.I8 {
			add("k_scale", tensor.F32, floatBytes(kScale), n, l.KVHeads)
			add("v_scale", tensor.F32, floatBytes(vScale), n, l.KVHeads)
		}
		if a.mask != nil {
			add("mask", tensor.U8, a.mask, 1, a.tokens(), n)
		}
		o := map[string]any{"causal": !l.NotCausal, "offset": a.position, "softcap": l.Softcap, "arithmetic": l.Arithmetic.String()}
		if n, bounded := l.WindowLeft.Positions(); bounded {
			o["window_left"] = n
		}
		if n, bounded := l.WindowRight.Positions(); bounded {
			o["window_right"] = n
		}
		if l.Scale != 0 {
			o["scale"] = l.Scale
		}
		if l.AlibiSlopes != nil {
			o["alibi_slopes"] = l.AlibiSlopes
		}
		if l.Sinks != nil {
			o["sinks"] = l.Sinks
		}
		problems[prefix(i)] = o
	}
	options, err := json.Marshal(map[string]any{"problems": problems})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, func(a, b tensor.Data) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	var b bytes.Buffer
	if err := tensor.WriteSafetensors(&b, all, map[string]string{"headwater": string(options)}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "job.safetensors")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *rapid.T, f *tensor.File, name string, x []float32) {
	b := make([]byte, 4*len(x))
	if err := f.ReadAt(b, name, 0); err != nil {
		t.Fatal(err)
	}
	if err := tensor.Widen(x, b, tensor.F32); err != nil {
		t.Fatal(err)
	}
}

// narrow makes of a context what a lossy codec leaves of it.
func narrow(t *rapid.T, context []float32, width int, codec client.Codec) {
	dt := map[client.Codec]tensor.DType{client.BF16: tensor.BF16, client.F16: tensor.F16, client.Int8: tensor.I8}[codec]
	b, scales := store(context, width, dt)
	if dt != tensor.I8 {
		if err := tensor.Widen(context, b, dt); err != nil {
			t.Fatal(err)
		}
		return
	}
	for i := range context {
		context[i] = float32(int8(b[i])) * scales[i/width]
	}
}

func same(t *rapid.T, what string, got, want []float32) {
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s: element %d of %d is %v, the job's is %v", what, i, len(want), got[i], want[i])
		}
	}
}

func floatBytes(x []float32) []byte {
	b := make([]byte, 0, 4*len(x))
	for _, f := range x {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
	}
	return b
}
