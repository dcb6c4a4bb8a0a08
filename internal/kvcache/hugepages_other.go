//go:build !linux

package kvcache

// adviseHuge would ask for huge pages; see the other file.
func adviseHuge([]byte) {}
