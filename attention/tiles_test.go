//go:build unix

package attention

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"headwater.example/attention/internal/amx"
	"headwater.example/tensor"
)

func TestArithmeticNames(t *testing.T) {
	for i, name := range ArithmeticNames() {
		a, err := ParseArithmetic(name)
		if err != nil || a != Arithmetic(i) || a.String() != name {
			t.Errorf("%s: %v, %v", name, a, err)
		}
	}
	for _, name := range []string{"", "Chain", "tiles_bf16"} {
		if _, err := ParseArithmetic(name); err == nil {
			t.Errorf("%q passes", name)
		}
	}
	for _, dt := range storages {
		l, err := NewLayout(dt, 8, 8)
		if err != nil {
			t.Fatal(err)
		}
		if l.Arithmetic() != Chain {
			t.Errorf("%s: arithmetic %s by default", dt, l.Arithmetic())
		}
		tiles, err := l.WithArithmetic(Tiles)
		if dt != tensor.BF16 {
			if err == nil || !strings.Contains(err.Error(), "tiles takes keys and values stored as BF16, not as "+dt.String()) {
				t.Errorf("%s: %v", dt, err)
			}
			continue
		}
		if err != nil || tiles == l || tiles.Arithmetic() != Tiles || tiles.Differentiable() || !l.Differentiable() {
			t.Errorf("%s: %+v, %v", dt, tiles, err)
		}
		if _, err := l.WithArithmetic(7); err == nil {
			t.Error("arithmetic 7 passes")
		}
	}
}

// TestWhatTilesStore: what is below 2⁻⁵⁶ is stored as +0, what is not below 2⁶³ is refused.
func TestWhatTilesStore(t *testing.T) {
	l := storing{tensor.BF16, Tiles}.layout(t, 1, 1)
	page := make([]byte, l.PageBytes())
	bits := func(x float32) []byte { return binary.LittleEndian.AppendUint16(nil, uint16(math.Float32bits(x)>>16)) }
	inf := float32(math.Inf(1))
	for _, c := range []struct {
		x, want float32
		refused bool
	}{
		{x: 1, want: 1},
		{x: -0x1p-56, want: -0x1p-56},
		{x: 0x1.fep-57},
		{x: -0x1.fep-57},
		{x: float32(math.Copysign(0, -1))},
		{x: 0x1p-133},
		{x: 0x1.fep62, want: 0x1.fep62},
		{x: 0x1p63, refused: true},
		{x: -0x1p63, refused: true},
		{x: inf, refused: true},
		{x: nan, refused: true},
	} {
		for _, rows := range []Rows{{K: bits(c.x), V: bits(1)}, {K: bits(1), V: bits(c.x)}} {
			err := l.Write(page, 3, 1, rows)
			if c.refused {
				if err == nil || !strings.Contains(err.Error(), "arithmetic tiles: element 0 is not below 2⁶³") {
					t.Errorf("%x: %v", c.x, err)
				}
				continue
			}
			got := rowsOf(l, 1)
			if err := errors.Join(err, l.Read(page, 3, 1, got)); err != nil {
				t.Fatal(err)
			}
			if k, v := string(got.K), string(got.V); k+v != string(bits(c.want))+string(bits(1)) && k+v != string(bits(1))+string(bits(c.want)) {
				t.Errorf("%x: %x and %x are stored, not %x", c.x, k, v, bits(c.want))
			}
		}
	}
	chain := storing{dt: tensor.BF16}.layout(t, 1, 1)
	if err := chain.Write(page, 0, 1, Rows{K: bits(0x1p100), V: bits(0x1p-130)}); err != nil {
		t.Errorf("a chain: %v", err)
	}
}

