// Package atomicfile writes files that are there whole or not at all, also after a crash or a loss of power.
//
// Create makes a temporary file in the directory of its target and, where the size is known, takes the disk space at
// once, so that a full disk is said before any work is done. Commit flushes the temporary file, renames it to the
// target, and flushes the directory, in this order. Abort, and any failure of Create or Commit, removes the temporary
// file. Only a process that is killed leaves one; IsTemporary knows it by its name.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// File is a file that is being written. Its methods may be called at the same time, except Commit and Abort.
type File struct {
	f     *os.File // nil after Commit and Abort
	name  string   // of the temporary file
	path  string
	size  int64 // 0 unknown
	calls calls

	written, started int64 // by Write: bytes, and those that are on their way to the disk
}

// calls are what Commit and Create ask of the operating system; tests replace them.
type calls struct {
	preallocate func(f *os.File, size int64) error
	sync        func(f *os.File) error
	rename      func(from, to string) error
	syncDir     func(dir string) error
}

var system = calls{preallocate: preallocate, sync: (*os.File).Sync, rename: os.Rename, syncDir: syncDir}

// Create begins a file that Commit will put at path, in the place of what is there. size is its length in bytes, for
// which the disk space is taken now; 0 if it is not known. If path is a symbolic link, its target is what is replaced or made.
// A path that is there and is not a regular file is refused.
func Create(path string, size int64) (*File, error) {
	return create(path, size, 0o666, system)
}

// CreateSecret is Create for a file that its owner alone may read.
func CreateSecret(path string, size int64) (*File, error) {
	return create(path, size, 0o600, system)
}

func create(path string, size int64, mode fs.FileMode, calls calls) (*File, error) {
	if size < 0 {
		return nil, fmt.Errorf("create %s: size of %d bytes", path, size)
	}
	target, err := resolve(path)
	if err != nil {
		return nil, err
	}
	f, err := createTemporary(target, mode)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", path, reason(err))
	}
	if size > 0 {
		if err := calls.preallocate(f, size); err != nil {
			return nil, also(fmt.Errorf("create %s: take %d bytes of disk: %w", path, size, err), discard(f))
		}
	}
	return &File{f: f, name: f.Name(), path: target, size: size, calls: calls}, nil
}

// resolve follows a symbolic link at path and refuses what a rename must not replace.
func resolve(path string) (string, error) {
	if path == "" {
		return "", errors.New("create file: no name of a file")
	}
	target, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return missing(path), nil // new, or in no directory: creating it will say
	}
	if err != nil {
		return "", fmt.Errorf("create %s: %w", path, reason(err))
	}
	stat, err := os.Stat(target)
	if err != nil {
		return "", fmt.Errorf("create %s: %w", path, reason(err))
	}
	if !stat.Mode().IsRegular() {
		return "", fmt.Errorf("create %s: is there and is not a regular file", path)
	}
	return target, nil
}

