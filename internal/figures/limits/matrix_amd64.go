package limits

import (
	"math/rand/v2"
	"time"

	"headwater.example/internal/processor"
)

const (
	// matrixTimes is the length of a pass: some 50 µs.
	matrixTimes = 1 << 11
	// productFlops are the operations of one product of tiles: 16 rows by 16 columns by 32 elements.
	productFlops = 2 * 16 * 16 * 32
)

// Matrix returns the floating-point operations a second that one core's matrix unit does on tiles of bf16 in registers: the
// median of passes over the given time. The data are not zero, with which the unit runs faster than it ever does.
func Matrix(spend time.Duration) (flops float64, err error) {
	if err := processor.Tiles(); err != nil {
		return 0, err
	}
	var tiles, kept [4][1024]byte
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range kept {
		for at := 0; at < len(kept[i]); at += 2 {
			kept[i][at], kept[i][at+1] = byte(rng.IntN(256)), 0x3f // in [0.5, 2)
		}
	}
	d := median(spend, func() {
		tiles = kept
		multiplyTiles(matrixTimes, &tiles, fullTiles())
	})
	return matrixTimes * 4 * productFlops / d.Seconds(), nil
}

// fullTiles is the configuration of eight tiles of 16 rows of 64 bytes.
func fullTiles() *[64]byte {
	c := &[64]byte{1}
	for i := range 8 {
		c[16+2*i], c[48+i] = 64, 16
	}
	return c
}

// multiplyTiles adds the products of each of the first two tiles with each of the others so many times to zero, and leaves the
// four sums in the tiles.
//
//go:noescape
func multiplyTiles(times int, tiles *[4][1024]byte, config *[64]byte)