// TestSettle: every element of a row of any length is looked at, whatever stands beside it.
func TestSettle(t *testing.T) {
	rnd := rand.New(rand.NewPCG(8, 8))
	for i := range 2000 {
		row := make([]byte, 2*rnd.IntN(70))
		for at := 0; at < len(row); at += 2 {
			x := uint16(rnd.Uint32())&0x8000 | leastBF16 + uint16(rnd.IntN(int(tooLargeBF16-leastBF16)))
			if i%2 == 0 && rnd.IntN(20) == 0 {
				x = x&0x8000 | []uint16{0, 1, leastBF16 - 1, leastBF16, tooLargeBF16 - 1}[rnd.IntN(5)]
			}
			binary.LittleEndian.PutUint16(row[at:], x)
		}
		bad := -1
		if n := len(row) / 2; i%3 == 0 && n > 0 {
			bad = rnd.IntN(n)
			binary.LittleEndian.PutUint16(row[2*bad:], uint16(rnd.Uint32())&0x8000|tooLargeBF16+uint16(rnd.IntN(1<<15-int(tooLargeBF16))))
		}
		want := slices.Clone(row)
		for at := 0; at < len(row); at += 2 {
			if binary.LittleEndian.Uint16(row[at:])&0x7fff < leastBF16 {
				copy(want[at:], []byte{0, 0})
			}
		}
		switch err := settle(row); {
		case bad >= 0 && (err == nil || err.Error() != fmt.Sprintf("element %d is not below 2⁶³", bad)):
			t.Fatalf("element %d of %d: %v", bad, len(row)/2, err)
		case bad < 0 && (err != nil || !slices.Equal(row, want)):
			t.Fatalf("%x, not %x: %v", row, want, err)
		}
	}
}

// TestQueriesThatHaveNoParts: the error names the first row, whatever the kernel and threads, and those before 2⁶³ pass.
func TestQueriesThatHaveNoParts(t *testing.T) {
	for _, bad := range []float32{0x1p63, -0x1p63, math.MaxFloat32, float32(math.Inf(-1)), nan} {
		for i := range kernels {
			for threads := range 3 {
				e := draw(t, 3, shape{headDim: 37, vDim: 4, tokens: 70, heads: 2, len: 70, spread: 1, firstHead: 4}.as(storing{tensor.BF16, Tiles}))
				e.q.Q[(66*2+1)*37+36], e.q.Q[68*2*37] = bad, bad
				_, err := e.by(&kernels[i], 1+threads)
				var row *RowError
				if !errors.As(err, &row) || row.Head != 5 || row.Token != 66 || row.Rule != "an element of the query is not below 2⁶³" {
					t.Errorf("%s: %g: %v", kernels[i].name, bad, err)
				}
			}
		}
	}
}

// TestSplit: the parts are bf16 and multiples of 2⁻⁶³, and their sum is the number.
func TestSplit(t *testing.T) {
	const n = 1 << 14
	rnd := rand.New(rand.NewPCG(5, 5))
	x, parts := make([]float32, n), [3][]float32{make([]float32, n), make([]float32, n), make([]float32, n)}
	for i := range x {
		x[i] = math.Float32frombits(rnd.Uint32()&0x807fffff | uint32(127-44+rnd.IntN(44+63))<<23)
		if i%5 == 0 { // ties and carries
			x[i] = math.Float32frombits(math.Float32bits(x[i])&0xffff0000 | []uint32{0x7fff, 0x8000, 0x8001, 0xff80, 0xffff}[i/5%5])
		}
	}
	x[0], x[1], x[2], x[3] = 0x1p-40, 0x1.fffffep-41, -0x1.fffffep62, 0
	if found := split(parts[0], parts[1], parts[2], x); found != manyParts {
		t.Fatalf("found %b", found)
	}
	for i, want := range x {
		if math.Abs(float64(want)) < 0x1p-40 {
			want = 0
		}
		sum := 0.0
		for _, p := range parts {
			if math.Float32bits(p[i])&0xffff != 0 {
				t.Fatalf("%x: part %x is no bf16", x[i], p[i])
			}
			if m := math.Ldexp(float64(p[i]), 63); m != math.Trunc(m) {
				t.Fatalf("%x: part %x is no multiple of 2⁻⁶³", x[i], p[i])
			}
			sum += float64(p[i])
		}
		if sum != float64(want) {
			t.Fatalf("%x: the parts are %x", x[i], sum)
		}
	}
	if found := split(parts[0][:2], parts[1][:2], parts[2][:2], []float32{1, 0x1.fep3}); found != 0 {
		t.Errorf("bf16: found %b", found)
	}
	if found := split(parts[0][:2], parts[1][:2], parts[2][:2], []float32{1, nan}); found&outOfRange == 0 {
		t.Errorf("NaN: found %b", found)
	}
}

