package localcluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// folderPrefix begins the names of the temporary folders, and lockName is the file that the process of one keeps locked
// while it lives.
const (
	folderPrefix = "headwater-local-"
	lockName     = ".lock"
)

// folder is a temporary data folder.
type folder struct {
	path string
	lock *os.File
}

// newFolder makes a folder, and removes those of processes that were killed.
func newFolder() (*folder, error) {
	sweep(os.TempDir())
	path, err := os.MkdirTemp("", folderPrefix)
	if err != nil {
		return nil, err
	}
	lock, err := lockIn(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the temporary folder: %w", err), os.RemoveAll(path))
	}
	return &folder{path, lock}, nil
}

// lockIn takes the lock of a folder. No child has it: the file is closed in them.
func lockIn(path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// remove removes the folder.
func (f *folder) remove() error { return errors.Join(os.RemoveAll(f.path), f.lock.Close()) }

// sweep removes the folders whose process has ended without removing them.
func sweep(temporary string) {
	paths, _ := filepath.Glob(filepath.Join(temporary, folderPrefix+"*")) // the pattern is right
	for _, path := range paths {
		if _, err := os.Stat(filepath.Join(path, lockName)); err != nil {
			continue // it is being made just now, or it is none of these
		}
		if lock, err := lockIn(path); err == nil {
			_ = (&folder{path, lock}).remove() // the next start tries again
		}
	}
}

// clusters are those of this process that run, for Abandon.
var clusters struct {
	sync.Mutex
	running map[*Cluster]bool
}

func (c *Cluster) register() {
	clusters.Lock()
	defer clusters.Unlock()
	if clusters.running == nil {
		clusters.running = map[*Cluster]bool{}
	}
	clusters.running[c] = true
}

func (c *Cluster) unregister() {
	clusters.Lock()
	defer clusters.Unlock()
	delete(clusters.running, c)
}

// abandonTimeout bounds how long Abandon waits for a process that it killed.
const abandonTimeout = 2 * time.Second

// Abandon ends all clusters of this process as kill -9 does, and removes their folders. It is for a process that ends in
// the next moment; nothing else may be called after it.
func Abandon() {
	clusters.Lock()
	defer clusters.Unlock()
	for c := range clusters.running {
		c.started.Lock()
		processes := append([]*process(nil), c.all...)
		c.started.Unlock()
		for _, p := range processes {
			_ = p.cmd.Process.Kill() // the only error is that it has ended
		}
		for _, p := range processes {
			select {
			case <-p.done:
			case <-time.After(abandonTimeout):
			}
		}
		if c.temporary != nil {
			_ = c.temporary.remove() // the next start tries again
		}
	}
}
