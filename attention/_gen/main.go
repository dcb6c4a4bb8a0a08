// Command gen writes the assembly of package attention, one instruction set at a time. Registers are assigned by hand;
// docs/kernels.md has the map.
package main

import (
	"flag"
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// pageLen is how many positions a page holds.
const pageLen = 64

// A vec is an instruction set's vector: w float32 in each of its registers.
type vec struct {
	name string
	w    int
	reg  []reg.Register
	// columns is how many vectors wide a tile of 1, 2, … rows is: enough chains to hide the latency of the FMA units, and
	// no more registers than there are. If the columns are not a multiple of that, narrower tiles follow. widening is the
	// same for elements that take an instruction to widen: more rows share a widened vector.
	columns, widening []int
	// values are the columns of tiles of few rows of values, if they are others: a whole row of memory, so that a page is read
	// in the order of memory.
	values []int
	narrow []int
	// streams is how many streams of memory are prefetched side by side. near is how many dimensions or positions before
	// its use a line is prefetched a second time, or pairs of them where they share a word; 0 means never.
	streams, near int
	// single has spread prefetch in one stream, into the first cache, if it is told so. lead, unless it is 0, is how many bytes on
	// from what the first tile of rows reads it prefetches, if it is told so. scales is whether scores prefetch scales.
	single bool
	lead   int
	scales bool
	// spread lets every tile of rows prefetch its part, into the second cache, or in one stream into the first, as it is told.
	// Otherwise the first tile prefetches all, into the first cache.
	spread bool
}

var isa vec

func wide() bool { return isa.w == 16 }

var zmm = []reg.Register{
	reg.Z0, reg.Z1, reg.Z2, reg.Z3, reg.Z4, reg.Z5, reg.Z6, reg.Z7, reg.Z8, reg.Z9, reg.Z10, reg.Z11, reg.Z12, reg.Z13,
	reg.Z14, reg.Z15, reg.Z16, reg.Z17, reg.Z18, reg.Z19, reg.Z20, reg.Z21, reg.Z22, reg.Z23, reg.Z24, reg.Z25, reg.Z26,
	reg.Z27, reg.Z28, reg.Z29, reg.Z30, reg.Z31,
}

var ymm = []reg.Register{
	reg.Y0, reg.Y1, reg.Y2, reg.Y3, reg.Y4, reg.Y5, reg.Y6, reg.Y7, reg.Y8, reg.Y9, reg.Y10, reg.Y11, reg.Y12, reg.Y13,
	reg.Y14, reg.Y15,
}

func main() {
	set := flag.String("isa", "", "instruction set: avx2 or avx512, or zen4 for what AVX-512 does otherwise there")
	flag.Parse()
	switch *set {
	case "avx512":
		isa = vec{
			name: "avx512", w: 16, reg: zmm, columns: []int{4, 4, 4, 4, 4, 4}, widening: []int{4, 4, 4, 4, 4, 4, 2, 2, 2, 2},
			narrow: []int{2, 1}, streams: 4, spread: true, single: true,
		}
	case "zen4":
		columns := []int{4, 4, 4, 4, 4, 4}
		isa = vec{
			name: "zen4", w: 16, reg: zmm, columns: columns, widening: columns, values: []int{8, 8, 8}, narrow: []int{4, 2, 1}, streams: 1, spread: true, lead: 256,
			scales: true,
		}
	case "avx2":
		columns := []int{8, 4, 4, 2, 2, 2}
		isa = vec{name: "avx2", w: 8, reg: ymm, columns: columns, widening: columns, narrow: []int{2}, streams: 4, near: 8}
	default:
		panic("which instruction set?")
	}
	consts()
	for _, t := range types {
		all := isa
		if isa.scales && t.name == "i8" {
			isa.streams, isa.lead, isa.values = 4, 0, nil
		}
		scores(t)
		accumulate(t)
		isa = all
	}
	if isa.name == "zen4" {
		tileScores()
		tileValues()
		Generate()
		return
	}
	if wide() {
		softmax512(false)
		softmax512(true)
	} else {
		softmax256(false)
		softmax256(true)
	}
	adjust()
	coefficients()
	mergeRows()
	divide()
	logSums()
	dots()
	weigh()
	soften()
	transpose()
	columns(1)
	columns(2)
	for _, size := range []int{1, 2, 4} {
		column(size)
	}
	weave()
	split(false)
	split(true)
	tileScores()
	tileValues()
	unweave()
	Generate()
}

// function begins a function of the instruction set.
func function(name, signature, doc string) {
	TEXT(name+"_"+isa.name, NOSPLIT, signature)
	Pragma("noescape")
	Doc(name + "_" + isa.name + " " + doc)
}

func end() {
	VZEROUPPER()
	RET()
}

var labels int

func label(name string) string {
	labels++
	return fmt.Sprintf("%s%d", name, labels)
}

// A dtype is a storage type: its size in bytes and how a vector of it is widened.
type dtype struct {
	name string
	size int
}

var types = []dtype{{"f32", 4}, {"f16", 2}, {"bf16", 2}, {"i8", 1}}

// per is how many dimensions (in K) or positions (in V) share a word of memory: bf16 lies in pairs, of which the first is the
// lower half of a word and the second the upper one. All else has words of its own.
func (t dtype) per() int {
	if t.name == "bf16" {
		return 2
	}
	return 1
}

// word is how many bytes a column takes in memory, of per dimensions or positions together.
func (t dtype) word() int { return t.size * t.per() }

// columns returns how many vectors wide a tile of 1, 2, … rows is.
func (t dtype) columns() []int {
	if t.name == "f32" {
		return isa.columns
	}
	return isa.widening
}

// valueColumns is columns for accumulate.
func (t dtype) valueColumns(rows int) int {
	if rows <= len(isa.values) {
		return isa.values[rows-1]
	}
	return t.columns()[rows-1]
}

// widen loads a vector of the type at m into r, unless it lies in pairs.
func (t dtype) widen(m Mem, r reg.Register) {
	switch t.name {
	case "f32":
		VMOVUPS(m, r)
	case "f16":
		VCVTPH2PS(m, r)
	case "i8":
		VPMOVSXBD(m, r)
		VCVTDQ2PS(r, r)
	}
}

func zero(r reg.Register) {
	if wide() {
		VPXORD(r, r, r)
	} else {
		VXORPS(r, r, r)
	}
}

// unroll is how many dimensions, or positions, an inner loop does at a time.
const unroll = 4

// A tile is rows × cols chains in registers, or pairs of chains: one of even dimensions, or positions, and one of odd.
type tile struct {
	rows, cols int
	pairs      bool
}

func (t tile) acc(r, c int) reg.Register { return isa.reg[r*t.cols+c] }

// chain is the chain that dimension, or position, d adds to.
func (t tile) chain(d, r, c int) reg.Register {
	if t.pairs {
		return isa.reg[2*(r*t.cols+c)+d%2]
	}
	return t.acc(r, c)
}

// chains is how many registers the chains take.
func (t tile) chains() int {
	if t.pairs {
		return 2 * t.rows * t.cols
	}
	return t.rows * t.cols
}

// mask returns the register that holds the upper half of each lane, if the storage type has pairs and there is room for it.
func (t tile) mask(dt dtype) (reg.Register, bool) {
	// The numbers of each row, or the vectors of each column, and one more.
	return isa.reg[len(isa.reg)-1], dt.per() == 2 && t.chains()+min(t.rows, t.cols)+1 < len(isa.reg)
}

// rest returns the registers that the chains and the mask leave.
func (t tile) rest(dt dtype) []reg.Register {
	rest := isa.reg[t.chains():]
	if _, ok := t.mask(dt); ok {
		return rest[:len(rest)-1]
	}
	return rest
}

// begin sets up what widen needs.
func (t tile) begin(dt dtype) {
	if r, ok := t.mask(dt); ok {
		VBROADCASTSS(highHalf, r)
	}
}

// widen loads the vector at m of dimension, or position, d into r.
func (t tile) widen(dt dtype, d int, m Mem, r reg.Register) {
	mask, ok := t.mask(dt)
	switch {
	case dt.per() == 1:
		dt.widen(m, r)
	case d%2 == 0 && wide():
		VPSLLD(U8(16), m, r)
	case d%2 == 0:
		VMOVUPS(m, r)
		VPSLLD(U8(16), r, r)
	case wide():
		VPANDD(m, mask, r)
	case ok:
		VANDPS(m, mask, r)
	default:
		VMOVUPS(m, r)
		VANDPS(highHalves, r, r)
	}
}

// step adds to each chain the product of a row's number, at row(r), with a column's vector, at col(c), both of dimension or
// position d. What there is less of is kept in registers, and what there is more of goes through those that remain.
func (t tile) step(dt dtype, d int, row, col func(i int) Mem) {
	rest := t.rest(dt)
	if t.rows < t.cols {
		for r := range t.rows {
			VBROADCASTSS(row(r), rest[r])
		}
		loads := rest[t.rows:]
		for c := range t.cols {
			x := loads[c%len(loads)]
			t.widen(dt, d, col(c), x)
			for r := range t.rows {
				VFMADD231PS(x, rest[r], t.chain(d, r, c))
			}
		}
		return
	}
	for c := range t.cols {
		t.widen(dt, d, col(c), rest[c])
	}
	numbers := rest[t.cols:]
	for r := range t.rows {
		x := numbers[r%len(numbers)]
		VBROADCASTSS(row(r), x)
		for c := range t.cols {
			VFMADD231PS(rest[c], x, t.chain(d, r, c))
		}
	}
}

// steps is step for n dimensions or positions from an even one on, and calls after with each.
func (t tile) steps(dt dtype, n int, row func(d, r int) Mem, col func(d, c int) Mem, after func(d int)) {
	for d := range n {
		t.step(dt, d, func(r int) Mem { return row(d, r) }, func(c int) Mem { return col(d, c) })
		after(d)
	}
}

// A spread is for memory that is needed later, prefetched by all tiles of rows: one after the other, each stream's next
// line. table points to the streams' addresses and, after them, to how many tiles there are, to how many bytes a stream
// skips after each 512, and to whether all is done in another way. If the instruction set has a lead, that is to prefetch what the
// first tile of rows is about to read and nothing else; if not, all is one stream from the first address, for the first cache,
// without skips. ahead is how many bytes of each stream were passed. credit is how many bytes the loop may read until it
// prefetches again.
type spread struct {
	table, ahead, line reg.Register
	credit             Op
}

// begin takes up the parameter ahead, which may be nil.
func (s spread) begin() {
	some := label("ahead")
	Load(Param("ahead"), s.table)
	XORQ(s.ahead, s.ahead)
	MOVQ(s.ahead, s.credit)
	TESTQ(s.table, s.table)
	JNZ(LabelRef(some))
	MOVQ(U64(never), s.line)
	MOVQ(s.line, s.credit)
	Label(some)
}

// lines is how many lines of each stream are prefetched in a turn that reads so many bytes.
func (s spread) lines(bytes int) int { return max(bytes/(64*isa.streams), 1) }

// after prefetches, when dimension or position d of a turn of that many bytes is done, its part of the lines.
func (s spread) after(d, bytes int, one bool) {
	lines := s.lines(bytes) * isa.streams
	first, last := d*lines/unroll, (d+1)*lines/unroll
	if one && first < last {
		MOVQ(Mem{Base: s.table}, s.line)
	}
	for j := first; j < last; j++ {
		if one {
			PREFETCHT0(Mem{Base: s.line, Index: s.ahead, Scale: 1, Disp: 64 * j})
			continue
		}
		MOVQ(Mem{Base: s.table, Disp: 8 * (j % isa.streams)}, s.line)
		PREFETCHT1(Mem{Base: s.line, Index: s.ahead, Scale: 1, Disp: 64 * (j / isa.streams)})
	}
}

// done ends a turn that has prefetched.
func (s spread) done(bytes int, one bool) {
	if one {
		ADDQ(U32(64*isa.streams*s.lines(bytes)), s.ahead)
	} else {
		ADDQ(U32(64*s.lines(bytes)), s.ahead)
		row := label("row")
		TESTQ(U32(511), s.ahead)
		JNZ(LabelRef(row))
		ADDQ(Mem{Base: s.table, Disp: 8 * (isa.streams + 1)}, s.ahead)
		Label(row)
	}
	IMUL3Q(U32(64*isa.streams*s.lines(bytes)), Mem{Base: s.table, Disp: 8 * isa.streams}, s.line)
	ADDQ(s.line, s.credit)
}

// other says whether all is done in another way.
func (s spread) other() Mem { return Mem{Base: s.table, Disp: 8 * (isa.streams + 2)} }

// scales prefetches the scales of keys and values, whose address comes after all else.
func (s spread) scales() {
	MOVQ(Mem{Base: s.table, Disp: 8 * (isa.streams + 3)}, s.line)
	for at := 0; at < 2*pageLen*4; at += 64 {
		PREFETCHT0(Mem{Base: s.line, Disp: at})
	}
}

// tile ends a tile of rows: with a lead, no other prefetches.
func (s spread) tile() {
	if isa.lead == 0 {
		return
	}
	done := label("led")
	TESTQ(s.table, s.table)
	JZ(LabelRef(done))
	CMPQ(s.other(), U8(0))
	JEQ(LabelRef(done))
	MOVQ(U64(never), s.line)
	MOVQ(s.line, s.credit)
	Label(done)
}

// leads returns what prefetches the bytes of dimensions or positions of a tile, at m, isa.lead before they are read; nil if that
// is not for the tile.
func (t tile) leads(dt dtype, most int, m func(d, disp int) Mem) func(d int) {
	if isa.lead == 0 || t.rows > most {
		return nil
	}
	return func(d int) {
		for at := 0; at < t.cols*isa.w*dt.word() && d%dt.per() == 0; at += 64 {
			PREFETCHT0(m(d, at+isa.lead))
		}
	}
}

// never is a credit that is not spent.
const never = 1 << 40

// loop writes an inner loop over the steps in count, unroll at a time, that prefetches in some of its turns. lead prefetches what
// the loop is about to read, when a dimension or position is done; it is nil if there is nothing of that kind.
func (s spread) loop(count reg.Register, bytes int, turn func(after func(d int)), lead func(d int)) {
	loop, alone, quiet, end := label("turn"), label("one"), label("quiet"), label("end")
	Label(loop)
	SUBQ(U8(unroll), count)
	JLT(LabelRef(end))
	SUBQ(U32(bytes), s.credit)
	JGE(LabelRef(quiet))
	other := isa.single || lead != nil
	if other {
		CMPQ(s.other(), U8(0))
		JNE(LabelRef(alone))
	}
	turn(func(d int) { s.after(d, bytes, false) })
	s.done(bytes, false)
	JMP(LabelRef(loop))
	switch {
	case isa.single:
		Label(alone)
		turn(func(d int) { s.after(d, bytes, true) })
		s.done(bytes, true)
		JMP(LabelRef(loop))
	case other:
		Label(alone)
		turn(lead)
		JMP(LabelRef(loop))
	}
	Label(quiet)
	turn(nothing)
	JMP(LabelRef(loop))
	Label(end)
}

// An ask is for memory that is needed later: what comes next of each of some streams, as many as the instruction set has, or of the
// first if the second is 0.
type ask []reg.Register

// turn is how many unrolled steps an inner loop that asks does at a time: they ask each stream for the same.
func turn() int { return isa.streams }

// after asks, when dimension or position d of a turn is done, for its part of as many bytes as the turn reads. Their lines
// are spread evenly over the turn and over the streams: what is asked for at once waits for the same few buffers.
func (a ask) after(d, bytes int) {
	lines := (bytes/turn() + 63) / 64 * turn()
	for j := d * lines / (turn() * unroll); j < (d+1)*lines/(turn()*unroll); j++ {
		PREFETCHT0(Mem{Base: a[j%turn()], Disp: j / turn() * 64})
	}
}

// alone writes an inner loop over the steps in count, unroll at a time, that asks for what comes next of the first stream alone,
// into the second cache.
func (a ask) alone(count reg.Register, bytes int, turn func(after func(d int))) {
	loop, end := label("turn"), label("end")
	Label(loop)
	SUBQ(U8(unroll), count)
	JLT(LabelRef(end))
	turn(func(d int) {
		lines := max(bytes/64, 1)
		for j := d * lines / unroll; j < (d+1)*lines/unroll; j++ {
			PREFETCHT1(Mem{Base: a[0], Disp: 64 * j})
		}
	})
	ADDQ(U32(bytes), a[0])
	JMP(LabelRef(loop))
	Label(end)
}

// goOn goes on by so many bytes in each stream.
func (a ask) goOn(bytes int) {
	for _, r := range a {
		ADDQ(U32(bytes), r)
	}
}

// near is which byte to prefetch a second time of what a tile reads at dimension or position d, of a pair one at each of the
// two; −1 is none.
func (t tile) near(dt dtype, d int) int {
	row := t.cols * isa.w * dt.word()
	line := max(row/dt.per(), 64) * (d % dt.per())
	if line >= row {
		return -1
	}
	return line
}

func nothing(int) {}

// tiles writes a loop over the rows in count: as few tiles as it takes, none of them small if there are others. The largest
// has most rows. Each calls body, which advances the pointers to the rows.
func tiles(count reg.Register, most int, body func(rows int)) {
	// Of up to 6 rows, 7 and 8 are 4 and the rest; of up to 10, 11 to 14 are 6 and the rest.
	half := most/2 + 1
	loop, less, done := label("rows"), label("fewer"), label("done")
	small := make([]string, most+1)
	for r := range small {
		small[r] = label("tile")
	}
	Label(loop)
	CMPQ(count, U8(most+half-1))
	JLT(LabelRef(less))
	Label(small[most])
	body(most)
	SUBQ(U8(most), count)
	JMP(LabelRef(loop))
	Label(less)
	for r := 1; r <= most; r++ {
		CMPQ(count, U8(r))
		JEQ(LabelRef(small[r]))
	}
	CMPQ(count, U8(most))
	JGT(LabelRef(small[half]))
	JMP(LabelRef(done))
	for r := 1; r < most; r++ {
		Label(small[r])
		body(r)
		SUBQ(U8(r), count)
		JMP(LabelRef(loop))
	}
	Label(done)
}

// run is a number of neighboring blocks of the same width.
type run struct{ width, blocks int }

// narrower returns a width and those of the narrower tiles that follow where the columns are not a multiple.
func narrower(width int) []int {
	all := []int{width}
	for _, w := range isa.narrow {
		if w < width {
			all = append(all, w)
		}
	}
	return all
}

// cut cuts n vectors into blocks for so many rows.
func (t dtype) cut(n, rows int) (runs []run) {
	for _, width := range narrower(t.columns()[rows-1]) {
		if n >= width {
			runs = append(runs, run{width, n / width})
			n %= width
		}
	}
	return runs
}

// last does the steps that an unrolled loop has left, in count and less by unroll, and ends at done.
func (t dtype) last(count reg.Register, done string, steps func(n int)) {
	some := label("some")
	ADDQ(U8(unroll), count)
	JZ(LabelRef(done))
	if t.per() == 1 {
		Label(some)
		steps(1)
		DECQ(count)
		JNZ(LabelRef(some))
		return
	}
	CMPQ(count, U8(2))
	JLT(LabelRef(some))
	steps(2)
	SUBQ(U8(2), count)
	JZ(LabelRef(done))
	Label(some)
	steps(1)
}

// scores: K [n][64] times the rows of q.
func scores(dt dtype) {
	function("scores_"+dt.name, "func(s, q *float32, k *byte, stride, n, rows, carry int, ahead *uintptr)",
		"is kernel.scores for keys as "+dt.name+".")
	S, Q, stride, rows := reg.RDI, reg.RSI, reg.R8, reg.R10
	kp, qp, qp3, i, from := reg.RAX, reg.RBX, reg.RCX, reg.R12, reg.R13
	var block Op = reg.R15
	Load(Param("s"), S)
	Load(Param("q"), Q)
	Load(Param("stride"), stride)
	Load(Param("rows"), rows)
	var next ask
	var all spread
	var stride3 reg.Register
	fetch := reg.R11
	Load(Param("ahead"), fetch)
	none := label("none")
	if isa.spread {
		all = spread{table: fetch, ahead: reg.R14, line: reg.RDX, credit: reg.R9}
		stride3, block = reg.R15, AllocLocal(8)
		LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
		XORQ(all.ahead, all.ahead)
		XORQ(reg.R9, reg.R9)
		TESTQ(fetch, fetch)
		if dt.name == "i8" && isa.scales {
			quiet := label("nil")
			JZ(LabelRef(quiet))
			all.scales()
			JMP(LabelRef(none))
			Label(quiet)
		} else {
			JNZ(LabelRef(none))
		}
		MOVQ(U64(never), reg.R9)
	} else {
		next = ask{fetch, reg.R14, reg.R9, reg.RDX}[:turn()]
		TESTQ(fetch, fetch)
		JZ(LabelRef(none))
		for i := len(next) - 1; i >= 0; i-- {
			MOVQ(Mem{Base: fetch, Disp: 8 * i}, next[i])
		}
	}
	Label(none)
	tiles(rows, len(dt.columns()), func(rows int) {
		Load(Param("k"), from)
		for _, run := range dt.cut(pageLen/isa.w, rows) {
			t := tile{rows: rows, cols: run.width}
			again, carry, begin := label("block"), label("carry"), label("begin")
			t.begin(dt)
			if run.blocks > 1 {
				MOVQ(U32(run.blocks), block)
				Label(again)
			}
			s := func(r, c int) Mem { return Mem{Base: S, Disp: r*pageLen*4 + c*isa.w*4} }
			load, _ := Param("carry").Resolve()
			CMPQ(load.Addr, U8(0))
			JNE(LabelRef(carry))
			for r := range rows {
				for c := range t.cols {
					zero(t.acc(r, c))
				}
			}
			JMP(LabelRef(begin))
			Label(carry)
			for r := range rows {
				for c := range t.cols {
					VMOVUPS(s(r, c), t.acc(r, c))
				}
			}
			Label(begin)
			MOVQ(from, kp)
			MOVQ(Q, qp)
			if rows > 3 {
				LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, qp3)
				ADDQ(Q, qp3)
			}
			steps := func(n int, after func(i int)) {
				t.steps(
					dt, n, func(d, r int) Mem {
						m := Mem{Base: qp, Disp: 4 * d}
						switch {
						case r == 8:
							m.Index, m.Scale = stride, 8
						case r == 7:
							m.Base, m.Index, m.Scale = qp3, stride, 4
						case r >= 6:
							m.Base, m.Index, m.Scale = qp3, stride3, uint8(r/3-1)
						default:
							if r >= 3 {
								m.Base = qp3
							}
							if r%3 != 0 {
								m.Index, m.Scale = stride, uint8(r%3)
							}
						}
						return m
					},
					func(d, c int) Mem { return Mem{Base: kp, Disp: (d/dt.per()*pageLen + c*isa.w) * dt.word()} },
					after,
				)
				ADDQ(U32(n*pageLen*dt.size), kp)
				ADDQ(U8(4*n), qp)
				if rows > 3 {
					ADDQ(U8(4*n), qp3)
				}
			}
			few, store := label("few"), label("store")
			Load(Param("n"), i)
			if isa.spread {
				// Elements that are widened come slowly enough for a stream if there are more rows.
				most := 3
				if dt.name == "f32" {
					most = len(dt.columns())
				}
				lead := t.leads(dt, most, func(d, disp int) Mem { return Mem{Base: kp, Disp: d/dt.per()*pageLen*dt.word() + disp} })
				all.loop(i, unroll*t.cols*isa.w*dt.size, func(after func(int)) { steps(unroll, after) }, lead)
			} else {
				next.scores(t, dt, i, kp, few, steps)
			}
			Label(few)
			dt.last(i, store, func(n int) { steps(n, nothing) })
			Label(store)
			for r := range rows {
				for c := range t.cols {
					VMOVUPS(t.acc(r, c), s(r, c))
				}
			}
			// A step of 256 bytes does not fit a U8, which would make it 0.
			ADDQ(U32(t.cols*isa.w*4), S)
			ADDQ(U32(t.cols*isa.w*dt.word()), from)
			if run.blocks > 1 {
				DECQ(block)
				JNZ(LabelRef(again))
			}
		}
		ADDQ(U32((rows-1)*pageLen*4), S)
		IMUL3Q(U8(rows), stride, i)
		ADDQ(i, Q)
		if isa.spread {
			all.tile()
		} else {
			XORQ(fetch, fetch)
		}
	})
	end()
}

