package limits

var available = []loops{{NEON, sequentialNEON, streamsNEON, writeNEON, fmaNEON, 24 * 4}}

//go:noescape
func sequentialNEON(p *byte, n, ahead int) uint64

//go:noescape
func streamsNEON(p *byte, n int) uint64

//go:noescape
func writeNEON(p *byte, n int, x uint64)

//go:noescape
func fmaNEON(times int, lanes *float32)
