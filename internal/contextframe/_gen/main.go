// Command gen writes the assembly of package contextframe, for AVX2, BMI2 and F16C. Each routine has a twin in Go that says what
// it does: those of planes.go and levels.go.
package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

func main() {
	split4()
	join4()
	for _, t := range []struct {
		name    string
		special uint32
	}{{"BF16", 0x7f7f8000}, {"F16", 0x477ff000}} {
		split2(t.name, t.special)
		join2(t.name)
	}
	largest()
	quantize()
	dequantize()
	packLevel()
	unpackLevel()
	packLow()
	unpackLow()
	subtractRows()
	addRows()
	Generate()
}

// function begins a routine.
func function(name, signature, doc string) {
	TEXT(name, NOSPLIT, signature)
	Pragma("noescape")
	Doc(name + " " + doc)
}

func end() {
	VZEROUPPER()
	RET()
}

func pointer(name string) reg.Register { return Load(Param(name), GP64()) }

// loop runs body while count, a number of steps that is at least 1, is not 0.
func loop(count reg.Register, body func()) {
	Label("next")
	body()
	DECQ(count)
	JNZ(LabelRef("next"))
}

func advance(by int, registers ...reg.Register) {
	for _, r := range registers {
		ADDQ(I32(by), r)
	}
}

// every is a vector of one double word again and again.
func every(v uint32) reg.VecVirtual {
	r := YMM()
	d := GP32()
	MOVL(U32(v), d)
	VMOVD(d, r.AsX())
	VPBROADCASTD(r.AsX(), r)
	return r
}

func table(name string, bytes []byte) Mem {
	m := GLOBL(name, RODATA|NOPTR)
	for i, b := range bytes {
		DATA(i, U8(b))
	}
	return m
}

// bytesTogether gathers byte k of four double words into double word k, in each half of a vector; it is its own inverse.
func bytesTogether(name string) reg.VecVirtual {
	var b []byte
	for range 2 {
		for k := range 4 {
			for i := range 4 {
				b = append(b, byte(4*i+k))
			}
		}
	}
	r := YMM()
	VMOVDQU(table(name, b), r)
	return r
}

func doubleWords(name string, order ...byte) reg.VecVirtual {
	var b []byte
	for _, o := range order {
		b = append(b, o, 0, 0, 0)
	}
	r := YMM()
	VMOVDQU(table(name, b), r)
	return r
}

// transpose4 transposes 4x4 double words in each half of four vectors; it is its own inverse.
func transpose4(y [4]reg.VecVirtual) [4]reg.VecVirtual {
	a, b, c, d := YMM(), YMM(), YMM(), YMM()
	VPUNPCKLDQ(y[1], y[0], a)
	VPUNPCKHDQ(y[1], y[0], b)
	VPUNPCKLDQ(y[3], y[2], c)
	VPUNPCKHDQ(y[3], y[2], d)
	VPUNPCKLQDQ(c, a, y[0])
	VPUNPCKHQDQ(c, a, y[1])
	VPUNPCKLQDQ(d, b, y[2])
	VPUNPCKHQDQ(d, b, y[3])
	return y
}

func rotateLeft(y reg.VecVirtual) {
	t := YMM()
	VPSRLD(U8(31), y, t)
	VPADDD(y, y, y)
	VPOR(t, y, y)
}

func rotateRight(y reg.VecVirtual) {
	t := YMM()
	VPSLLD(U8(31), y, t)
	VPSRLD(U8(1), y, y)
	VPOR(t, y, y)
}

func split4() {
	function("split4AVX2", "func(p0, p1, p2, p3 *byte, src *float32, steps int)", "is split4 of 32 elements a step.")
	p := []reg.Register{pointer("p0"), pointer("p1"), pointer("p2"), pointer("p3")}
	src, steps := pointer("src"), pointer("steps")
	together, order := bytesTogether("together"), doubleWords("inOrder", 0, 4, 1, 5, 2, 6, 3, 7)
	loop(steps, func() {
		var y [4]reg.VecVirtual
		for i := range y {
			y[i] = YMM()
			VMOVDQU(Mem{Base: src}.Offset(32*i), y[i])
			rotateLeft(y[i])
			VPSHUFB(together, y[i], y[i])
		}
		y = transpose4(y)
		for i := range y {
			VPERMD(y[i], order, y[i])
			VMOVDQU(y[i], Mem{Base: p[i]})
		}
		advance(32, p...)
		advance(128, src)
	})
	end()
}