// TestTileRoutines holds the routines for tiles in assembly against the matrix unit's sums, as TestRoutines does.
func TestTileRoutines(t *testing.T) {
	skipIfRaced(t)
	for _, k := range append(otherKernels, kernels...) {
		v := k.vector
		if v == nil {
			continue
		}
		for j := range 300 {
			r := &routines{guards: guards{t: t}, v: v, rnd: rand.New(rand.NewPCG(uint64(j), 4)), first: j%2 == 0}
			r.what = fmt.Sprintf("%s, round %d", k.name, j)
			r.split()
			r.tileScores()
			r.tileValues()
			if v.hasMatrix() && j%3 == 0 {
				r.product()
			}
			r.free()
		}
	}
}

func (r *routines) split() {
	n := vectorLen * (1 + r.rnd.IntN(9))
	x := r.drawn(n, r.anyKind())
	if r.rnd.IntN(3) == 0 {
		x[r.rnd.IntN(n)] = []float32{0x1p63, 0x1.fffffep62, 0x1p-40, 0x1.fffffep-41}[r.rnd.IntN(4)]
	}
	want, got := [3][]float32{make([]float32, n), make([]float32, n), make([]float32, n)}, [3][]float32{}
	for p := range got {
		got[p] = r.filled(n, nan)
	}
	found := split(want[0], want[1], want[2], x)
	if f := r.v.split(&got[0][0], &got[1][0], &got[2][0], &x[0], n); f != found {
		r.t.Fatalf("%s: split of %x found %b, not %b", r.what, x, f, found)
	}
	for p := range got {
		for i := range x {
			r.same(fmt.Sprintf("part %d of %x", p, x[i]), i, got[p][i], want[p][i])
		}
	}
}

// operands returns n numbers that tiles take, as bf16 has them.
func (r *routines) operands(n int) []float32 {
	kind := r.anyKind().bounded()
	x := r.filled(n, 0)
	for i := range x {
		if y := bf16(kind.draw(r.rnd)); math.Abs(float64(y)) >= leastStored {
			x[i] = y
		}
	}
	return x
}

func (r *routines) tileScores() {
	rows, n := 1+r.rnd.IntN(20), 1+r.rnd.IntN(tileLen)
	stride := n + r.rnd.IntN(3)
	q, wide := r.filled((rows-1)*stride+n, nan), r.operands(n*PageLen)
	for i := range rows {
		copy(q[i*stride:][:n], r.operands(n))
	}
	b := make([]byte, 2*len(wide))
	if err := tensor.Narrow(b, wide, tensor.BF16); err != nil {
		r.t.Fatal(err)
	}
	k := r.copied(inPairs(tensor.BF16, b, n, PageLen), r.first)
	s, carry := r.drawn(rows*PageLen, normal), r.rnd.IntN(2)
	want := make([]float32, len(s))
	if carry != 0 {
		copy(want, s)
	}
	key := make([]float32, n)
	for i := range want {
		for j := range n {
			key[j] = wide[j*PageLen+i%PageLen]
		}
		want[i] = matrixUnit(want[i], q[i/PageLen*stride:][:n], key)
	}
	r.v.tileScores(&s[0], &q[0], &k[0], 4*stride, n, rows, carry, r.ahead(tensor.BF16))
	for i := range s {
		r.same(fmt.Sprintf("tile of scores, %d rows of %d, carry %d", rows, n, carry), i, s[i], want[i])
	}
}

