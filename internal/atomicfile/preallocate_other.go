//go:build !linux

package atomicfile

import "os"

// preallocate sets the length of f; whether the disk has room shows when it is written.
func preallocate(f *os.File, size int64) error { return f.Truncate(size) }
