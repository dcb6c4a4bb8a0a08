//go:build !linux

package limits

func hugePages([]byte) {}
