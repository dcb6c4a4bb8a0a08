package hardware

import "headwater.example/internal/processor"

// Supported says whether FMA32 can be called here.
func Supported() bool { return processor.Has(processor.FMA) }

// FMA32 returns a·b + c rounded once to binary32, by VFMADD231SS.
//
//go:noescape
func FMA32(a, b, c float32) float32
