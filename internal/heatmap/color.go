package heatmap

import (
	"image/color"
	"math"
	"strconv"
	"strings"
)

// ramp runs from near black over violet, red and orange to pale yellow:
// lightness rises evenly in OKLab, so that equal steps of the scale look equal,
// in print and to those who tell few hues apart.
var ramp = [...]uint32{
	0x0b003c, 0x120046, 0x1a0151, 0x23035b, 0x2c0465, 0x36066f, 0x400778, 0x4b0981, 0x560c89,
	0x620d91, 0x700f94, 0x82108f, 0x931388, 0xa41580, 0xb41875, 0xc51868, 0xd41d59, 0xdf2751,
	0xe93449, 0xf3403f, 0xfa4f37, 0xfa6439, 0xfa763f, 0xfa8644, 0xfa954b, 0xfba251, 0xfbaf5b,
	0xfcbc64, 0xfcc86f, 0xfdd478, 0xfde084, 0xfeeb8b, 0xfef791,
}

var (
	paper  = color.RGBA{0xff, 0xff, 0xff, 0xff}
	ink    = color.RGBA{0x1c, 0x1c, 0x24, 0xff}
	soft   = color.RGBA{0x6a, 0x6a, 0x76, 0xff}
	rule   = color.RGBA{0xc9, 0xc9, 0xd2, 0xff}
	unseen = color.RGBA{0xe7, 0xe7, 0xec, 0xff}
)

// scale maps weights to colors: 1 is the last color, 10^-decades and all below
// it the first.
type scale struct {
	decades int
	table   [256]color.RGBA
}

// newScale reaches one decade below an even spread over all keys.
func newScale(keys int) *scale {
	s := &scale{decades: min(max(len(digits(keys-1))+1, 3), 8)}
	steps := len(ramp) - 1
	for i := range s.table {
		at := i * steps
		low := at / 255
		high, part := min(low+1, steps), at%255
		mix := func(shift int) uint8 {
			a, b := int(ramp[low]>>shift&0xff), int(ramp[high]>>shift&0xff)
			return uint8((a*(255-part) + b*part + 127) / 255)
		}
		s.table[i] = color.RGBA{mix(16), mix(8), mix(0), 0xff}
	}
	return s
}

func (s *scale) color(weight float64) color.RGBA {
	if weight == 0 {
		return unseen
	}
	t := 1 + math.Log10(weight)/float64(s.decades)
	return s.table[int(math.Round(255*min(max(t, 0), 1)))]
}

// label names 10^-d on the scale.
func (s *scale) label(d int) string {
	switch {
	case d == 0:
		return "1"
	case s.decades > 4:
		return "1e-" + strconv.Itoa(d)
	}
	return "0." + strings.Repeat("0", d-1) + "1"
}
