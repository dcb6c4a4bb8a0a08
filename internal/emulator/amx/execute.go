//go:build linux && amd64

package amx

import (
	"encoding/binary"
	"errors"
)

// What an instruction that can not be done is to its program.
var (
	// errUndefined is #UD: SIGILL.
	errUndefined = errors.New("undefined instruction")
	// errProtection is #GP, or a page fault: SIGSEGV.
	errProtection = errors.New("protection fault")
)

const (
	tiles    = 8
	tileRows = 16
	rowBytes = 64 // bytes of a row
	// The configuration in memory.
	configBytes = 64
	paletteAt   = 0
	startAt     = 1
	reservedAt  = 2
	colsAt      = 16
	rowsAt      = 48
	entries     = 16

	longest = 15 // bytes of an instruction
)

type tile [tileRows][rowBytes]byte

// state is a thread's tiles.
type state struct {
	config [configBytes]byte
	tiles  [tiles]tile
}

func (s *state) configured() bool { return s.config[paletteAt] != 0 }

func (s *state) rows(t int) int { return int(s.config[rowsAt+t]) }

func (s *state) cols(t int) int { return int(binary.LittleEndian.Uint16(s.config[colsAt+2*t:])) }

// has says whether a tile can be used.
func (s *state) has(t int) bool { return t < tiles && s.configured() && s.rows(t) > 0 }

// machine is what an instruction works on beside tiles.
type machine interface {
	// register is a general register by its number.
	register(number int) uint64
	// read and write are of rows, stride bytes apart from the first one's address on.
	read(address, stride uint64, into ...[]byte) error
	write(address, stride uint64, from ...[]byte) error
}

// instruction is one of AMX, taken apart.
type instruction struct {
	length  int
	opcode  byte
	prefix  int // none, 0x66, 0xf3, 0xf2
	vvvv    int
	memory  bool
	reg, rm int
	base    uint64 // of memory, with what is added to it
	stride  uint64
	indexed bool // there is a SIB byte
}

// decode takes apart the VEX encodings of AMX: 128 bits, map 0F38, W0.
func decode(code []byte, at uint64, m machine) (in instruction, err error) {
	whole := code
	next := func(n int) []byte {
		if n > len(code) {
			err = errUndefined
			return make([]byte, n)
		}
		b := code[:n]
		code = code[n:]
		return b
	}
	vex := next(3)
	if vex[0] != 0xc4 || vex[1]&0x1f != 2 || vex[2]&0x84 != 0 {
		return in, errUndefined
	}
	notR, notX, notB := vex[1]>>7, vex[1]>>6&1, vex[1]>>5&1
	in.prefix, in.vvvv = int(vex[2]&3), int(15-vex[2]>>3&15)
	in.opcode = next(1)[0]
	modrm := next(1)[0]
	mod, extraB := modrm>>6, int(1-notB)<<3
	in.reg, in.rm = int(modrm>>3&7)|int(1-notR)<<3, int(modrm&7)|extraB
	if in.memory = mod != 3; !in.memory {
		in.length = len(whole) - len(code)
		return in, err
	}
	based, relative := true, false
	switch modrm & 7 {
	case 4:
		sib := next(1)[0]
		in.indexed = true
		if index := int(sib>>3&7) | int(1-notX)<<3; index != 4 {
			in.stride = m.register(index) << (sib >> 6)
		}
		if based = sib&7 != 5 || mod != 0; based {
			in.base = m.register(int(sib&7) | extraB)
		}
	case 5:
		if relative = mod == 0; relative {
			based = false
			break
		}
		fallthrough
	default:
		in.base = m.register(in.rm)
	}
	switch {
	case mod == 1:
		in.base += uint64(int64(int8(next(1)[0])))
	case mod == 2 || !based:
		in.base += uint64(int64(int32(binary.LittleEndian.Uint32(next(4)))))
	}
	in.length = len(whole) - len(code)
	if relative {
		in.base += at + uint64(in.length)
	}
	if in.length > longest {
		err = errUndefined
	}
	return in, err
}

// execute does the instruction at an address and returns its length. After an error nothing has changed but memory.
func (s *state) execute(code []byte, at uint64, m machine) (length int, err error) {
	in, err := decode(code, at, m)
	if err != nil {
		return 0, err
	}
	switch in.opcode {
	case 0x49:
		err = s.control(&in, m)
	case 0x4b:
		err = s.move(&in, m)
	case 0x5c:
		err = s.multiply(&in)
	default:
		err = errUndefined
	}
	return in.length, err
}

// The prefixes of opcodes.
const (
	none = iota
	x66
	xF3
	xF2
)

// control is LDTILECFG, STTILECFG, TILERELEASE and TILEZERO.
func (s *state) control(in *instruction, m machine) error {
	switch {
	case in.vvvv != 0:
		return errUndefined
	case in.memory && in.prefix == none && in.reg == 0:
		var config [configBytes]byte
		if err := m.read(in.base, 0, config[:]); err != nil {
			return err
		}
		return s.configure(config)
	case in.memory && in.prefix == x66 && in.reg == 0:
		return m.write(in.base, 0, s.config[:])
	case !in.memory && in.prefix == none && in.reg == 0 && in.rm == 0:
		*s = state{}
	case !in.memory && in.prefix == xF2 && in.rm == 0 && s.has(in.reg):
		s.tiles[in.reg] = tile{}
	default:
		return errUndefined
	}
	return nil
}

// configure takes a configuration and makes all tiles 0. Palette 0 lets go of them.
func (s *state) configure(config [configBytes]byte) error {
	if config[paletteAt] == 0 {
		*s = state{}
		return nil
	}
	next := state{config: config}
	ok := config[paletteAt] == 1 && config[startAt] == 0
	for _, reserved := range config[reservedAt:colsAt] {
		ok = ok && reserved == 0
	}
	for t := range entries {
		rows, cols := next.rows(t), next.cols(t)
		ok = ok && rows <= tileRows && cols <= rowBytes && (rows == 0) == (cols == 0) && (t < tiles || rows == 0)
	}
	if !ok {
		return errProtection
	}
	*s = next
	return nil
}

// move is TILELOADD, TILELOADDT1 and TILESTORED.
func (s *state) move(in *instruction, m machine) error {
	if !in.memory || !in.indexed || in.vvvv != 0 || !s.has(in.reg) {
		return errUndefined
	}
	next := s.tiles[in.reg]
	var rows [tileRows][]byte
	n := s.rows(in.reg)
	if in.prefix != xF3 {
		next = tile{}
	}
	for row := range n {
		rows[row] = next[row][:s.cols(in.reg)]
	}
	err := errUndefined
	switch in.prefix {
	case x66, xF2:
		err = m.read(in.base, in.stride, rows[:n]...)
	case xF3:
		err = m.write(in.base, in.stride, rows[:n]...)
	}
	if err != nil {
		return err
	}
	s.tiles[in.reg] = next
	return nil
}

// multiply is TDPBF16PS.
func (s *state) multiply(in *instruction) error {
	d, a, b := in.reg, in.rm, in.vvvv
	if in.memory || in.prefix != xF3 || d == a || d == b || a == b || !s.has(d) || !s.has(a) || !s.has(b) {
		return errUndefined
	}
	if s.cols(d)%4 != 0 || s.cols(a)%4 != 0 || s.cols(b)%4 != 0 || s.rows(a) != s.rows(d) || s.cols(b) != s.cols(d) || s.cols(a)/4 != s.rows(b) {
		return errUndefined
	}
	product(&s.tiles[d], &s.tiles[a], &s.tiles[b], s.rows(d), s.cols(d)/4, s.rows(b))
	return nil
}
