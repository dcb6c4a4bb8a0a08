package limits

import "headwater.example/internal/processor"

var available = func() (all []loops) {
	if processor.Has(processor.AVX512F) {
		all = append(all, loops{AVX512, sequential512, streams512, write512, fma512, 16 * 16})
	}
	if processor.Has(processor.AVX2, processor.FMA) {
		all = append(all, loops{AVX2, sequential256, streams256, write256, fma256, 12 * 8})
	}
	return all
}()

//go:noescape
func sequential512(p *byte, n, ahead int) uint64

//go:noescape
func streams512(p *byte, n int) uint64

//go:noescape
func write512(p *byte, n int, x uint64)

//go:noescape
func fma512(times int, lanes *float32)

//go:noescape
func sequential256(p *byte, n, ahead int) uint64

//go:noescape
func streams256(p *byte, n int) uint64

//go:noescape
func write256(p *byte, n int, x uint64)

//go:noescape
func fma256(times int, lanes *float32)
