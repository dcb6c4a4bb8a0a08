//go:build unix

package attention

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"headwater.example/tensor"
)

// TestWriteKeys holds the transposition in assembly against that in Go, for elements and rows of any size, with keys and
// pages between guards.
func TestWriteKeys(t *testing.T) {
	skipIfRaced(t)
	for i := range kernels {
		v := kernels[i].vector
		if v == nil {
			continue
		}
		rnd := rand.New(rand.NewPCG(1, 5))
		for _, size := range []int{1, 2, 4} {
			for dim := 1; dim < 150; dim++ {
				g := &guards{t: t}
				n := 1 + rnd.IntN(PageLen)
				at := rnd.IntN(PageLen - n + 1)
				stride := dim*size + 2*rnd.IntN(2)
				rows, k := g.bytes((n-1)*stride+dim*size, dim%2 == 0), g.bytes(PageLen*dim*size, rnd.IntN(2) == 0)
				for i := range rows {
					rows[i] = byte(rnd.Uint32())
				}
				for i := range k {
					k[i] = byte(rnd.Uint32())
				}
				want := bytes.Clone(k)
				writeKeys(want, rows, stride, at, n, dim, size)
				v.writeKeys(k, rows, stride, at, n, dim, size)
				if !bytes.Equal(k, want) {
					t.Fatalf("%s: %d rows of %d elements of %d bytes from %d differ", kernels[i].name, n, dim, size, at)
				}
				g.free()
			}
		}
	}
}

// TestReadKeys holds the columns that are read eight bytes at once against those read one element after the other, and what is around
// them stays as it is.
func TestReadKeys(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 7))
	for _, size := range []int{1, 2, 4} {
		for dim := 1; dim < 150; dim++ {
			n := 1 + rnd.IntN(PageLen)
			at := rnd.IntN(PageLen - n + 1)
			stride := dim*size + rnd.IntN(3)
			k, rows := make([]byte, PageLen*dim*size), make([]byte, (n-1)*stride+dim*size)
			for i := range k {
				k[i] = byte(rnd.Uint32())
			}
			for i := range rows {
				rows[i] = byte(rnd.Uint32())
			}
			want := bytes.Clone(rows)
			for u := range n {
				for i := range dim {
					copy(want[u*stride+i*size:], k[(i*PageLen+at+u)*size:][:size])
				}
			}
			if readKeys(rows, k, stride, at, n, dim, size); !bytes.Equal(rows, want) {
				t.Fatalf("%d rows of %d elements of %d bytes from %d differ", n, dim, size, at)
			}
		}
	}
}

// TestReadKeysInAssembly holds what each kernel reads, from the columns of keys of 64 elements, against the function in Go.
func TestReadKeysInAssembly(t *testing.T) {
	skipIfRaced(t)
	for i := range kernels {
		v := kernels[i].vector
		if v == nil {
			continue
		}
		rnd := rand.New(rand.NewPCG(1, 9))
		for range 100 {
			for _, size := range []int{1, 2, 4} {
				g := &guards{t: t}
				n := 1 + rnd.IntN(PageLen)
				at := rnd.IntN(PageLen - n + 1)
				stride := PageLen * size
				k, rows := g.bytes(PageLen*stride, rnd.IntN(2) == 0), g.bytes(n*stride, rnd.IntN(2) == 0)
				for i := range k {
					k[i] = byte(rnd.Uint32())
				}
				want := make([]byte, n*stride)
				readKeys(want, k, stride, at, n, PageLen, size)
				if v.readKeys(rows, k, stride, at, n, PageLen, size); !bytes.Equal(rows, want) {
					t.Fatalf("%s: %d rows of elements of %d bytes from %d differ", kernels[i].name, n, size, at)
				}
				g.free()
			}
		}
	}
}

// TestUnweave takes the pairs of two rows apart again.
func TestUnweave(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 8))
	for n := 1; n < 100; n++ {
		first, second, pairs := make([]byte, 2*n), make([]byte, 2*n), make([]byte, 4*n)
		for i := range pairs {
			pairs[i] = byte(rnd.Uint32())
		}
		unweave(first, second, pairs)
		for i := range n {
			if !bytes.Equal(pairs[4*i:][:2], first[2*i:][:2]) || !bytes.Equal(pairs[4*i+2:][:2], second[2*i:][:2]) {
				t.Fatalf("%d elements: pair %d is %x, read as %x and %x", n, i, pairs[4*i:][:4], first[2*i:][:2], second[2*i:][:2])
			}
		}
	}
}