// scores writes the inner loop of scores: the dimensions in count, as far as they are a multiple of unroll; at few,
// the rest is less by unroll.
func (a ask) scores(t tile, dt dtype, count, keys reg.Register, few string, steps func(n int, after func(int))) {
	loop, plain, short, all := label("dims"), label("plain"), label("short"), label("streams")
	TESTQ(a[0], a[0])
	JZ(LabelRef(plain))
	TESTQ(a[1], a[1])
	JNZ(LabelRef(all))
	a.alone(count, unroll*t.cols*isa.w*dt.size, func(after func(int)) { steps(unroll, after) })
	JMP(LabelRef(few))
	Label(all)
	SUBQ(U8(turn()*unroll), count)
	JLT(LabelRef(short))
	Label(loop)
	for j := range turn() {
		steps(unroll, func(d int) {
			a.after(j*unroll+d, turn()*unroll*t.cols*isa.w*dt.size)
			if line := t.near(dt, d); line >= 0 {
				PREFETCHT0(Mem{Base: keys, Disp: (d/dt.per()+isa.near)*pageLen*dt.word() + line})
			}
		})
	}
	a.goOn(unroll * t.cols * isa.w * dt.size)
	SUBQ(U8(turn()*unroll), count)
	JGE(LabelRef(loop))
	Label(short)
	ADDQ(U8(turn()*unroll), count)
	Label(plain)
	SUBQ(U8(unroll), count)
	JLT(LabelRef(few))
	loop = label("dims")
	Label(loop)
	steps(unroll, nothing)
	SUBQ(U8(unroll), count)
	JGE(LabelRef(loop))
}

