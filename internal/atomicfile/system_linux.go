package atomicfile

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// preallocate takes size bytes of disk for f and makes them its length. A file system that can not take space in advance
// is asked how much is free instead.
func preallocate(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EOPNOTSUPP):
			return err
		}
		return extend(f, size)
	}
}

// extend sets the length of f if as much is free.
func extend(f *os.File, size int64) error {
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &stat); err != nil {
		return err
	}
	if uint64(size) > stat.Bavail*uint64(stat.Bsize) {
		return unix.ENOSPC
	}
	return f.Truncate(size)
}

// writeBack begins to bring a part of f to the disk. Whether that works shows when f is flushed.
func writeBack(f *os.File, from, size int64) {
	_ = unix.SyncFileRange(int(f.Fd()), from, size, unix.SYNC_FILE_RANGE_WRITE)
}
