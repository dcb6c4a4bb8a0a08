package processor

import (
	"errors"
	"fmt"
	"sync"
)

// machine is where it is read whether there are tiles: the processor and what the system lets programs use.
type machine struct {
	cpuid     func(leaf, part uint32) (a, b, c, d uint32)
	xcr0      func() uint32          // the lower half, where the processor has it
	supported func() (uint64, error) // the states that the system gives to who asks
	ask       func() error           // for the tiles' data
}

var here = machine{cpuidLeaf, xgetbv, supportedStates, askForTiles}

// What CPUID and XCR0 say of tiles, and the shape of the one palette that there is.
const (
	osxsave        = 1 << 27 // leaf 1, ECX
	amxBF16        = 1 << 22 // leaf 7, EDX
	amxTile        = 1 << 24
	tileStates     = 1<<17 | 1<<18 // XCR0: the configuration and the data
	tileData       = 18
	featureLeaf    = 7
	paletteLeaf    = 0x1d
	productLeaf    = 0x1e
	tileBytes      = 1024
	tileRowBytes   = 64
	tileRows       = 16
	tiles          = 8
	tileTotalBytes = tiles * tileBytes
	productRows    = 16
	productColumns = 64 // bytes of a row
	fewestLeaves   = productLeaf
	fewestPalettes = 1
)

// lacks says what is missing for TDPBF16PS on eight tiles of 16 rows of 64 bytes.
func (m machine) lacks() error {
	if leaves, _, _, _ := m.cpuid(0, 0); leaves < fewestLeaves {
		return errors.New("the processor has no AMX")
	}
	if _, _, _, d := m.cpuid(featureLeaf, 0); d&amxTile == 0 || d&amxBF16 == 0 {
		return errors.New("the processor has no AMX of bf16")
	}
	if _, _, c, _ := m.cpuid(1, 0); c&osxsave == 0 || m.xcr0()&tileStates != tileStates {
		return errors.New("the system does not save AMX tiles")
	}
	if palettes, _, _, _ := m.cpuid(paletteLeaf, 0); palettes < fewestPalettes {
		return errors.New("AMX has no palette 1")
	}
	a, b, c, _ := m.cpuid(paletteLeaf, 1)
	if a&0xffff != tileTotalBytes || a>>16 != tileBytes || b&0xffff != tileRowBytes || b>>16 != tiles || c&0xffff != tileRows {
		return fmt.Errorf("AMX has %d tiles of %d bytes, %d rows of %d bytes, not %d of %d, %d of %d",
			b>>16, a>>16, c&0xffff, b&0xffff, tiles, tileBytes, tileRows, tileRowBytes)
	}
	if _, b, _, _ := m.cpuid(productLeaf, 0); b&0xff != productRows || b>>8&0xffff != productColumns {
		return fmt.Errorf("AMX multiplies %d rows by %d bytes, not %d by %d", b&0xff, b>>8&0xffff, productRows, productColumns)
	}
	states, err := m.supported()
	if err != nil {
		return fmt.Errorf("the system gives no AMX tiles: %w", err)
	}
	if states>>tileData&1 == 0 {
		return errors.New("the system gives no AMX tiles")
	}
	return nil
}

// tiles asks for tiles where they are.
func (m machine) tiles() error {
	if err := m.lacks(); err != nil {
		return err
	}
	if err := m.ask(); err != nil {
		return fmt.Errorf("the system refuses AMX tiles: %w", err)
	}
	return nil
}

// Tiles says whether this process may use AMX tiles of bf16. The first call asks the system for it, for all threads; from then on
// what a signal saves is larger by the tiles.
var Tiles = sync.OnceValue(here.tiles)

func cpuidLeaf(leaf, part uint32) (a, b, c, d uint32)

// xgetbv needs OSXSAVE.
func xgetbv() uint32
