package main

import (
	"fmt"
	"strings"
)

// r is a general register, v a vector register. R18 and R27 to R30 are the system's, the assembler's and Go's.
type (
	r int
	v int
)

func (x r) String() string { return fmt.Sprintf("R%d", int(x)) }

// s4, h8, b16 and d2 name the lanes of a vector register as Go does, f all of it in loads and stores.
func (x v) s4() string  { return fmt.Sprintf("V%d.S4", int(x)) }
func (x v) h8() string  { return fmt.Sprintf("V%d.H8", int(x)) }
func (x v) b16() string { return fmt.Sprintf("V%d.B16", int(x)) }
func (x v) d2() string  { return fmt.Sprintf("V%d.D2", int(x)) }
func (x v) f() string   { return fmt.Sprintf("F%d", int(x)) }

// vs returns n vector registers from first on.
func vs(first v, n int) []v {
	all := make([]v, n)
	for i := range all {
		all[i] = first + v(i)
	}
	return all
}

// What is written: the assembly, and the declarations of its functions.
var text, stubs strings.Builder

// op writes an instruction of Go's assembler. Its operands are in Go's order: the destination is the last.
func op(format string, args ...any) { fmt.Fprintf(&text, "\t"+format+"\n", args...) }

// words writes instructions that it has no name for. Their destination is the first.
func words(all ...instruction) {
	for _, i := range all {
		op("WORD $0x%08x // %s", i.word, i.text)
	}
}

var labels int

func label(name string) string {
	labels++
	return fmt.Sprintf("%s%d", name, labels)
}

func at(label string) { fmt.Fprintf(&text, "%s:\n", label) }

// sizes are those of the types of parameters.
var sizes = map[string]int{
	"*float32": 8, "*byte": 8, "*uint64": 8, "*uintptr": 8, "int": 8, "uint64": 8, "float32": 4, "int32": 4, "bool": 1,
}

// params are where the parameters of the function lie that is being written.
var params map[string]string

// function begins a function of these parameters, as Go writes them, and of that result, or none.
func function(name, parameters, result, doc string) {
	name += "_neon"
	params, labels = map[string]string{}, 0
	offset := 0
	place := func(name, kind string) {
		size, ok := sizes[kind]
		if !ok {
			panic("what is the size of " + kind + "?")
		}
		offset = (offset + size - 1) / size * size
		params[name] = fmt.Sprintf("%s+%d(FP)", name, offset)
		offset += size
	}
	var names []string
	for _, p := range strings.Split(parameters, ", ") {
		name, kind, typed := strings.Cut(p, " ")
		if names = append(names, name); typed {
			for _, n := range names {
				place(n, kind)
			}
			names = nil
		}
	}
	signature := "func " + name + "(" + parameters + ")"
	if result != "" {
		offset = (offset + 7) / 8 * 8
		place("ret", result)
		signature += " " + result
	}
	fmt.Fprintf(&stubs, "\n// %s %s\n//\n//go:noescape\n%s\n", name, doc, signature)
	fmt.Fprintf(&text, "\n// %s\n// Requires: ASIMD\nTEXT ·%s(SB), NOSPLIT, $0-%d\n", signature, name, offset)
}

// param returns where a parameter lies.
func param(name string) string {
	p, ok := params[name]
	if !ok {
		panic("there is no parameter " + name)
	}
	return p
}

func load(name string, dst r) { op("MOVD %s, %v", param(name), dst) }

// data writes constants of 32 bits, and returns how to name their address.
func data(name string, all []uint32) string {
	name += "_neon<>"
	text.WriteByte('\n')
	for i, x := range all {
		fmt.Fprintf(&text, "DATA %s+%d(SB)/4, $0x%08x\n", name, 4*i, x)
	}
	fmt.Fprintf(&text, "GLOBL %s(SB), RODATA|NOPTR, $%d\n", name, 4*len(all))
	return "$" + name + "(SB)"
}

// loadPair and storePair move two vectors at base + disp.
func loadPair(base r, disp int, a, b v) {
	if disp <= 1008 {
		op("FLDPQ %d(%v), (%s, %s)", disp, base, a.f(), b.f())
		return
	}
	op("FMOVQ %d(%v), %s", disp, base, a.f())
	op("FMOVQ %d(%v), %s", disp+16, base, b.f())
}

func storePair(a, b v, base r, disp int) {
	if disp <= 1008 {
		op("FSTPQ (%s, %s), %d(%v)", a.f(), b.f(), disp, base)
		return
	}
	op("FMOVQ %s, %d(%v)", a.f(), disp, base)
	op("FMOVQ %s, %d(%v)", b.f(), disp+16, base)
}

func zero(x v) { op("VEOR %s, %s, %s", x.b16(), x.b16(), x.b16()) }

func move(dst, src v) { op("VMOV %s, %s", src.b16(), dst.b16()) }

// spread sets all lanes of dst to one of src.
func spread(dst, src v, lane int) { op("VDUP V%d.S[%d], %s", int(src), lane, dst.s4()) }

// insert sets the lanes of dst to those of src where a mask is all ones, or all zeros.
func insert(dst, src, mask v)     { op("VBIT %s, %s, %s", mask.b16(), src.b16(), dst.b16()) }
func insertElse(dst, src, mask v) { op("VBIF %s, %s, %s", mask.b16(), src.b16(), dst.b16()) }

// either sets dst to the bits of a and of b.
func either(dst, a, b v) { op("VORR %s, %s, %s", b.b16(), a.b16(), dst.b16()) }
