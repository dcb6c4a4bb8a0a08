package main

import (
	"fmt"
	"strings"
)

// r is a general register: what Go's assembler calls it, and its number.
type r struct {
	name   string
	number int
}

func (x r) String() string { return x.name }

// llvm is what LLVM calls it.
func (x r) llvm() string {
	if x.number < 8 {
		return "%r" + strings.ToLower(x.name)
	}
	return "%" + strings.ToLower(x.name)
}

// instruction is one of AMX.
type instruction struct {
	code []byte
	text string
}

func (i instruction) String() string {
	rest := i.code[4:]
	parts := []string{fmt.Sprintf("LONG $0x%02x%02x%02x%02x", i.code[3], i.code[2], i.code[1], i.code[0])}
	if len(rest) >= 4 {
		parts = append(parts, fmt.Sprintf("LONG $0x%02x%02x%02x%02x", rest[3], rest[2], rest[1], rest[0]))
		rest = rest[4:]
	}
	for _, x := range rest {
		parts = append(parts, fmt.Sprintf("BYTE $0x%02x", x))
	}
	return strings.Join(parts, "; ") + " // " + i.text
}

// The prefixes that VEX holds.
const (
	none = iota
	x66
	xF3
	xF2
)

// vex encodes an instruction of the map 0F38, of 128 bits, with the bits of a register and memory as the others have them, and
// vvvv a third register.
func vex(prefix byte, vvvv int, opcode byte, index, base int, rest ...byte) []byte {
	second := byte(0xe2)
	if index >= 8 {
		second -= 0x40
	}
	if base >= 8 {
		second -= 0x20
	}
	return append([]byte{0xc4, second, byte(15-vvvv)<<3 | prefix, opcode}, rest...)
}

func ldtilecfg(base r) instruction {
	if base.number&7 == 4 || base.number&7 == 5 {
		panic(base.name + " takes another form")
	}
	return instruction{vex(none, 0, 0x49, 0, base.number, byte(base.number&7)), fmt.Sprintf("ldtilecfg (%s)", base.llvm())}
}

func tilerelease() instruction {
	return instruction{vex(none, 0, 0x49, 0, 0, 0xc0), "tilerelease"}
}

func tilezero(tile int) instruction {
	return instruction{vex(xF2, 0, 0x49, 0, 0, byte(0xc0+8*tile)), fmt.Sprintf("tilezero %%tmm%d", tile)}
}

// memory encodes a tile and where its rows are: the first at disp from base, and as far from each other as stride says.
func memory(prefix byte, tile int, base, stride r, disp int) (code []byte, text string) {
	modrm, sib, text := byte(4+8*tile), byte(stride.number&7<<3|base.number&7), fmt.Sprintf("(%s,%s)", base.llvm(), stride.llvm())
	if disp != 0 {
		text = fmt.Sprint(disp) + text
	}
	switch {
	case disp == 0 && base.number&7 != 5: // BP and R13 without a displacement are something else
		return vex(prefix, 0, 0x4b, stride.number, base.number, modrm, sib), text
	case disp < 128: // none is negative
		return vex(prefix, 0, 0x4b, stride.number, base.number, 0x40+modrm, sib, byte(disp)), text
	}
	return vex(prefix, 0, 0x4b, stride.number, base.number, 0x80+modrm, sib, byte(disp), byte(disp>>8), 0, 0), text
}

func tileloadd(tile int, base, stride r, disp int) instruction {
	code, text := memory(xF2, tile, base, stride, disp)
	return instruction{code, fmt.Sprintf("tileloadd %s, %%tmm%d", text, tile)}
}

// tileloaddt1 is tileloadd of what is not needed again soon: it does not stay in the first cache.
func tileloaddt1(tile int, base, stride r, disp int) instruction {
	code, text := memory(x66, tile, base, stride, disp)
	return instruction{code, fmt.Sprintf("tileloaddt1 %s, %%tmm%d", text, tile)}
}

func tilestored(tile int, base, stride r, disp int) instruction {
	code, text := memory(xF3, tile, base, stride, disp)
	return instruction{code, fmt.Sprintf("tilestored %%tmm%d, %s", tile, text)}
}

// tdpbf16ps adds to d the product of a, in rows, and b, in pairs.
func tdpbf16ps(d, a, b int) instruction {
	return instruction{vex(xF3, b, 0x5c, 0, 0, byte(0xc0+8*d+a)), fmt.Sprintf("tdpbf16ps %%tmm%d, %%tmm%d, %%tmm%d", b, a, d)}
}