func (r *routines) tileValues() {
	rows, cols, beside := 1+r.rnd.IntN(20), 1+r.rnd.IntN(9), 16*r.rnd.IntN(2)
	width := cols * vectorLen
	oStride, vStride := width+beside, width+16*r.rnd.IntN(2)
	lo := r.rnd.IntN(tileLen)
	hi := lo + 1 + r.rnd.IntN(tileLen-lo)
	w := r.filled((rows-1)*PageLen+tileLen, nan)
	for row := range rows {
		copy(w[row*PageLen+lo:][:hi-lo], r.operands(hi-lo))
	}
	wide := r.operands(tileLen * vStride)
	b := make([]byte, 2*len(wide))
	if err := tensor.Narrow(b, wide, tensor.BF16); err != nil {
		r.t.Fatal(err)
	}
	for i := range b {
		if at := i / 2 / vStride; at < lo || at >= hi {
			b[i] = 0xff
		}
	}
	v := r.copied(inPairs(tensor.BF16, b, tileLen, vStride), r.first)
	o, carry := r.drawn((rows-1)*oStride+width, normal), r.rnd.IntN(2)
	want := append([]float32(nil), o...)
	for row := range rows {
		for i := range width {
			// The chains begin at an even position.
			weights, values := make([]float32, hi-lo/2*2), make([]float32, hi-lo/2*2)
			for at := lo; at < hi; at++ {
				weights[at-lo/2*2], values[at-lo/2*2] = w[row*PageLen+at], wide[at*vStride+i]
			}
			sum := &want[row*oStride+i]
			if carry == 0 {
				*sum = 0
			}
			*sum = matrixUnit(*sum, weights, values)
		}
	}
	r.v.tileValues(&o[0], &w[0], &v[0], 4*oStride, 2*2*vStride, cols, rows, lo, hi, carry, r.ahead(tensor.BF16))
	for i := range o {
		r.same(fmt.Sprintf("tile of values, %d rows, %d vectors, positions %d to %d", rows, cols, lo, hi), i, o[i], want[i])
	}
}

// product holds the matrix unit's products against matrixUnit, with tiles that end where the memory does.
func (r *routines) product() {
	parts, rows, columns, tiles, pairs := []int{1, 3}[r.rnd.IntN(2)], 1+r.rnd.IntN(amx.MostRows), 1+r.rnd.IntN(9), 1+r.rnd.IntN(3), tileLen/2
	if tiles == 1 {
		pairs = 1 + r.rnd.IntN(tileLen/2)
	}
	width, n := columns*vectorLen, 2*((tiles-1)*tileLen/2+pairs)
	cStride, aStride, bStride := width+16*r.rnd.IntN(2), n+2*r.rnd.IntN(3), width+16*r.rnd.IntN(2)
	aPart := (rows-1)*aStride + n + 2*r.rnd.IntN(3)
	own := func(x []float32) []byte {
		b := make([]byte, 2*len(x))
		if err := tensor.Narrow(b, x, tensor.BF16); err != nil {
			r.t.Fatal(err)
		}
		return b
	}
	aWide, bWide := r.operands((parts-1)*aPart+(rows-1)*aStride+n), r.operands(n*bStride)
	a, b := r.copied(own(aWide), r.first), r.copied(inPairs(tensor.BF16, own(bWide), n, bStride)[:4*((n/2-1)*bStride+width)], r.first)
	c, carry := r.drawn((rows-1)*cStride+width, normal), r.rnd.IntN(2) == 0
	want := append([]float32(nil), c...)
	column := make([]float32, n)
	for row := range rows {
		for i := range width {
			for at := range n {
				column[at] = bWide[at*bStride+i]
			}
			sum := &want[row*cStride+i]
			if !carry {
				*sum = 0
			}
			for at := 0; at < n; at += tileLen {
				for p := parts - 1; p >= 0; p-- {
					last := min(at+tileLen, n)
					*sum = matrixUnit(*sum, aWide[p*aPart+row*aStride:][at:last], column[at:last])
				}
			}
		}
	}
	p := amx.Product{
		C: &c[0], CStride: 4 * cStride, A: &a[0], AStride: 2 * aStride, APart: 2 * aPart, Parts: parts, Rows: rows,
		B: &b[0], BStride: 4 * bStride, Columns: columns, Tiles: tiles, Pairs: pairs, Carry: carry,
	}
	if r.rnd.IntN(2) == 0 { // to ask for memory is no access, wherever it is
		p.Ahead = [4]uintptr{1, uintptr(r.rnd.Uint64()), uintptr(r.rnd.Uint64()), uintptr(r.rnd.Uint64())}
	}
	r.v.multiply(&p)
	for i := range c {
		r.same(fmt.Sprintf("product of %d rows in %d parts, %d columns, %d tiles of %d pairs", rows, parts, columns, tiles, pairs), i, c[i], want[i])
	}
}

