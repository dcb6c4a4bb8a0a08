package attention

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"headwater.example/tensor"
)

func TestLayoutReadsWhatItWrote(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, dt := range storages {
		for _, dims := range [][2]int{{1, 1}, {3, 17}, {64, 16}, {512, 512}} {
			l, err := NewLayout(dt, dims[0], dims[1])
			if err != nil {
				t.Fatal(err)
			}
			if l.PageBytes()%64 != 0 || l.DType() != dt || l.HeadDim() != dims[0] || l.VDim() != dims[1] {
				t.Fatalf("%+v: a page of %d bytes", l, l.PageBytes())
			}
			page := bytes.Repeat([]byte{0xff}, l.PageBytes())
			whole := rowsOf(l, PageLen)
			for at := 0; at < PageLen; {
				n := min(1+rnd.IntN(20), PageLen-at)
				rows := rowsOf(l, n)
				for _, b := range [][]byte{rows.K, rows.V} {
					for i := range b {
						b[i] = byte(rnd.Uint32())
					}
				}
				for i := range rows.KScale {
					rows.KScale[i], rows.VScale[i] = rnd.Float32(), rnd.Float32()
				}
				if err := l.Write(page, at, n, rows); err != nil {
					t.Fatal(err)
				}
				copy(whole.K[at*l.KRowBytes():], rows.K)
				copy(whole.V[at*l.VRowBytes():], rows.V)
				if dt == tensor.I8 {
					copy(whole.KScale[at:], rows.KScale)
					copy(whole.VScale[at:], rows.VScale)
				}
				at += n
			}
			got := rowsOf(l, 60)
			if err := l.Read(page, 4, 60, got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.K, whole.K[4*l.KRowBytes():]) || !bytes.Equal(got.V, whole.V[4*l.VRowBytes():]) {
				t.Errorf("%+v: other keys or values came back", l)
			}
			if dt == tensor.I8 && (!slices.Equal(got.KScale, whole.KScale[4:]) || !slices.Equal(got.VScale, whole.VScale[4:])) {
				t.Errorf("%+v: other scales came back", l)
			}
			// The documented places of position 5's last elements: [head_dim][64] and [64][v_dim], or pairs of them.
			i, j, size, stride := dims[0]-1, dims[1]-1, dt.Size(), (dims[1]+15)/16*16
			atK, atV := (i*PageLen+5)*size, (dims[0]*PageLen+5*stride+j)*size
			if dt == tensor.BF16 {
				atK = (i/2*PageLen+5)*4 + i%2*2
				atV = (dims[0]+1)/2*PageLen*4 + (2*stride+j)*4 + 2
				if i%2 == 0 && (page[atK+2] != 0 || page[atK+3] != 0) {
					t.Errorf("%+v: the last key has something above it", l)
				}
			}
			if !bytes.Equal(page[atK:][:size], whole.K[5*l.KRowBytes()+i*size:][:size]) {
				t.Errorf("%+v: K is not transposed", l)
			}
			if !bytes.Equal(page[atV:][:size], whole.V[5*l.VRowBytes()+j*size:][:size]) {
				t.Errorf("%+v: V is elsewhere", l)
			}
		}
	}
}

func rowsOf(l Layout, n int) Rows {
	r := Rows{K: make([]byte, n*l.KRowBytes()), V: make([]byte, n*l.VRowBytes())}
	if l.scaled() {
		r.KScale, r.VScale = make([]float32, n), make([]float32, n)
	}
	return r
}

func TestLayoutRefuses(t *testing.T) {
	for _, c := range []struct {
		dt   tensor.DType
		k, v int
		want string
	}{
		{tensor.F64, 4, 4, "stored as F64"},
		{0, 4, 4, "stored"},
		{tensor.F32, 0, 4, "head_dim is 0"},
		{tensor.F32, 513, 4, "head_dim is 513"},
		{tensor.F32, 4, 0, "v_dim is 0"},
		{tensor.F32, 4, 513, "v_dim is 513"},
	} {
		if _, err := NewLayout(c.dt, c.k, c.v); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want one with %q", err, c.want)
		}
	}
	l, _ := NewLayout(tensor.I8, 4, 4)
	page := make([]byte, l.PageBytes())
	for _, c := range []struct {
		page  []byte
		at, n int
		rows  Rows
		want  string
	}{
		{page[1:], 0, 1, rowsOf(l, 1), "page has"},
		{page, -1, 1, rowsOf(l, 1), "do not lie"},
		{page, 64, 1, rowsOf(l, 1), "do not lie"},
		{page, 1, math.MaxInt, rowsOf(l, 1), "do not lie"},
		{page, 0, 2, rowsOf(l, 1), "of K and"},
		{page, 0, 1, Rows{K: make([]byte, 4), V: make([]byte, 4)}, "scales"},
	} {
		for _, err := range []error{l.Write(c.page, c.at, c.n, c.rows), l.Read(c.page, c.at, c.n, c.rows)} {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want one with %q", err, c.want)
			}
		}
	}
	if err := (Layout{}).Write(page, 0, 0, Rows{}); err == nil {
		t.Error("a layout that nothing made is taken")
	}
}
