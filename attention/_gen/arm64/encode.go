package main

import "fmt"

// An instruction is one that Go's assembler has no name for: its encoding, and what the Arm manual calls it.
type instruction struct {
	word uint32
	text string
}

// two is one of a destination and an operand, of these lanes each.
func two(word uint32, name, dst, src string, d, n v) instruction {
	return instruction{word | uint32(n)<<5 | uint32(d), fmt.Sprintf("%s v%d.%s, v%d.%s", name, d, dst, n, src)}
}

// three is one of a destination and two operands.
func three(word uint32, name, lanes string, d, n, m v) instruction {
	return instruction{
		word | uint32(m)<<16 | uint32(n)<<5 | uint32(d),
		fmt.Sprintf("%s v%d.%s, v%d.%s, v%d.%s", name, d, lanes, n, lanes, m, lanes),
	}
}

// byLane is three with one lane of m for all.
func byLane(word uint32, name string, d, n, m v, lane int) instruction {
	return instruction{
		word | uint32(lane&1)<<21 | uint32(lane>>1)<<11 | uint32(m)<<16 | uint32(n)<<5 | uint32(d),
		fmt.Sprintf("%s v%d.4s, v%d.4s, v%d.s[%d]", name, d, n, m, lane),
	}
}

// Arithmetic of four binary32. fmlaLane adds n·m[lane] to d, rounded once.
func fadd(d, n, m v) instruction  { return three(0x4e20d400, "fadd", "4s", d, n, m) }
func fsub(d, n, m v) instruction  { return three(0x4ea0d400, "fsub", "4s", d, n, m) }
func fmul(d, n, m v) instruction  { return three(0x6e20dc00, "fmul", "4s", d, n, m) }
func fdiv(d, n, m v) instruction  { return three(0x6e20fc00, "fdiv", "4s", d, n, m) }
func fmax(d, n, m v) instruction  { return three(0x4e20f400, "fmax", "4s", d, n, m) } // NaN if either is
func fcmgt(d, n, m v) instruction { return three(0x6ea0e400, "fcmgt", "4s", d, n, m) }
func fcmeq(d, n, m v) instruction { return three(0x4e20e400, "fcmeq", "4s", d, n, m) }

func fmulLane(d, n, m v, lane int) instruction { return byLane(0x4f809000, "fmul", d, n, m, lane) }
func fmlaLane(d, n, m v, lane int) instruction { return byLane(0x4f801000, "fmla", d, n, m, lane) }

// fmlsLane takes n·m[lane] from d, rounded once.
func fmlsLane(d, n, m v, lane int) instruction { return byLane(0x4f805000, "fmls", d, n, m, lane) }

func fabs(d, n v) instruction { return two(0x4ea0f800, "fabs", "4s", "4s", d, n) }

// fcmeq0 compares with 0 of either sign.
func fcmeq0(d, n v) instruction {
	i := two(0x4ea0d800, "fcmeq", "4s", "4s", d, n)
	i.text += ", #0.0"
	return i
}

// one sets all lanes to 1.
func one(d v) instruction {
	return instruction{0x4f03f600 | uint32(d), fmt.Sprintf("fmov v%d.4s, #1.00000000", d)}
}

// fmaxv and faddp make one number in the first lane: of four lanes the largest, of the first two the sum.
func fmaxv(d, n v) instruction {
	return instruction{0x6e30f800 | uint32(n)<<5 | uint32(d), fmt.Sprintf("fmaxv s%d, v%d.4s", d, n)}
}

func faddp(d, n v) instruction {
	return instruction{0x7e30d800 | uint32(n)<<5 | uint32(d), fmt.Sprintf("faddp s%d, v%d.2s", d, n)}
}

// Conversions, of the lower half of n or, those with a 2, the upper one.
func fcvtl(d, n v) instruction  { return two(0x0e217800, "fcvtl", "4s", "4h", d, n) }
func fcvtl2(d, n v) instruction { return two(0x4e217800, "fcvtl2", "4s", "8h", d, n) }
func scvtf(d, n v) instruction  { return two(0x4e21d800, "scvtf", "4s", "4s", d, n) }

// scvtf24 divides by 2²⁴ what scvtf does.
func scvtf24(d, n v) instruction { return shifted(two(0x4f28e400, "scvtf", "4s", "4s", d, n), 24) }

func shifted(i instruction, by int) instruction {
	i.text += fmt.Sprintf(", #%d", by)
	return i
}

func sxtlBytes(d, n v) instruction { return shifted(two(0x0f08a400, "sshll", "8h", "8b", d, n), 0) }
func sxtl(d, n v) instruction      { return shifted(two(0x0f10a400, "sshll", "4s", "4h", d, n), 0) }
func sxtl2(d, n v) instruction     { return shifted(two(0x4f10a400, "sshll2", "4s", "8h", d, n), 0) }

// Integers and bits. bic is n and not m.
func abs(d, n v) instruction    { return two(0x4ea0b800, "abs", "4s", "4s", d, n) }
func bic(d, n, m v) instruction { return three(0x4e601c00, "bic", "16b", d, n, m) }

// cmeq0 compares 16 bytes with 0.
func cmeq0(d, n v) instruction {
	i := two(0x4e209800, "cmeq", "16b", "16b", d, n)
	i.text += ", #0"
	return i
}