// missing follows links that lead to a file which is not there.
func missing(path string) string {
	for range maxLinks {
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return path
}

// maxLinks is how many links lead to a file at most, as in Linux.
const maxLinks = 40

const (
	marker  = ".headwater-"
	maxBase = 200 // leaves room for the marker and the random part below the 255 bytes of a name
)

// IsTemporary reports whether a file of this name was made by Create and, if nobody is writing it, left by a process
// that was killed.
func IsTemporary(path string) bool {
	base := filepath.Base(path)
	at := strings.LastIndex(base, marker)
	if at < 0 || base[0] != '.' {
		return false
	}
	_, err := strconv.ParseUint(base[at+len(marker):], 36, 64)
	return err == nil
}

// createTemporary makes a new file beside target, with the permissions of mode as far as the umask lets it have them.
func createTemporary(target string, mode fs.FileMode) (*os.File, error) {
	dir, base := filepath.Split(target)
	if base == "" {
		return nil, errors.New("no name of a file")
	}
	if len(base) > maxBase {
		base = base[:maxBase]
	}
	for tries := 0; ; tries++ {
		name := dir + "." + base + marker + strconv.FormatUint(rand.Uint64(), 36)
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
		if err == nil || !errors.Is(err, fs.ErrExist) || tries == 100 {
			return f, err
		}
	}
}

func discard(f *os.File) error {
	err := f.Close()
	if gone := os.Remove(f.Name()); gone != nil {
		err = gone
	}
	return err
}

// also adds what went wrong while cleaning up after err, on the same line.
func also(err, cleanup error) error {
	if cleanup == nil {
		return err
	}
	return fmt.Errorf("%w; clean up: %w", err, cleanup)
}

// reason drops the name of the temporary file from an error of the operating system: callers know the target's.
func reason(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}

// Name returns the path of the temporary file, which ceases to exist at Commit and Abort.
func (f *File) Name() string { return f.name }

// behind is how many bytes Write lets gather before they are on their way to the disk.
const behind = 8 << 20

// Write appends p after what Write wrote before. What it writes is on its way to the disk long before Commit, which then has
// little to wait for.
func (f *File) Write(p []byte) (int, error) {
	n, err := f.f.Write(p)
	f.written += int64(n)
	if f.written-f.started >= behind {
		writeBack(f.f, f.started, f.written-f.started)
		f.started = f.written
	}
	return n, err
}

// Flush brings what was written to the disk. Commit does so as well; who has something else to do meanwhile calls Flush
// beside it.
func (f *File) Flush() error {
	if err := f.calls.sync(f.f); err != nil {
		return fmt.Errorf("flush %s: %w", f.path, reason(err))
	}
	return nil
}

// WriteAt writes p from byte off on.
func (f *File) WriteAt(p []byte, off int64) (int, error) { return f.f.WriteAt(p, off) }

// ReadAt reads what was written, from byte off on.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// Path returns where Commit puts the file.
func (f *File) Path() string { return f.path }

// Commit makes the file durable under its path. If it fails the temporary file is gone, and the path holds what it held
// before, unless the error says that only its durability is in doubt. After Commit or Abort, Commit is an error.
func (f *File) Commit() error {
	if f.f == nil {
		return fmt.Errorf("commit %s: %w", f.path, fs.ErrClosed)
	}
	if err := f.flush(); err != nil {
		return also(fmt.Errorf("commit %s: %w", f.path, reason(err)), f.Abort())
	}
	// A failed Close after a successful fsync loses nothing on a local disk, but a network file system may say here
	// that it could not write.
	err := f.f.Close()
	if err == nil {
		err = f.calls.rename(f.name, f.path)
	}
	f.f = nil
	if err != nil {
		return also(fmt.Errorf("commit %s: %w", f.path, reason(err)), os.Remove(f.name))
	}
	if err := f.calls.syncDir(filepath.Dir(f.path)); err != nil {
		return fmt.Errorf("commit %s: the file is there, but may not survive a loss of power: flush its directory: %w", f.path, err)
	}
	return nil
}

// flush checks the length and brings the data to the disk.
func (f *File) flush() error {
	if f.size > 0 {
		stat, err := f.f.Stat()
		if err != nil {
			return err
		}
		if stat.Size() != f.size {
			return fmt.Errorf("%d bytes were written, %d were announced", stat.Size(), f.size)
		}
	}
	return f.calls.sync(f.f)
}

// Abort gives the file up and removes the temporary file. After Commit or Abort it does nothing, so it may be deferred.
func (f *File) Abort() error {
	if f.f == nil {
		return nil
	}
	err := discard(f.f)
	f.f = nil
	if err != nil {
		return fmt.Errorf("abort %s: %w", f.path, reason(err))
	}
	return nil
}

// syncDir flushes a directory, so that a rename in it survives a loss of power.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if closed := d.Close(); err == nil {
		err = closed
	}
	return err
}