// address makes of a position in p its address, and leaves in number, if positions lie in pairs, which it is.
func (t dtype) address(p, number, stride, from reg.Register) {
	if t.per() == 2 {
		MOVQ(p, number)
		SHRQ(U8(1), p)
	}
	IMULQ(stride, p)
	ADDQ(from, p)
}

// accumulate: weights [rows][64] times V, merged into o.
func accumulate(dt dtype) {
	function("accumulate_"+dt.name, "func(o, w *float32, v *byte, oStride, vStride, cols, rows int, mask uint64, a, b *float32, ahead *uintptr)",
		"is kernel.accumulate for values as "+dt.name+".")
	O, W, oStride, vStride, rows, fetch := reg.RDI, reg.RBX, reg.R8, reg.R9, reg.R10, reg.R11
	from, vp, wp, i, op, v3, near := reg.RDX, reg.RSI, reg.R12, reg.R13, reg.RAX, reg.R15, reg.RCX
	// x is free between the inner loops, op before them.
	x := reg.R14
	var next ask
	var all spread
	var streams Mem
	left := AllocLocal(8)
	Load(Param("o"), O)
	Load(Param("w"), W)
	Load(Param("oStride"), oStride)
	Load(Param("vStride"), vStride)
	Load(Param("rows"), rows)
	LEAQ(Mem{Base: vStride, Index: vStride, Scale: 2}, v3)
	Load(Param("ahead"), fetch)
	none := label("none")
	if isa.spread {
		credit := AllocLocal(8)
		all = spread{table: fetch, ahead: near, line: x, credit: credit}
		XORQ(near, near)
		MOVQ(near, credit)
		TESTQ(fetch, fetch)
		JNZ(LabelRef(none))
		MOVQ(U64(never), x)
		MOVQ(x, credit)
	} else {
		next, streams = ask{fetch, op, x, oStride}[:turn()], AllocLocal(8*turn())
		MOVQ(fetch, streams)
		TESTQ(fetch, fetch)
		JZ(LabelRef(none))
		for j := range turn() {
			MOVQ(Mem{Base: fetch, Disp: 8 * j}, x)
			MOVQ(x, streams.Offset(8*j))
		}
	}
	Label(none)
	block := func(t tile) {
		t.begin(dt)
		for r := range t.rows {
			for c := range t.cols {
				zero(t.acc(r, c))
			}
		}
		position := func(base reg.Register, p, disp int) Mem {
			m := Mem{Base: base, Disp: disp}
			switch p := p / dt.per(); p {
			case 1, 2:
				m.Index, m.Scale = vStride, uint8(p)
			case 3:
				m.Index, m.Scale = v3, 1
			}
			return m
		}
		row := func(p, r int) Mem { return Mem{Base: wp, Disp: 4 * (r*pageLen + p)} }
		col := func(p, c int) Mem { return position(vp, p, c*isa.w*dt.word()) }
		steps := func(n int, after func(i int)) { t.steps(dt, n, row, col, after) }
		// half does one position, of a pair the first (0) or the second.
		half := func(which int) {
			t.step(dt, which, func(r int) Mem { return row(0, r) }, func(c int) Mem { return col(0, c) })
		}
		sparse, few, merge := label("sparse"), label("few"), label("merge")
		// Most often the positions are neighbors, [vp, op) of them.
		Load(Param("mask"), i)
		TZCNTQ(i, vp)
		MOVQ(vp, wp)
		BLSIQ(i, op)
		ADDQ(i, op)
		TESTQ(op, i)
		JNZ(LabelRef(sparse))
		TZCNTQ(op, i)
		SUBQ(wp, i)
		LEAQ(Mem{Base: W, Index: wp, Scale: 4}, wp)
		dt.address(vp, op, vStride, from)
		goOn := func(n int) {
			LEAQ(Mem{Base: vp, Index: vStride, Scale: uint8(n / dt.per())}, vp)
			ADDQ(U8(4*n), wp)
		}
		if dt.per() == 2 {
			even := label("even")
			TESTQ(U32(1), op)
			JZ(LabelRef(even))
			half(1)
			ADDQ(vStride, vp)
			ADDQ(U8(4), wp)
			DECQ(i)
			JZ(LabelRef(merge))
			Label(even)
		}
		if isa.spread {
			all.loop(i, unroll*t.cols*isa.w*dt.size, func(after func(int)) {
				steps(unroll, after)
				goOn(unroll)
			}, t.leads(dt, len(isa.values), func(p, disp int) Mem { return position(vp, p, disp) }))
		} else {
			loop, short, plain, all := label("positions"), label("short"), label("plain"), label("streams")
			CMPQ(streams, U8(0))
			JEQ(LabelRef(plain))
			CMPQ(streams.Offset(8), U8(0))
			JNE(LabelRef(all))
			MOVQ(streams, next[0])
			next.alone(i, unroll*t.cols*isa.w*dt.size, func(after func(int)) {
				steps(unroll, after)
				goOn(unroll)
			})
			MOVQ(next[0], streams)
			JMP(LabelRef(few))
			Label(all)
			SUBQ(U8(turn()*unroll), i)
			JLT(LabelRef(short))
			for j, r := range next {
				MOVQ(streams.Offset(8*j), r)
			}
			if isa.near > 0 {
				LEAQ(Mem{Base: vp, Index: vStride, Scale: uint8(isa.near)}, near)
			}
			Label(loop)
			for j := range turn() {
				steps(unroll, func(p int) {
					next.after(j*unroll+p, turn()*unroll*t.cols*isa.w*dt.size)
					if line := t.near(dt, p); isa.near > 0 && line >= 0 {
						PREFETCHT0(position(near, p, line))
					}
				})
				goOn(unroll)
				if isa.near > 0 {
					LEAQ(Mem{Base: near, Index: vStride, Scale: uint8(unroll / dt.per())}, near)
				}
			}
			next.goOn(unroll * t.cols * isa.w * dt.size)
			SUBQ(U8(turn()*unroll), i)
			JGE(LabelRef(loop))
			// Between the inner loops their registers are something else.
			for j, r := range next {
				MOVQ(r, streams.Offset(8*j))
			}
			Load(Param("oStride"), oStride)
			Label(short)
			ADDQ(U8(turn()*unroll), i)
			Label(plain)
			SUBQ(U8(unroll), i)
			JLT(LabelRef(few))
			loop = label("positions")
			Label(loop)
			steps(unroll, nothing)
			goOn(unroll)
			SUBQ(U8(unroll), i)
			JGE(LabelRef(loop))
		}
		Label(few)
		dt.last(i, merge, func(n int) {
			steps(n, nothing)
			ADDQ(vStride, vp)
			ADDQ(U8(4*n), wp)
		})
		JMP(LabelRef(merge))
		Label(sparse)
		TZCNTQ(i, op)
		LEAQ(Mem{Base: W, Index: op, Scale: 4}, wp)
		MOVQ(op, vp)
		dt.address(vp, op, vStride, from)
		if dt.per() == 2 {
			odd, done := label("odd"), label("done")
			TESTQ(U32(1), op)
			JNZ(LabelRef(odd))
			half(0)
			JMP(LabelRef(done))
			Label(odd)
			half(1)
			Label(done)
		} else {
			half(0)
		}
		BLSRQ(i, i)
		JNZ(LabelRef(sparse))
		Label(merge)
		MOVQ(O, op)
		store, done := label("store"), label("stored")
		Load(Param("a"), x)
		TESTQ(x, x)
		JZ(LabelRef(store))
		Load(Param("b"), vp)
		// The number of the first row, from its weights.
		MOVQ(W, wp)
		w, _ := Param("w").Resolve()
		SUBQ(w.Addr, wp)
		SHRQ(U8(6), wp)
		ADDQ(wp, x)
		ADDQ(wp, vp)
		a, b := isa.reg[t.rows*t.cols], isa.reg[t.rows*t.cols+1]
		for r := range t.rows {
			VBROADCASTSS(Mem{Base: x, Disp: 4 * r}, a)
			VBROADCASTSS(Mem{Base: vp, Disp: 4 * r}, b)
			for c := range t.cols {
				o := Mem{Base: op, Disp: c * isa.w * 4}
				VMULPS(b, t.acc(r, c), t.acc(r, c))
				VFMADD231PS(o, a, t.acc(r, c))
				VMOVUPS(t.acc(r, c), o)
			}
			if r < t.rows-1 {
				ADDQ(oStride, op)
			}
		}
		JMP(LabelRef(done))
		Label(store)
		for r := range t.rows {
			for c := range t.cols {
				VMOVUPS(t.acc(r, c), Mem{Base: op, Disp: c * isa.w * 4})
			}
			if r < t.rows-1 {
				ADDQ(oStride, op)
			}
		}
		Label(done)
		ADDQ(U32(t.cols*isa.w*4), O)
		ADDQ(U32(t.cols*isa.w*dt.word()), from)
		SUBQ(U8(t.cols), left)
	}
	tiles(rows, len(dt.columns()), func(rows int) {
		Load(Param("v"), from)
		Load(Param("cols"), x)
		if !wide() {
			ADDQ(x, x)
		}
		MOVQ(x, left)
		for _, width := range narrower(dt.valueColumns(rows)) {
			loop, less := label("columns"), label("less")
			Label(loop)
			CMPQ(left, U8(width))
			JLT(LabelRef(less))
			block(tile{rows: rows, cols: width})
			JMP(LabelRef(loop))
			Label(less)
		}
		// On to the first column of the next rows.
		w, _ := Param("w").Resolve()
		ADDQ(U32(rows*pageLen*4), W)
		MOVQ(W, x)
		SUBQ(w.Addr, x)
		SHRQ(U8(8), x)
		IMULQ(oStride, x)
		Load(Param("o"), O)
		ADDQ(x, O)
		if isa.spread {
			all.tile()
		} else {
			MOVQ(U32(0), streams)
		}
	})
	end()
}
