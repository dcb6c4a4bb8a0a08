//go:build amd64 || arm64

package attention

// pause does nothing for about a tenth of a microsecond, and leaves the core to the other thread on it.
func pause()