func join4() {
	function("join4AVX2", "func(dst *float32, p0, p1, p2, p3 *byte, steps int)", "is join4 of 32 elements a step.")
	dst := pointer("dst")
	p := []reg.Register{pointer("p0"), pointer("p1"), pointer("p2"), pointer("p3")}
	steps := pointer("steps")
	together, order := bytesTogether("together2"), doubleWords("apart", 0, 2, 4, 6, 1, 3, 5, 7)
	loop(steps, func() {
		var y [4]reg.VecVirtual
		for i := range y {
			y[i] = YMM()
			VPERMD(Mem{Base: p[i]}, order, y[i])
		}
		y = transpose4(y)
		for i := range y {
			VPSHUFB(together, y[i], y[i])
			rotateRight(y[i])
			VMOVDQU(y[i], Mem{Base: dst}.Offset(32*i))
		}
		advance(32, p...)
		advance(128, dst)
	})
	end()
}

// split2 narrows to words, rotates and parts these. special is the smallest magnitude that becomes infinite, or is not
// finite, as float32.
func split2(name string, special uint32) {
	function("split"+name+"AVX2", "func(p0, p1 *byte, src *float32, steps int) (special uint32)",
		"is split2 of 32 elements a step. special is not 0 if one of them is not finite or becomes infinite.")
	p0, p1, src, steps := pointer("p0"), pointer("p1"), pointer("src"), pointer("steps")
	magnitude, limit := every(0x7fffffff), every(special-1)
	found := YMM()
	VPXOR(found, found, found)
	low := every(0x00ff00ff)
	var one, half reg.VecVirtual
	if name == "BF16" {
		one, half = every(1), every(0x7fff)
	}
	loop(steps, func() {
		var words [2]reg.VecVirtual
		for w := range words {
			var y [2]reg.VecVirtual
			for i := range y {
				y[i] = YMM()
				VMOVDQU(Mem{Base: src}.Offset(64*w+32*i), y[i])
				t := YMM()
				VPAND(magnitude, y[i], t)
				VPCMPGTD(limit, t, t)
				VPOR(t, found, found)
				if name == "F16" {
					VCVTPS2PH(U8(0), y[i], y[i].AsX())
					continue
				}
				VPSRLD(U8(16), y[i], t)
				VPAND(one, t, t)
				VPADDD(half, t, t)
				VPADDD(t, y[i], y[i])
				VPSRLD(U8(16), y[i], y[i])
			}
			words[w] = y[0]
			if name == "F16" {
				VINSERTI128(U8(1), y[1].AsX(), y[0], y[0])
			} else {
				VPACKUSDW(y[1], y[0], y[0])
				VPERMQ(U8(0b11011000), y[0], y[0])
			}
			t := YMM()
			VPSRLW(U8(15), y[0], t)
			VPADDW(y[0], y[0], y[0])
			VPOR(t, y[0], y[0])
		}
		high, lower := [2]reg.VecVirtual{YMM(), YMM()}, [2]reg.VecVirtual{YMM(), YMM()}
		for w := range words {
			VPSRLW(U8(8), words[w], high[w])
			VPAND(low, words[w], lower[w])
		}
		for _, to := range []struct {
			p reg.Register
			y [2]reg.VecVirtual
		}{{p0, lower}, {p1, high}} {
			VPACKUSWB(to.y[1], to.y[0], to.y[0])
			VPERMQ(U8(0b11011000), to.y[0], to.y[0])
			VMOVDQU(to.y[0], Mem{Base: to.p})
		}
		advance(32, p0, p1)
		advance(128, src)
	})
	any := GP32()
	VPMOVMSKB(found, any)
	Store(any, ReturnIndex(0))
	end()
}

