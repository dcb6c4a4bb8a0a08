package limits

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"os/exec"
	"testing"

	emulator "headwater.example/internal/emulator/amx"
	"headwater.example/internal/processor"
)

// TestEveryProductOfTheMatrixUnitIsDone: of tiles of 1, 2, 4 and 8 each of four sums has all products, on an emulated processor
// where this one has no AMX.
func TestEveryProductOfTheMatrixUnitIsDone(t *testing.T) {
	if processor.Tiles() != nil && os.Getenv(emulator.Variable) != emulator.Emulated {
		self := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		var out bytes.Buffer
		self.Stdout, self.Stderr = &out, &out
		if result, err := emulator.Run(self); err != nil || result.Code != 0 || result.Instructions != 9+4*5+5 {
			t.Fatalf("%+v, %v: %s", result, err, &out)
		}
		return
	}
	var tiles [4][1024]byte
	for i := range tiles {
		for at := 0; at < len(tiles[i]); at += 2 {
			binary.LittleEndian.PutUint16(tiles[i][at:], uint16(math.Float32bits(float32(int(1)<<i))>>16))
		}
	}
	const times = 5
	multiplyTiles(times, &tiles, fullTiles())
	for i, factors := range []float32{1 * 4, 1 * 8, 2 * 4, 2 * 8} {
		for at := 0; at < len(tiles[i]); at += 4 {
			if got := math.Float32frombits(binary.LittleEndian.Uint32(tiles[i][at:])); got != 32*times*factors {
				t.Fatalf("sum %d has %g at %d, not %g", i, got, at/4, 32*times*factors)
			}
		}
	}
}