// TestUnweaveRows holds the rows of pairs in assembly against those in Go.
func TestUnweaveRows(t *testing.T) {
	skipIfRaced(t)
	for i := range kernels {
		v := kernels[i].vector
		if v == nil {
			continue
		}
		rnd := rand.New(rand.NewPCG(1, 9))
		for n := 1; n < 100; n++ {
			g := &guards{t: t}
			first, second, pairs := g.bytes(2*n, n%2 == 0), g.bytes(2*n, rnd.IntN(2) == 0), g.bytes(4*n, rnd.IntN(2) == 0)
			for j := range pairs {
				pairs[j] = byte(rnd.Uint32())
			}
			wantFirst, wantSecond := make([]byte, 2*n), make([]byte, 2*n)
			unweave(wantFirst, wantSecond, pairs)
			if v.unweaveRows(first, second, pairs); !bytes.Equal(first, wantFirst) || !bytes.Equal(second, wantSecond) {
				t.Fatalf("%s: %d pairs %x: rows %x and %x", kernels[i].name, n, pairs, first, second)
			}
			g.free()
		}
	}
}

// TestWeave holds the pairs of two rows in assembly against those in Go.
func TestWeave(t *testing.T) {
	skipIfRaced(t)
	for i := range kernels {
		v := kernels[i].vector
		if v == nil {
			continue
		}
		rnd := rand.New(rand.NewPCG(1, 6))
		for n := 1; n < 100; n++ {
			g := &guards{t: t}
			first, second, pairs := g.bytes(2*n, n%2 == 0), g.bytes(2*n, rnd.IntN(2) == 0), g.bytes(4*n, rnd.IntN(2) == 0)
			want := make([]byte, 4*n)
			for j := range n {
				for b := range 2 {
					first[2*j+b], second[2*j+b] = byte(rnd.Uint32()), byte(rnd.Uint32())
					want[4*j+b], want[4*j+2+b] = first[2*j+b], second[2*j+b]
				}
			}
			if v.weaveRows(pairs, first, second); !bytes.Equal(pairs, want) {
				t.Fatalf("%s: %d elements: pairs %x of %x and %x", kernels[i].name, n, pairs, first, second)
			}
			clear(pairs)
			if weave(pairs, first, second); !bytes.Equal(pairs, want) {
				t.Fatalf("%d elements in Go: pairs %x of %x and %x", n, pairs, first, second)
			}
			g.free()
		}
	}
}

// BenchmarkWrite appends to the pages of 1,000 sequences of 8 groups, one position to each in turn, and whole pages;
// beside it what keeping the newest page's keys as they come would take and cost: to copy them, and to transpose up to a
// page of them at each attention.
func BenchmarkWrite(b *testing.B) {
	const pages = 8000
	for _, dt := range storages {
		l, err := NewLayout(dt, 128, 128)
		if err != nil {
			b.Fatal(err)
		}
		size := l.PageBytes()
		arena := make([]byte, pages*size)
		rows := rowsOf(l, PageLen)
		one := Rows{K: rows.K[:l.KRowBytes()], V: rows.V[:l.VRowBytes()]}
		if l.scaled() {
			one.KScale, one.VScale = rows.KScale[:1], rows.VScale[:1]
		}
		page := func(i int) []byte { return arena[i%pages*size:][:size] }
		run := func(name string, do func(i int)) {
			b.Run(fmt.Sprint(dt, " ", name), func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					do(i)
				}
			})
		}
		run("position", func(i int) {
			if err := l.Write(page(i), i/pages%PageLen, 1, one); err != nil {
				b.Fatal(err)
			}
		})
		run("position as it comes", func(i int) {
			p, at := page(i), i/pages%PageLen
			copy(p[at*l.KRowBytes():], one.K)
			copy(p[l.kBytes()+at*l.VRowBytes():], one.V)
		})
		run("read a page", func(i int) {
			if err := l.Read(page(i), 0, PageLen, rows); err != nil {
				b.Fatal(err)
			}
		})
		run("page", func(i int) {
			if err := l.Write(page(i), 0, PageLen, rows); err != nil {
				b.Fatal(err)
			}
		})
		k := make([]byte, l.kBytes())
		run("transpose 32 at attention", func(i int) {
			if v := selected.Load().kernel.vector; v != nil {
				v.writeKeys(k, page(i)[:32*l.KRowBytes()], l.KRowBytes(), 0, 32, 128, dt.Size())
			}
		})
		if dt != tensor.F32 {
			continue
		}
		run("page in Go", func(i int) { writeKeys(page(i), rows.K, l.KRowBytes(), 0, PageLen, 128, 4) })
	}
}