func join2(name string) {
	result, doc := "", "is join2 of 32 elements a step."
	if name == "F16" {
		result, doc = " (special uint32)", doc+" special is not 0 if one of them is not finite."
	}
	function("join"+name+"AVX2", "func(dst *float32, p0, p1 *byte, steps int)"+result, doc)
	dst, p0, p1, steps := pointer("dst"), pointer("p0"), pointer("p1"), pointer("steps")
	var found, exponent reg.VecVirtual
	if name == "F16" {
		found, exponent = YMM(), every(0x7c007c00)
		VPXOR(found, found, found)
	}
	loop(steps, func() {
		a, b := YMM(), YMM()
		VPERMQ(U8(0b11011000), Mem{Base: p0}, a)
		VPERMQ(U8(0b11011000), Mem{Base: p1}, b)
		words := [2]reg.VecVirtual{YMM(), YMM()}
		VPUNPCKLBW(b, a, words[0])
		VPUNPCKHBW(b, a, words[1])
		for w, y := range words {
			t := YMM()
			VPSLLW(U8(15), y, t)
			VPSRLW(U8(1), y, y)
			VPOR(t, y, y)
			if name == "F16" {
				VPAND(exponent, y, t)
				VPCMPEQW(exponent, t, t)
				VPOR(t, found, found)
			}
			x, z := YMM(), YMM()
			VEXTRACTI128(U8(1), y, z.AsX())
			if name == "F16" {
				VCVTPH2PS(y.AsX(), x)
				VCVTPH2PS(z.AsX(), z)
			} else {
				VPMOVZXWD(y.AsX(), x)
				VPMOVZXWD(z.AsX(), z)
				VPSLLD(U8(16), x, x)
				VPSLLD(U8(16), z, z)
			}
			VMOVDQU(x, Mem{Base: dst}.Offset(64*w))
			VMOVDQU(z, Mem{Base: dst}.Offset(64*w+32))
		}
		advance(32, p0, p1)
		advance(128, dst)
	})
	if name == "F16" {
		any := GP32()
		VPMOVMSKB(found, any)
		Store(any, ReturnIndex(0))
	}
	end()
}

func largest() {
	function("largestAVX2", "func(row *float32, steps int) uint32", "is largest of 32 elements a step.")
	row, steps := pointer("row"), pointer("steps")
	magnitude := every(0x7fffffff)
	var top [4]reg.VecVirtual
	for i := range top {
		top[i] = YMM()
		VPXOR(top[i], top[i], top[i])
	}
	loop(steps, func() {
		for i := range top {
			y := YMM()
			VPAND(Mem{Base: row}.Offset(32*i), magnitude, y)
			VPMAXUD(y, top[i], top[i])
		}
		advance(128, row)
	})
	VPMAXUD(top[1], top[0], top[0])
	VPMAXUD(top[3], top[2], top[2])
	VPMAXUD(top[2], top[0], top[0])
	x, t := top[0].AsX(), XMM()
	VEXTRACTI128(U8(1), top[0], t)
	VPMAXUD(t, x, x)
	VPSHUFD(U8(0b01001110), x, t)
	VPMAXUD(t, x, x)
	VPSHUFD(U8(0b10110001), x, t)
	VPMAXUD(t, x, x)
	r := GP32()
	VMOVD(x, r)
	Store(r, ReturnIndex(0))
	end()
}

