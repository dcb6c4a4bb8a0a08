package hardware

// Supported says whether FMA32 can be called here.
func Supported() bool { return true }

// FMA32 returns a·b + c rounded once to binary32, by FMADD.
//
//go:noescape
func FMA32(a, b, c float32) float32
