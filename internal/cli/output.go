package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"headwater.example/internal/atomicfile"
)

// stdio is the name of the standard streams where a file is asked for.
const stdio = "-"

// output is where a command writes a file that it was told the name of: a file, which appears under its name complete or not
// at all; or a stream, which is written to as it is and never replaced: the standard output, a device, a pipe.
type output struct {
	flag   string // what named it, for errors
	path   string
	stream io.Writer // nil for a file
	close  func() error
}

// descriptor matches the names of this process's own open files.
var descriptor = regexp.MustCompile(`^/(?:dev/fd|proc/(?:self|thread-self|[0-9]+)/fd)/([0-9]+)$`)

// openOutput finds out what path is and whether it can be written, before work is done for it. inputs are files that it must
// not be.
func (a *app) openOutput(flag, path string, inputs ...string) (*output, error) {
	o := &output{flag: flag, path: path, close: func() error { return nil }}
	for _, input := range inputs {
		if samePath(path, input) {
			return nil, usage("%s: %s is the input file, which would be overwritten", flag, path)
		}
	}
	switch streamOf(path) {
	case "1":
		if terminal(a.Out) {
			return nil, usage("%s: the output is not text for a terminal: name a file, or a pipe", flag)
		}
		o.stream = a.Out
		return o, nil
	case "2":
		o.stream = a.Err
		return o, nil
	case "":
	default:
		return o, o.openStream()
	}
	switch stat, err := os.Stat(path); {
	case err == nil && stat.IsDir():
		return nil, fmt.Errorf("%s: %s is a folder", flag, path)
	case err == nil && !stat.Mode().IsRegular():
		return o, o.openStream()
	}
	file, err := atomicfile.Create(path, 0)
	if err != nil {
		return nil, err
	}
	return o, file.Abort()
}

func (o *output) openStream() error {
	file, err := os.OpenFile(o.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	o.stream, o.close = file, file.Close
	return nil
}

// standard says whether it is the standard output.
func (o *output) standard(a *app) bool { return o != nil && o.stream != nil && o.stream == a.Out }

// write writes a file by do, whole or not at all; a stream gets what do writes.
func (o *output) write(do func(io.Writer) error) error {
	if o.stream != nil {
		return errors.Join(do(o.stream), o.close())
	}
	file, err := atomicfile.Create(o.path, 0)
	if err != nil {
		return err
	}
	if err := do(file); err != nil {
		return errors.Join(err, file.Abort())
	}
	return file.Commit()
}

// streamOf is the number of the open file that a path means, over links as /dev/stdout is one; "" if it means none.
func streamOf(path string) string {
	if path == stdio {
		return "1"
	}
	for range 40 {
		if m := descriptor.FindStringSubmatch(filepath.Clean(path)); m != nil {
			return m[1]
		}
		to, err := os.Readlink(path)
		if err != nil {
			return ""
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return ""
}

// samePath says whether two paths lead to one file, even if the file is missing.
func samePath(a, b string) bool {
	first, err := os.Stat(a)
	second, err2 := os.Stat(b)
	if err == nil && err2 == nil {
		return os.SameFile(first, second)
	}
	if !errors.Is(err, fs.ErrNotExist) || !errors.Is(err2, fs.ErrNotExist) {
		return false
	}
	a, err = filepath.Abs(a)
	b, err2 = filepath.Abs(b)
	return err == nil && err2 == nil && a == b
}
