//go:build unix

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockFile makes or opens a file and locks it against other processes, for which it waits. The lock ends with the file, or
// with the process.
func lockFile(path string, wait time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data folder: %w", err)
	}
	const pause = 50 * time.Millisecond
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK) && wait > 0:
			time.Sleep(pause) // the kernel has no wait with a time
			wait -= pause
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			err = fmt.Errorf("data folder %s is in use by another coordinator", filepath.Dir(path))
		default:
			err = fmt.Errorf("lock %s: %w", path, err)
		}
		return nil, errors.Join(err, f.Close())
	}
}
