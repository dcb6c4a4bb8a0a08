// Package jump builds a program whose wall clock a test can let jump. The program's own source has nothing of it: it is compiled with
// another time.Now of the standard library (go build -overlay), which adds what a page of memory says that the test shares with each
// process. Only what the wall clock shows jumps; the monotonic clock, and so timers and the time between two looks at the clock, go on.
package jump

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Clocks are the wall clocks of the processes of one program.
type Clocks struct {
	folder  string // has a file for each process, by its id, and one for those that begin
	Program string // the path of the program that was built
}

// Variable is the environment variable by which a process of the program finds its clock.
const Variable = "JUMPING_CLOCKS"

const (
	before = "\tsec, nsec, mono := runtimeNow()\n"
	after  = before + "\tsec += jumped()\n"
	// begin is the file that says how far clocks of new processes are off.
	begin = "begin"
)

// source is the file that package time gets.
const source = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var jumping = openJump()

func jumped() int64 {
	if jumping == nil {
		return 0
	}
	return atomic.LoadInt64(jumping)
}

func openJump() *int64 {
	folder, ok := syscall.Getenv("` + Variable + `")
	if !ok {
		return nil
	}
	begin := make([]byte, 8)
	if fd, err := syscall.Open(folder+"/` + begin + `", syscall.O_RDONLY|syscall.O_CLOEXEC, 0); err == nil {
		syscall.Read(fd, begin)
		syscall.Close(fd)
	}
	id := ""
	for n := syscall.Getpid(); n > 0; n /= 10 {
		id = string(rune('0'+n%10)) + id
	}
	fd, err := syscall.Open(folder+"/"+id, syscall.O_RDWR|syscall.O_CREAT|syscall.O_TRUNC|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil
	}
	defer syscall.Close(fd)
	syscall.Write(fd, begin)
	page, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil
	}
	return (*int64)(unsafe.Pointer(&page[0]))
}
`

// Build builds a main package in a folder, without cgo. Processes that begin with Variable in their environment have clocks that jump.
func Build(ctx context.Context, folder, pkg string) (*Clocks, error) {
	c := &Clocks{folder: filepath.Join(folder, "clocks"), Program: filepath.Join(folder, filepath.Base(pkg))}
	if err := os.MkdirAll(c.folder, 0o700); err != nil {
		return nil, err
	}
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("where the standard library is: %w", err)
	}
	std := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	text, err := os.ReadFile(filepath.Join(std, "time.go"))
	if err != nil {
		return nil, err
	}
	if bytes.Count(text, []byte(before)) != 1 {
		return nil, errors.New("time.Now of this version of Go is not known")
	}
	replace := map[string]string{}
	for name, text := range map[string][]byte{"time.go": bytes.Replace(text, []byte(before), []byte(after), 1), "jump.go": []byte(source)} {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return nil, err
		}
		replace[filepath.Join(std, name)] = path
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(folder, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-overlay", file, "-o", c.Program, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s with a clock that jumps: %w\n%s", pkg, err, out)
	}
	return c, os.Setenv(Variable, c.folder)
}

// Set sets how far the wall clock of a process is off, in whole seconds.
func (c *Clocks) Set(process int, off time.Duration) error {
	return c.set(strconv.Itoa(process), off)
}

// SetNew sets it for processes that begin from now on.
func (c *Clocks) SetNew(off time.Duration) error { return c.set(begin, off) }

// furthest is how far Somewhere lets a clock be off.
const furthest = time.Hour

// Somewhere is a time by which a clock is off that jumps at random: an hour at most, in either direction.
func Somewhere(random *rand.Rand) time.Duration {
	return time.Duration(random.Int64N(int64(2*furthest))) - furthest
}

func (c *Clocks) set(name string, off time.Duration) error {
	f, err := os.OpenFile(filepath.Join(c.folder, name), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(off/time.Second)), 0)
	return errors.Join(err, f.Close())
}
