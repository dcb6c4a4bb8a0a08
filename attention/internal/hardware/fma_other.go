//go:build !amd64 && !arm64

package hardware

// Supported says whether FMA32 can be called here.
func Supported() bool { return false }

// FMA32 is not called where it is not supported.
func FMA32(a, b, c float32) float32 { panic("hardware: no fused multiply-add") }
