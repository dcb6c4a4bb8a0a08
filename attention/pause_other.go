//go:build !amd64 && !arm64

package attention

func pause() {}