func quantize() {
	function("quantizeAVX2", "func(dst *byte, row *float32, scale float32, steps int)", "is quantize of 32 elements a step.")
	dst, row := pointer("dst"), pointer("row")
	scale := YMM()
	m, err := Param("scale").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(m.Addr, scale)
	steps := pointer("steps")
	order := doubleWords("inOrder2", 0, 4, 1, 5, 2, 6, 3, 7)
	least, offset := every(0x81818181), every(0x80808080)
	loop(steps, func() {
		var y [4]reg.VecVirtual
		for i := range y {
			y[i] = YMM()
			VMOVUPS(Mem{Base: row}.Offset(32*i), y[i])
			VDIVPS(scale, y[i], y[i])
			VCVTPS2DQ(y[i], y[i])
		}
		VPACKSSDW(y[1], y[0], y[0])
		VPACKSSDW(y[3], y[2], y[2])
		VPACKSSWB(y[2], y[0], y[0])
		VPMAXSB(least, y[0], y[0])
		VPXOR(offset, y[0], y[0])
		VPERMD(y[0], order, y[0])
		VMOVDQU(y[0], Mem{Base: dst})
		advance(32, dst)
		advance(128, row)
	})
	end()
}

func dequantize() {
	function("dequantizeAVX2", "func(row *float32, codes *byte, scale float32, steps int)", "is dequantize of 32 elements a step.")
	row, codes := pointer("row"), pointer("codes")
	scale := YMM()
	m, err := Param("scale").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(m.Addr, scale)
	steps, offset := pointer("steps"), every(128)
	loop(steps, func() {
		for i := range 4 {
			y := YMM()
			VPMOVZXBD(Mem{Base: codes}.Offset(8*i), y)
			VPSUBD(offset, y, y)
			VCVTDQ2PS(y, y)
			VMULPS(scale, y, y)
			VMOVUPS(y, Mem{Base: row}.Offset(32*i))
		}
		advance(32, codes)
		advance(128, row)
	})
	end()
}

// bytesOf broadcasts the low byte of a register.
func bytesOf(r reg.Register) reg.VecVirtual {
	x := XMM()
	VMOVQ(r, x)
	VPBROADCASTB(x, x)
	return x
}

// field is a mask of the lowest width bits of each byte.
func field(width reg.Register) reg.GPVirtual {
	bits, m := GP64(), GP64()
	MOVQ(U64(math.MaxUint64), bits)
	SHLXQ(width, bits, bits)
	NOTQ(bits)
	MOVQ(U64(0x0101010101010101), m)
	IMULQ(m, bits)
	return bits
}

func packLevel() {
	function("packLevelAVX2", "func(codes, escaped, list *byte, width, base, steps int) (escapes int)",
		"is packLevel of 16 elements a step. It writes 8 bytes at a time to codes and escaped, which have room for that.")
	codes, escaped, list, width := pointer("codes"), pointer("escaped"), pointer("list"), pointer("width")
	base := bytesOf(pointer("base"))
	steps := pointer("steps")
	bits := field(width)
	escape := bytesOf(bits)
	first := GP64()
	MOVQ(escaped, first)
	loop(steps, func() {
		x, c, is := XMM(), XMM(), XMM()
		VMOVDQU(Mem{Base: list}, x)
		VPSUBB(base, x, c)
		VPMINUB(escape, c, c)
		VPCMPEQB(escape, c, is)
		for half := range 2 {
			code, mask, value := GP64(), GP64(), GP64()
			VPEXTRQ(U8(half), c, code)
			VPEXTRQ(U8(half), is, mask)
			PEXTQ(bits, code, code)
			MOVQ(code, Mem{Base: codes})
			ADDQ(width, codes)
			MOVQ(Mem{Base: list}.Offset(8*half), value)
			PEXTQ(mask, value, value)
			MOVQ(value, Mem{Base: escaped})
			POPCNTQ(mask, mask)
			SHRQ(U8(3), mask)
			ADDQ(mask, escaped)
		}
		advance(16, list)
	})
	SUBQ(first, escaped)
	Store(escaped, ReturnIndex(0))
	end()
}