// TestHalves: the parts as bf16 are those as binary32, of rows of any length; what follows an odd one is +0.
func TestHalves(t *testing.T) {
	for i := range kernels {
		v := kernels[i].vector
		if v == nil || v.splitHalves == nil {
			continue
		}
		for j := range 200 {
			r := &routines{guards: guards{t: t}, v: v, rnd: rand.New(rand.NewPCG(uint64(j), 6)), first: j%2 == 0}
			r.what = kernels[i].name
			rows, n := 1+r.rnd.IntN(5), 1+r.rnd.IntN(100)
			x := r.drawn(rows*n, r.anyKind())
			var want [tileParts][]float32
			for p := range want {
				want[p] = make([]float32, len(x))
			}
			found := split(want[0], want[1], want[2], x)
			var h halves
			h.grow(tileParts, rows, n)
			for i := range h.words {
				h.words[i] = nan
			}
			if f := h.split(v, x, rows, n); f != found {
				t.Fatalf("%s: split of %x found %b, not %b", r.what, x, f, found)
			}
			all := unsafe.Slice(h.at(0), tileParts*h.part)
			for p := range want {
				for at := range rows * (n + n%2) {
					row, i := at/(n+n%2), at%(n+n%2)
					expected := float32(0)
					if i < n {
						expected = want[p][row*n+i]
					}
					got := math.Float32frombits(uint32(binary.LittleEndian.Uint16(all[p*h.part+row*h.stride+2*i:])) << 16)
					r.same(fmt.Sprintf("part %d of row %d of %d", p, row, n), i, got, expected)
				}
			}
			r.free()
		}
	}
}

// TestBF16QueriesTakeOnePart: what a query of bf16 values attends is the same with its parts that are all 0 and without.
func TestBF16QueriesTakeOnePart(t *testing.T) {
	e := draw(t, 7, shape{headDim: 70, vDim: 33, tokens: 5, heads: 3, len: 300, spread: 2, offset: 295}.as(storing{tensor.BF16, Tiles}))
	for i, x := range e.q.Q {
		e.q.Q[i] = bf16(x)
	}
	mixed := *e
	mixed.q.Tokens++
	mixed.q.Offset--
	mixed.q.Q = append(normals(rand.New(rand.NewPCG(1, 1)), 3*70, 1), e.q.Q...)
	for i := range kernels {
		out, err := e.by(&kernels[i], 1)
		if err != nil {
			t.Fatal(err)
		}
		both, err := mixed.by(&kernels[i], 1)
		if err != nil {
			t.Fatal(err)
		}
		mixed.sameRows(t, kernels[i].name, both, out, 1, 5, 0, 3)
	}
}

// TestTilesNoAllocation: a call in tiles allocates nothing once there was one as large.
func TestTilesNoAllocation(t *testing.T) {
	skipIfRaced(t)
	p := NewPool(1)
	defer p.Close()
	thread := acquire(t, p, Foreground)
	defer thread.Release()
	e := draw(t, 8, shape{headDim: 64, vDim: 64, tokens: 3, heads: 2, len: 300, spread: 1, offset: 297}.as(storing{tensor.BF16, Tiles}))
	out := e.room()
	if n := testing.AllocsPerRun(20, func() {
		if err := thread.Attend(context.Background(), e.kv, e.q, e.opts, out); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%g allocations", n)
	}
}
