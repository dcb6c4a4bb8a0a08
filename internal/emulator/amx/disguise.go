//go:build linux && amd64

package amx

import (
	"bytes"
	"debug/elf"
	"debug/gosym"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A program asks the processor and the system for tiles in package processor. To ask is no illegal instruction. So the emulator makes
// it one, in the program's memory and before the program begins, and answers as a processor with AMX and its Linux do.

// asking begins the names of the functions that ask.
const asking = "headwater.example/internal/processor."

// tileStates are the configuration and the data of tiles, in XCR0 and in what the system gives.
const tileStates = 1<<17 | 1<<18

// leaves are what CPUID says of tiles, by leaf and part.
var leaves = map[[2]uint32][4]uint32{
	{0, 0}:    {0x20, 0, 0, 0},
	{1, 0}:    {0, 0, 1 << 27, 0},       // OSXSAVE
	{7, 0}:    {2, 0, 0, 1<<22 | 1<<24}, // products of bf16, tiles
	{0x1d, 0}: {1, 0, 0, 0},             // one palette
	{0x1d, 1}: {1024<<16 | 8192, 8<<16 | 64, 16, 0},
	{0x1e, 0}: {0, 64<<8 | 16, 0, 0},
}

// question is where a program asks.
type question struct {
	function string
	// code is the instruction that asks. Without, all of the function is replaced by its answer.
	code []byte
	// answer sets the registers that the instruction or the function does. Go returns in RAX, RBX and RCX; an error has two words,
	// which are 0 if it is nil.
	answer func(r *unix.PtraceRegs)
}

var questions = []question{
	{"cpuidLeaf", []byte{0x0f, 0xa2}, func(r *unix.PtraceRegs) {
		said := leaves[[2]uint32{uint32(r.Rax), uint32(r.Rcx)}]
		r.Rax, r.Rbx, r.Rcx, r.Rdx = uint64(said[0]), uint64(said[1]), uint64(said[2]), uint64(said[3])
	}},
	{"xgetbv", []byte{0x0f, 0x01, 0xd0}, func(r *unix.PtraceRegs) { r.Rax, r.Rdx = tileStates, 0 }},
	{"supportedStates", nil, func(r *unix.PtraceRegs) { r.Rax, r.Rbx, r.Rcx = tileStates, 0, 0 }},
	{"askForTiles", nil, func(r *unix.PtraceRegs) { r.Rax, r.Rbx = 0, 0 }},
}

// undefined is UD2.
var undefined = []byte{0x0f, 0x0b}

// disguise puts undefined instructions in the place of the questions of a program that is stopped before its first instruction, and
// returns them by their addresses. A program that does not ask has none.
func disguise(pid int) (map[uint64]*question, error) {
	program, err := elf.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return nil, err
	}
	defer program.Close()
	lines, text := program.Section(".gopclntab"), program.Section(".text")
	if lines == nil || text == nil {
		return nil, nil // it is none of Go's
	}
	data, err := lines.Data()
	if err != nil {
		return nil, err
	}
	code, err := text.Data()
	if err != nil {
		return nil, err
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(data, text.Addr))
	if err != nil {
		return nil, err
	}
	start, err := entry(pid)
	if err != nil {
		return nil, err
	}
	moved := start - program.Entry // where it is loaded elsewhere than it says
	found := map[uint64]*question{}
	for i := range questions {
		q := &questions[i]
		f := table.LookupFunc(asking + q.function)
		if f == nil {
			continue
		}
		at := f.Entry
		if q.code != nil {
			n := bytes.Index(code[f.Entry-text.Addr:f.End-text.Addr], q.code)
			if n < 0 {
				return nil, fmt.Errorf("%s does not ask as it should", f.Name)
			}
			at += uint64(n)
		}
		if _, err := unix.PtracePokeText(pid, uintptr(at+moved), undefined); err != nil {
			return nil, fmt.Errorf("change %s: %w", f.Name, err)
		}
		found[at+moved] = q
	}
	return found, nil
}

// entry is the address of a process's first instruction, but for what loads it.
func entry(pid int) (uint64, error) {
	const word, atEntry = 8, 9
	vector, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", pid))
	if err != nil {
		return 0, err
	}
	for ; len(vector) >= 2*word; vector = vector[2*word:] {
		if binary.NativeEndian.Uint64(vector) == atEntry {
			return binary.NativeEndian.Uint64(vector[word:]), nil
		}
	}
	return 0, errors.New("the system does not say where the program begins")
}

// reply answers a question, at which the thread has stopped. It returns false if the stack can not be read.
func (v *view) reply(q *question) bool {
	r := &v.registers
	q.answer(r)
	if q.code != nil {
		r.Rip += uint64(len(q.code))
		return true
	}
	var back [8]byte // where the function was called
	if v.readSome(r.Rsp, back[:]) < len(back) {
		return false
	}
	r.Rip = binary.NativeEndian.Uint64(back[:])
	r.Rsp += uint64(len(back))
	return true
}
