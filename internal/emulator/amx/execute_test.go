//go:build linux && amd64

package amx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"headwater.example/internal/processor"
)

// memory is a program's: a page from address 0x1000 on, and registers that hold their numbers in units of 0x100, above the page's
// beginning.
type memory [4096]byte

func (m *memory) register(number int) uint64 { return 0x1000 + 0x100*uint64(number) }

func (m *memory) at(address uint64, n int) ([]byte, error) {
	if address < 0x1000 || address+uint64(n) > 0x2000 {
		return nil, errProtection
	}
	return m[address-0x1000:][:n], nil
}

func (m *memory) read(address, stride uint64, into ...[]byte) error {
	for i, row := range into {
		b, err := m.at(address+uint64(i)*stride, len(row))
		if err != nil {
			return err
		}
		copy(row, b)
	}
	return nil
}

func (m *memory) write(address, stride uint64, from ...[]byte) error {
	for i, row := range from {
		b, err := m.at(address+uint64(i)*stride, len(row))
		if err != nil {
			return err
		}
		copy(b, row)
	}
	return nil
}

// shaped gives the tiles these rows and bytes of a row.
func shaped(shapes ...[2]int) *state {
	s := &state{}
	s.config[paletteAt] = 1
	for i, shape := range shapes {
		s.config[rowsAt+i] = byte(shape[0])
		binary.LittleEndian.PutUint16(s.config[colsAt+2*i:], uint16(shape[1]))
	}
	return s
}

// TestFaults: what the processor refuses, by the fault that it raises.
func TestFaults(t *testing.T) {
	full := [2]int{16, 64}
	product := []byte{0xc4, 0xe2, 0x6a, 0x5c, 0xc1} // tdpbf16ps %tmm2, %tmm1, %tmm0
	load := []byte{0xc4, 0xe2, 0x7b, 0x4b, 0x04, 0x21}
	for _, c := range []struct {
		name string
		s    *state
		code []byte
		want error
	}{
		{"a product", shaped(full, full, full), product, nil},
		{"no configuration", &state{}, product, errUndefined},
		{"a tile without a shape", shaped(full, full), product, errUndefined},
		{"one tile twice", shaped(full, full, full), []byte{0xc4, 0xe2, 0x72, 0x5c, 0xc1}, errUndefined},
		{"rows that differ", shaped(full, [2]int{15, 64}, full), product, errUndefined},
		{"columns that differ", shaped(full, full, [2]int{16, 60}), product, errUndefined},
		{"pairs that differ", shaped(full, [2]int{16, 60}, full), product, errUndefined},
		{"half a word", shaped([2]int{16, 62}, full, [2]int{16, 62}), product, errUndefined},
		{"256 bits", shaped(full, full, full), []byte{0xc4, 0xe2, 0x6e, 0x5c, 0xc1}, errUndefined},
		{"W1", shaped(full, full, full), []byte{0xc4, 0xe2, 0xea, 0x5c, 0xc1}, errUndefined},
		{"another map", shaped(full, full, full), []byte{0xc4, 0xe1, 0x6a, 0x5c, 0xc1}, errUndefined},
		{"tile 8", shaped(full, full, full), []byte{0xc4, 0x62, 0x6a, 0x5c, 0xc1}, errUndefined},
		{"int8", shaped(full, full, full), []byte{0xc4, 0xe2, 0x6b, 0x5e, 0xc1}, errUndefined},
		{"half an instruction", shaped(full, full, full), product[:4], errUndefined},
		{"ud2", shaped(full), []byte{0x0f, 0x0b}, errUndefined},
		{"a load", shaped([2]int{2, 64}), load, nil},
		{"a load without SIB", shaped([2]int{2, 64}), []byte{0xc4, 0xe2, 0x7b, 0x4b, 0x01}, errUndefined},
		{"a load from outside", shaped([2]int{3, 64}), []byte{0xc4, 0xe2, 0x7b, 0x4b, 0x44, 0x08, 0x80}, errProtection},
		{"a load of a tile without a shape", shaped(), load, errUndefined},
	} {
		length, err := c.s.execute(c.code, 0x1000, new(memory))
		if !errors.Is(err, c.want) || err == nil && length != len(c.code) {
			t.Errorf("%s: %d bytes, %v, not %v", c.name, length, err, c.want)
		}
	}
}

