package attention

import (
	"encoding/binary"
	"fmt"
	"math"

	"headwater.example/tensor"
)

// Arithmetic is the order of operations of the two products that touch every key and value, q·k and weights times v. What is
// around them is the same for all. docs/numerics.md specifies them, to the bit.
type Arithmetic uint8

const (
	// Chain is one chain of fused multiply-adds for each score and each element of a context.
	Chain Arithmetic = iota
	// Tiles is for keys and values as bf16: queries and weights are split into three parts of bf16, which hold them exactly,
	// and products are summed as matrix units do, in tiles of 32 with a chain each for even and for odd elements.
	Tiles
	// TilesBF16 is Tiles with the first part alone: queries and weights are rounded to bf16. It is lossy.
	TilesBF16
)

var arithmetics = [...]string{Chain: "chain", Tiles: "tiles", TilesBF16: "tiles-bf16"}

// Auto is no arithmetic: it leaves to a coordinator which one is taken, Chain or Tiles. No layout has it.
const Auto Arithmetic = math.MaxUint8

// ArithmeticNames names all that there are.
func ArithmeticNames() []string { return arithmetics[:] }

func (a Arithmetic) String() string {
	switch {
	case int(a) < len(arithmetics):
		return arithmetics[a]
	case a == Auto:
		return "auto"
	}
	return fmt.Sprintf("arithmetic %d", uint8(a))
}

// ParseArithmetic returns the one of that name.
func ParseArithmetic(name string) (Arithmetic, error) {
	for a, n := range arithmetics {
		if n == name {
			return Arithmetic(a), nil
		}
	}
	return 0, fmt.Errorf("arithmetic %q is none of chain, tiles and tiles-bf16", name)
}

// parts is how many parts of queries and weights it takes.
func (a Arithmetic) parts() int {
	if a == Tiles {
		return tileParts
	}
	return 1
}

const (
	// tileParts are the most parts of a binary32, tileLen the elements of a tile.
	tileParts = 3
	tileLen   = 32
	// leastStored, leastSplit and tooLarge are the ranges of tiles: less than leastStored in a key or value, and less than
	// leastSplit in a query or weight, is 0, and nothing is tooLarge. So every operand is a multiple of 2⁻⁶³, every product
	// and sum one of 2⁻¹²⁶, and none is subnormal; and every product is exact in binary32.
	leastStored = 0x1p-56
	leastSplit  = 0x1p-40
	tooLarge    = 0x1p63
)

// WithArithmetic returns the layout of the same keys and values for another arithmetic. Only bf16 has other than Chain.
func (l Layout) WithArithmetic(a Arithmetic) (Layout, error) {
	switch {
	case a == Auto:
		return Layout{}, fmt.Errorf("arithmetic %s is none: a coordinator takes one for it", a)
	case int(a) >= len(arithmetics):
		return Layout{}, fmt.Errorf("there is no %s", a)
	case a != Chain && l.dt != tensor.BF16:
		return Layout{}, fmt.Errorf("arithmetic %s takes keys and values stored as %s, not as %s", a, tensor.BF16, l.dt)
	}
	l.arithmetic = a
	return l, nil
}

// Arithmetic returns that in which queries attend.
func (l Layout) Arithmetic() Arithmetic { return l.arithmetic }

// Settle makes of rows of bf16, for arithmetic in tiles, what Write stores of them: below 2⁻⁵⁶ all is +0. It refuses what is
// not below 2⁶³. For Chain it does nothing.
func (l Layout) Settle(rows Rows) error {
	if l.arithmetic == Chain {
		return nil
	}
	if err := settle(rows.K); err != nil {
		return fmt.Errorf("keys: arithmetic %s: %w", l.arithmetic, err)
	}
	if err := settle(rows.V); err != nil {
		return fmt.Errorf("values: arithmetic %s: %w", l.arithmetic, err)
	}
	return nil
}

// The least bf16 that stays, and the first that is refused, both without a sign.
var (
	leastBF16    = uint16(math.Float32bits(leastStored) >> 16)
	tooLargeBF16 = uint16(math.Float32bits(tooLarge) >> 16)
)

func settle(row []byte) error {
	// Most often none of 16 elements is so small or so large, which is seen in four words at once: added to a magnitude, either of
	// these sets the bit above it from the bound on.
	const each, above = 1<<48 | 1<<32 | 1<<16 | 1, 1 << 15 * (1<<48 | 1<<32 | 1<<16 | 1)
	least, tooLarge := above-each*uint64(leastBF16), above-each*uint64(tooLargeBF16)
	inside := func(x uint64) uint64 {
		x &= above - each
		return (x + least) &^ (x + tooLarge)
	}
	i := 0
	for ; i+32 <= len(row); i += 32 {
		b := row[i:][:32]
		if inside(binary.LittleEndian.Uint64(b))&inside(binary.LittleEndian.Uint64(b[8:]))&
			inside(binary.LittleEndian.Uint64(b[16:]))&inside(binary.LittleEndian.Uint64(b[24:]))&above == above {
			continue
		}
		if err := settleEach(row, i, i+32); err != nil {
			return err
		}
	}
	return settleEach(row, i, len(row))
}

func settleEach(row []byte, from, to int) error {
	for i := from; i+2 <= to; i += 2 {
		x := uint16(row[i]) | uint16(row[i+1])<<8
		switch x &= 0x7fff; {
		case x >= tooLargeBF16:
			return fmt.Errorf("element %d is not below 2⁶³", i/2)
		case x < leastBF16:
			row[i], row[i+1] = 0, 0
		}
	}
	return nil
}