func unpackLevel() {
	function("unpackLevelAVX2", "func(list, codes, escaped *byte, width, base, steps int) (escapes int)",
		"is unpackLevel of 16 elements a step. It reads 8 bytes at a time from codes and escaped.")
	list, codes, escaped, width := pointer("list"), pointer("codes"), pointer("escaped"), pointer("width")
	base := bytesOf(pointer("base"))
	steps := pointer("steps")
	bits := field(width)
	escape := bytesOf(bits)
	first := GP64()
	MOVQ(escaped, first)
	loop(steps, func() {
		c, t, is, e := XMM(), XMM(), XMM(), XMM()
		code := [2]reg.GPVirtual{GP64(), GP64()}
		for half := range 2 {
			MOVQ(Mem{Base: codes}, code[half])
			PDEPQ(bits, code[half], code[half])
			ADDQ(width, codes)
		}
		VMOVQ(code[0], c)
		VPINSRQ(U8(1), code[1], c, c)
		VPCMPEQB(escape, c, is)
		VPADDB(base, c, c)
		for half := range 2 {
			mask, value := GP64(), GP64()
			VPEXTRQ(U8(half), is, mask)
			MOVQ(Mem{Base: escaped}, value)
			PDEPQ(mask, value, value)
			POPCNTQ(mask, mask)
			SHRQ(U8(3), mask)
			ADDQ(mask, escaped)
			if half == 0 {
				VMOVQ(value, e)
			} else {
				VPINSRQ(U8(1), value, e, e)
			}
		}
		VPANDN(c, is, t)
		VPOR(e, t, t)
		VMOVDQU(t, Mem{Base: list})
		advance(16, list)
	})
	SUBQ(first, escaped)
	Store(escaped, ReturnIndex(0))
	end()
}

func packLow() {
	function("packLowAVX2", "func(low, high, plane *byte, width, steps int)",
		"is packLow of 8 elements a step. It writes 8 bytes at a time to low, which has room for that.")
	low, high, plane, width, steps := pointer("low"), pointer("high"), pointer("plane"), pointer("width"), pointer("steps")
	bits := field(width)
	loop(steps, func() {
		v, l := GP64(), GP64()
		MOVQ(Mem{Base: plane}, v)
		PEXTQ(bits, v, l)
		MOVQ(l, Mem{Base: low})
		ADDQ(width, low)
		ANDNQ(v, bits, v)
		SHRXQ(width, v, v)
		MOVQ(v, Mem{Base: high})
		advance(8, plane, high)
	})
	end()
}

func unpackLow() {
	function("unpackLowAVX2", "func(plane, low *byte, width, steps int)",
		"is unpackLow of 8 elements a step. It reads 8 bytes at a time from low.")
	plane, low, width, steps := pointer("plane"), pointer("low"), pointer("width"), pointer("steps")
	bits := field(width)
	loop(steps, func() {
		v, l := GP64(), GP64()
		SHLXQ(width, Mem{Base: plane}, v)
		ANDNQ(v, bits, v)
		MOVQ(Mem{Base: low}, l)
		PDEPQ(bits, l, l)
		ADDQ(width, low)
		ORQ(l, v)
		MOVQ(v, Mem{Base: plane})
		advance(8, plane)
	})
	end()
}

func subtractRows() {
	function("subtractRowsAVX2", "func(dst, plane *byte, row, steps int)", "is subtractRows of 32 elements a step, from the second row on.")
	dst, plane, row, steps := pointer("dst"), pointer("plane"), pointer("row"), pointer("steps")
	middle := every(0x80808080)
	loop(steps, func() {
		y := YMM()
		VMOVDQU(Mem{Base: plane, Index: row, Scale: 1}, y)
		VPSUBB(Mem{Base: plane}, y, y)
		VPXOR(middle, y, y)
		VMOVDQU(y, Mem{Base: dst})
		advance(32, plane, dst)
	})
	end()
}

func addRows() {
	function("addRowsAVX2", "func(plane *byte, row, steps int)", "is addRows of 32 elements a step, for rows of at least as many.")
	plane, row, steps := pointer("plane"), pointer("row"), pointer("steps")
	middle := every(0x80808080)
	loop(steps, func() {
		y := YMM()
		VPXOR(Mem{Base: plane, Index: row, Scale: 1}, middle, y)
		VPADDB(Mem{Base: plane}, y, y)
		VMOVDQU(y, Mem{Base: plane, Index: row, Scale: 1})
		advance(32, plane)
	})
	end()
}