// TestConfigurations: what LDTILECFG takes, and that what it refuses changes nothing.
func TestConfigurations(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(config []byte)
		want  error
	}{
		{"as it should be", func([]byte) {}, nil},
		{"62 bytes", func(c []byte) { c[colsAt] = 62 }, nil},
		{"palette 0", func(c []byte) { clear(c) }, nil},
		{"palette 2", func(c []byte) { c[paletteAt] = 2 }, errProtection},
		{"a reserved byte", func(c []byte) { c[reservedAt+13] = 1 }, errProtection},
		{"17 rows", func(c []byte) { c[rowsAt+1] = 17 }, errProtection},
		{"no rows", func(c []byte) { c[rowsAt] = 0 }, errProtection},
		{"65 bytes", func(c []byte) { c[colsAt] = 65 }, errProtection},
		{"no bytes", func(c []byte) { c[colsAt] = 0 }, errProtection},
		{"a ninth tile", func(c []byte) { c[rowsAt+8], c[colsAt+16] = 1, 4 }, errProtection},
	} {
		m := new(memory)
		good := shaped([2]int{16, 64}, [2]int{1, 4})
		copy(m[0x100:], good.config[:])
		c.spoil(m[0x100:][:configBytes])
		s := shaped([2]int{3, 12})
		s.tiles[0][1][2] = 5
		_, err := s.execute([]byte{0xc4, 0xe2, 0x78, 0x49, 0x01}, 0, m) // ldtilecfg (%rcx)
		want := shaped([2]int{3, 12})
		want.tiles[0][1][2] = 5
		if c.want == nil {
			want = &state{}
			copy(want.config[:], m[0x100:])
		}
		if !errors.Is(err, c.want) || *s != *want {
			t.Errorf("%s: %v, not %v; or another state", c.name, err, c.want)
		}
	}
}

// TestAddresses: every way to name memory, by where a tile of one row of 4 bytes is stored.
func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		text string
		code []byte
		want int // in the page
	}{
		{"tilestored %tmm0, (%rcx)", []byte{0xc4, 0xe2, 0x7a, 0x4b, 0x04, 0x21}, 0x100},
		{"tilestored %tmm0, 0x10(%rcx,%rax)", []byte{0xc4, 0xe2, 0x7a, 0x4b, 0x44, 0x01, 0x10}, 0x110},
		{"tilestored %tmm0, -0x10(%r9,%r15,4)", []byte{0xc4, 0x82, 0x7a, 0x4b, 0x44, 0xb9, 0xf0}, 0x8f0},
		{"tilestored %tmm0, 0x234(%rbp,%rax)", []byte{0xc4, 0xe2, 0x7a, 0x4b, 0x84, 0x05, 0x34, 0x02, 0, 0}, 0x734},
		{"tilestored %tmm0, (%r13,%rax)", []byte{0xc4, 0xc2, 0x7a, 0x4b, 0x44, 0x05, 0x00}, 0xd00},
		{"tilestored %tmm0, 0x1400(,%rax)", []byte{0xc4, 0xe2, 0x7a, 0x4b, 0x04, 0x05, 0x00, 0x14, 0, 0}, 0x400},
		{"sttilecfg 0x500(%rip)", []byte{0xc4, 0xe2, 0x79, 0x49, 0x05, 0x00, 0x05, 0, 0}, 0x609},
		{"sttilecfg 0x20(%rdx)", []byte{0xc4, 0xe2, 0x79, 0x49, 0x42, 0x20}, 0x220},
	} {
		s := shaped([2]int{1, 4})
		copy(s.tiles[0][0][:], "\x01\x00\x00\x00")
		m := new(memory)
		length, err := s.execute(c.code, 0x1100, m)
		if err != nil || length != len(c.code) {
			t.Errorf("%s: %d bytes, %v", c.text, length, err)
			continue
		}
		if at := bytes.IndexByte(m[:], 1); at != c.want {
			t.Errorf("%s: it stores to %#x, not %#x", c.text, at, c.want)
		}
	}
}

// FuzzExecute: no bytes and no configuration harm the emulator, and no instruction is longer than its bytes.
func FuzzExecute(f *testing.F) {
	f.Add([]byte{0xc4, 0xe2, 0x78, 0x49, 0x01}, []byte{1})
	f.Add([]byte{0xc4, 0xe2, 0x7b, 0x4b, 0x44, 0x08, 0x80}, bytes.Repeat([]byte{1}, 64))
	f.Fuzz(func(t *testing.T, code, config []byte) {
		s, m := &state{}, new(memory)
		copy(m[0x100:], config)
		_, _ = s.execute([]byte{0xc4, 0xe2, 0x78, 0x49, 0x01}, 0, m) // it may be refused
		if length, err := s.execute(code, 0x1000, m); err == nil && (length > len(code) || length < 5) {
			t.Fatalf("% x has %d bytes", code, length)
		}
	})
}

// TestProgramsEndAsTheyDo: a program without AMX runs as it would alone.
func TestProgramsEndAsTheyDo(t *testing.T) {
	if processor.Has(processor.AMXTile) {
		t.Skip("this processor has AMX")
	}
	for script, want := range map[string]int{"exit 3": 3, "kill -KILL $$": 137, "cat; cat </dev/null": 0} {
		program := exec.Command("/bin/sh", "-c", script)
		program.Stdin = strings.NewReader("said")
		var out strings.Builder
		program.Stdout = &out
		result, err := Run(program)
		if err != nil || result.Code != want || result.Instructions != 0 {
			t.Errorf("%s: %+v, %v", script, result, err)
		}
		if want == 0 && out.String() != "said" {
			t.Errorf("%s: it said %q", script, out.String())
		}
	}
	if _, err := Run(exec.Command("/no/such/program")); err == nil {
		t.Error("a program that is not there ran")
	}
}
