//go:build !amd64 && !arm64

package processor

var features []Feature

// Name is empty: there is no way to read it.
func Name() string { return "" }
