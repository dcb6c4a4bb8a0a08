package main

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestEncoding holds each instruction against what LLVM's assembler made of its text, with registers and lanes whose every
// bit is one somewhere.
func TestEncoding(t *testing.T) {
	for _, c := range []struct {
		got  instruction
		word uint32
		text string
	}{
		{fadd(31, 1, 17), 0x4e31d43f, "fadd v31.4s, v1.4s, v17.4s"},
		{fsub(31, 1, 17), 0x4eb1d43f, "fsub v31.4s, v1.4s, v17.4s"},
		{fmul(31, 1, 17), 0x6e31dc3f, "fmul v31.4s, v1.4s, v17.4s"},
		{fdiv(31, 1, 17), 0x6e31fc3f, "fdiv v31.4s, v1.4s, v17.4s"},
		{fmax(31, 1, 17), 0x4e31f43f, "fmax v31.4s, v1.4s, v17.4s"},
		{fcmgt(31, 1, 17), 0x6eb1e43f, "fcmgt v31.4s, v1.4s, v17.4s"},
		{fcmeq(31, 1, 17), 0x4e31e43f, "fcmeq v31.4s, v1.4s, v17.4s"},
		{fmulLane(0, 31, 16, 0), 0x4f9093e0, "fmul v0.4s, v31.4s, v16.s[0]"},
		{fmulLane(0, 31, 15, 3), 0x4faf9be0, "fmul v0.4s, v31.4s, v15.s[3]"},
		{fmlaLane(31, 1, 16, 0), 0x4f90103f, "fmla v31.4s, v1.4s, v16.s[0]"},
		{fmlaLane(1, 31, 17, 1), 0x4fb113e1, "fmla v1.4s, v31.4s, v17.s[1]"},
		{fmlaLane(16, 0, 31, 2), 0x4f9f1810, "fmla v16.4s, v0.4s, v31.s[2]"},
		{fmlaLane(0, 16, 15, 3), 0x4faf1a00, "fmla v0.4s, v16.4s, v15.s[3]"},
		{fmlsLane(31, 1, 17, 1), 0x4fb1503f, "fmls v31.4s, v1.4s, v17.s[1]"},
		{fabs(31, 17), 0x4ea0fa3f, "fabs v31.4s, v17.4s"},
		{fcmeq0(31, 17), 0x4ea0da3f, "fcmeq v31.4s, v17.4s, #0.0"},
		{one(31), 0x4f03f61f, "fmov v31.4s, #1.00000000"},
		{fmaxv(31, 17), 0x6e30fa3f, "fmaxv s31, v17.4s"},
		{faddp(31, 17), 0x7e30da3f, "faddp s31, v17.2s"},
		{fcvtl(31, 17), 0x0e217a3f, "fcvtl v31.4s, v17.4h"},
		{fcvtl2(31, 17), 0x4e217a3f, "fcvtl2 v31.4s, v17.8h"},
		{scvtf(31, 17), 0x4e21da3f, "scvtf v31.4s, v17.4s"},
		{scvtf24(31, 17), 0x4f28e63f, "scvtf v31.4s, v17.4s, #24"},
		{sxtlBytes(31, 17), 0x0f08a63f, "sshll v31.8h, v17.8b, #0"},
		{sxtl(31, 17), 0x0f10a63f, "sshll v31.4s, v17.4h, #0"},
		{sxtl2(31, 17), 0x4f10a63f, "sshll2 v31.4s, v17.8h, #0"},
		{abs(31, 17), 0x4ea0ba3f, "abs v31.4s, v17.4s"},
		{bic(31, 1, 17), 0x4e711c3f, "bic v31.16b, v1.16b, v17.16b"},
		{cmeq0(31, 17), 0x4e209a3f, "cmeq v31.16b, v17.16b, #0"},
	} {
		if c.got.word != c.word || c.got.text != c.text {
			t.Errorf("%#08x %s, not %#08x %s", c.got.word, c.got.text, c.word, c.text)
		}
	}
}

// TestAssembly has LLVM's assembler, where there is one, make every instruction that is written as a word, and counts the
// words among which it looks.
func TestAssembly(t *testing.T) {
	llvm, err := exec.LookPath("llvm-mc")
	if err != nil {
		t.Skip("no llvm-mc (Debian package llvm)")
	}
	assembly, _ := generate()
	words := map[string]string{} // by text
	var all strings.Builder
	for _, m := range regexp.MustCompile(`\tWORD \$0x([0-9a-f]{8}) // (.*)\n`).FindAllStringSubmatch(assembly, -1) {
		if _, ok := words[m[2]]; !ok {
			words[m[2]] = m[1]
			all.WriteString(m[2] + "\n")
		}
	}
	run := exec.Command(llvm, "-triple=aarch64", "-mattr=-all,+neon", "-show-encoding")
	run.Stdin = strings.NewReader(all.String())
	out, err := run.Output()
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, m := range regexp.MustCompile(`(?m)^\t(.*?)\s*// encoding: \[0x(..),0x(..),0x(..),0x(..)\]$`).FindAllStringSubmatch(string(out), -1) {
		text := strings.Replace(m[1], "\t", " ", 1)
		if got, want := words[text], m[5]+m[4]+m[3]+m[2]; got != want {
			t.Errorf("%s is %q, not %s", text, got, want)
		}
		checked++
	}
	if checked != len(words) || checked < 100 {
		t.Errorf("%d of %d different words were checked", checked, len(words))
	}
}
