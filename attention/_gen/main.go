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

// pageLen is how many positions a page holds, tileRows how many rows of queries the largest tile does.
const (
	pageLen  = 64
	tileRows = 6
)

// A vec is an instruction set's vector: w float32 in each of its registers.
type vec struct {
	name string
	w    int
	reg  []reg.Register
	// cols is how many vectors a tile is wide, with one register each for the loads; tmp are what remains.
	cols int
	load []reg.Register
	tmp  []reg.Register
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
	set := flag.String("isa", "", "instruction set: avx2 or avx512")
	flag.Parse()
	switch *set {
	case "avx512":
		isa = vec{name: "avx512", w: 16, reg: zmm, cols: 4, load: zmm[24:28], tmp: zmm[28:32]}
	case "avx2":
		isa = vec{name: "avx2", w: 8, reg: ymm, cols: 2, load: ymm[12:14], tmp: ymm[14:16]}
	default:
		panic("which instruction set?")
	}
	for _, t := range types {
		scores(t)
		accumulate(t)
	}
	consts()
	if wide() {
		softmax512(false)
		softmax512(true)
	} else {
		softmax256(false)
		softmax256(true)
	}
	coefficients()
	mergeRows()
	transpose()
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

// widen loads a vector of the type at m into r.
func (t dtype) widen(m Mem, r reg.Register) {
	switch t.name {
	case "f32":
		VMOVUPS(m, r)
	case "f16":
		VCVTPH2PS(m, r)
	case "bf16":
		VPMOVZXWD(m, r)
		VPSLLD(U8(16), r, r)
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

// prefetch asks for the lines of a run of vectors of the type at m.
func prefetch(t dtype, m Mem, vectors int) {
	for b := 0; b < vectors*isa.w*t.size; b += 64 {
		PREFETCHT0(m.Offset(b))
	}
}

// tiles writes a loop over rows in count: tiles of tileRows while there are enough, then what remains in one tile. Each
// calls body, which advances the pointers to the rows.
func tiles(count reg.Register, body func(rows int)) {
	var to [tileRows]string
	full, done := label("rows"), label("done")
	for r := range to {
		to[r] = label("tile")
	}
	Label(full)
	CMPQ(count, U8(tileRows))
	JLT(LabelRef(to[0]))
	body(tileRows)
	SUBQ(U8(tileRows), count)
	JMP(LabelRef(full))
	Label(to[0])
	for r := 1; r < tileRows; r++ {
		CMPQ(count, U8(r))
		JEQ(LabelRef(to[r]))
	}
	JMP(LabelRef(done))
	for r := 1; r < tileRows; r++ {
		Label(to[r])
		body(r)
		if r < tileRows-1 {
			JMP(LabelRef(done))
		}
	}
	Label(done)
}

// scores: K [n][64] times the rows of q.
func scores(t dtype) {
	function("scores_"+t.name, "func(s, q *float32, k *byte, stride, n, rows, carry, ahead int)",
		"is kernel.scores for keys as "+t.name+".")
	S, Q, K, stride, n, rows, ahead := reg.RDI, reg.RSI, reg.RDX, reg.R8, reg.R9, reg.R10, reg.R11
	kp, qp, qp3, i, block := reg.RAX, reg.RBX, reg.RCX, reg.R12, reg.R13
	Load(Param("s"), S)
	Load(Param("q"), Q)
	Load(Param("k"), K)
	Load(Param("stride"), stride)
	Load(Param("n"), n)
	Load(Param("rows"), rows)
	Load(Param("ahead"), ahead)
	blocks := pageLen / (isa.w * isa.cols)
	tiles(rows, func(rows int) {
		acc := func(r, c int) reg.Register { return isa.reg[r*isa.cols+c] }
		s := func(r, c int) Mem { return Mem{Base: S, Disp: r*pageLen*4 + c*isa.w*4} }
		next, carry, begin := label("block"), label("carry"), label("begin")
		MOVQ(K, kp)
		if blocks > 1 {
			MOVQ(U32(blocks), block)
			Label(next)
		}
		load, _ := Param("carry").Resolve()
		CMPQ(load.Addr, U8(0))
		JNE(LabelRef(carry))
		for r := range rows {
			for c := range isa.cols {
				zero(acc(r, c))
			}
		}
		JMP(LabelRef(begin))
		Label(carry)
		for r := range rows {
			for c := range isa.cols {
				VMOVUPS(s(r, c), acc(r, c))
			}
		}
		Label(begin)
		MOVQ(Q, qp)
		if rows > 3 {
			LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, qp3)
			ADDQ(Q, qp3)
		}
		MOVQ(n, i)
		step := func(fetch bool) {
			loop := label("dim")
			Label(loop)
			for c := range isa.cols {
				t.widen(Mem{Base: kp, Disp: c * isa.w * t.size}, isa.load[c])
			}
			if fetch {
				prefetch(t, Mem{Base: kp, Index: ahead, Scale: 1}, isa.cols)
			}
			for r := range rows {
				m := Mem{Base: qp}
				if r >= 3 {
					m.Base = qp3
				}
				if r%3 != 0 {
					m.Index, m.Scale = stride, uint8(r%3)
				}
				q := isa.tmp[r%len(isa.tmp)]
				VBROADCASTSS(m, q)
				for c := range isa.cols {
					VFMADD231PS(isa.load[c], q, acc(r, c))
				}
			}
			ADDQ(U32(pageLen*t.size), kp)
			ADDQ(U8(4), qp)
			if rows > 3 {
				ADDQ(U8(4), qp3)
			}
			DECQ(i)
			JNZ(LabelRef(loop))
		}
		plain, store := label("plain"), label("store")
		TESTQ(ahead, ahead)
		JZ(LabelRef(plain))
		step(true)
		JMP(LabelRef(store))
		Label(plain)
		step(false)
		Label(store)
		for r := range rows {
			for c := range isa.cols {
				VMOVUPS(acc(r, c), s(r, c))
			}
		}
		if blocks > 1 {
			ADDQ(U8(isa.cols*isa.w*4), S)
			// Back to the first dimension, and on to the next positions.
			MOVQ(U32(blocks), i)
			SUBQ(block, i)
			INCQ(i)
			IMUL3Q(U32(isa.cols*isa.w*t.size), i, i)
			MOVQ(K, kp)
			ADDQ(i, kp)
			DECQ(block)
			JNZ(LabelRef(next))
			ADDQ(U32(rows*pageLen*4-pageLen*4), S)
		} else {
			ADDQ(U32(rows*pageLen*4), S)
		}
		if rows == tileRows {
			IMUL3Q(U8(tileRows), stride, i)
			ADDQ(i, Q)
			XORQ(ahead, ahead)
		}
	})
	end()
}

// accumulate: weights [rows][64] times V, merged into o.
func accumulate(t dtype) {
	function("accumulate_"+t.name, "func(o, w *float32, v *byte, oStride, vStride, cols, rows int, mask uint64, a, b *float32, ahead int)",
		"is kernel.accumulate for values as "+t.name+".")
	O, V, oStride, vStride, cols, ahead := reg.RDI, reg.RDX, reg.R8, reg.R9, reg.R10, reg.R11
	op, wp, rows, m, at, x := reg.RAX, reg.RBX, reg.RCX, reg.R12, reg.R13, reg.RSI
	y := reg.R15
	Load(Param("o"), O)
	Load(Param("v"), V)
	Load(Param("oStride"), oStride)
	Load(Param("vStride"), vStride)
	Load(Param("cols"), cols)
	block := func(width int) {
		MOVQ(O, op)
		Load(Param("w"), wp)
		Load(Param("rows"), rows)
		Load(Param("ahead"), ahead)
		tiles(rows, func(rows int) {
			acc := func(r, c int) reg.Register { return isa.reg[r*width+c] }
			for r := range rows {
				for c := range width {
					zero(acc(r, c))
				}
			}
			Load(Param("mask"), m)
			step := func(fetch bool) {
				loop := label("position")
				Label(loop)
				TZCNTQ(m, at)
				MOVQ(at, x)
				IMULQ(vStride, x)
				ADDQ(V, x)
				for c := range width {
					t.widen(Mem{Base: x, Disp: c * isa.w * t.size}, isa.load[c])
				}
				if fetch {
					prefetch(t, Mem{Base: x, Index: ahead, Scale: 1}, width)
				}
				for r := range rows {
					w := isa.tmp[r%len(isa.tmp)]
					VBROADCASTSS(Mem{Base: wp, Index: at, Scale: 4, Disp: r * pageLen * 4}, w)
					for c := range width {
						VFMADD231PS(isa.load[c], w, acc(r, c))
					}
				}
				BLSRQ(m, m)
				JNZ(LabelRef(loop))
			}
			plain, merge := label("plain"), label("merge")
			TESTQ(ahead, ahead)
			JZ(LabelRef(plain))
			step(true)
			JMP(LabelRef(merge))
			Label(plain)
			step(false)
			Label(merge)
			store, done := label("store"), label("stored")
			Load(Param("a"), x)
			TESTQ(x, x)
			JZ(LabelRef(store))
			Load(Param("b"), y)
			// The number of the first row, from its weights.
			MOVQ(wp, at)
			w, _ := Param("w").Resolve()
			SUBQ(w.Addr, at)
			SHRQ(U8(6), at)
			ADDQ(at, x)
			ADDQ(at, y)
			for r := range rows {
				VBROADCASTSS(Mem{Base: x, Disp: 4 * r}, isa.tmp[0])
				VBROADCASTSS(Mem{Base: y, Disp: 4 * r}, isa.tmp[1])
				for c := range width {
					o := Mem{Base: op, Disp: c * isa.w * 4}
					VMULPS(isa.tmp[1], acc(r, c), acc(r, c))
					VFMADD231PS(o, isa.tmp[0], acc(r, c))
					VMOVUPS(acc(r, c), o)
				}
				ADDQ(oStride, op)
			}
			JMP(LabelRef(done))
			Label(store)
			for r := range rows {
				for c := range width {
					VMOVUPS(acc(r, c), Mem{Base: op, Disp: c * isa.w * 4})
				}
				ADDQ(oStride, op)
			}
			Label(done)
			if rows == tileRows {
				ADDQ(U32(tileRows*pageLen*4), wp)
				XORQ(ahead, ahead)
			}
		})
		ADDQ(U32(width*isa.w*4), O)
		ADDQ(U32(width*isa.w*t.size), V)
		SUBQ(U8(width*isa.w/16), cols)
	}
	widths := []int{isa.cols}
	if wide() {
		widths = []int{4, 2, 1}
	}
	for _, width := range widths {
		loop, less := label("columns"), label("fewer")
		Label(loop)
		CMPQ(cols, U8(width*isa.w/16))
		JLT(LabelRef(less))
		block(width)
		JMP(LabelRef(loop))
		Label(less)
	}
	end()
}
