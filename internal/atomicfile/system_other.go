//go:build !linux

package atomicfile

import "os"

// preallocate sets the length of f; whether the disk has room shows when it is written.
func preallocate(f *os.File, size int64) error { return f.Truncate(size) }

// writeBack leaves it to the system when a file goes to the disk before it is flushed.
func writeBack(*os.File, int64, int64) {}
