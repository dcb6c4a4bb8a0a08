package client

import (
	"fmt"
	"io"
	"sort"

	"headwater.example/tensor"
)

// assembly presents the tensors of open files of any format as one safetensors file. It builds pieces as they are read, so
// neither memory nor disk holds a copy.
type assembly struct {
	path   string // of the first file, for errors
	header []byte
	parts  []part // by offset
	end    int64
}

// part is the place of one tensor's bytes.
type part struct {
	file        *tensor.File
	name        string
	offset, end int64
}

// assemble makes one of a file, which has the metadata, and of more tensors from another, or nil.
func assemble(file, more *tensor.File) (*assembly, error) {
	var infos []tensor.Info
	var parts []part
	for _, f := range []*tensor.File{file, more} {
		if f == nil {
			continue
		}
		for _, name := range f.Names() {
			if _, both := file.Lookup(name); both && f == more {
				return nil, &tensor.FormatError{File: f.Path(), Tensor: name, Index: -1, Rule: "is in " + file.Path() + " as well"}
			}
			info, _ := f.Lookup(name)
			infos, parts = append(infos, info), append(parts, part{file: f, name: name})
		}
	}
	reserve, err := tensor.MetadataBytes(file.Metadata())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file.Path(), err)
	}
	layout, err := tensor.NewLayout(infos, reserve)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file.Path(), err)
	}
	header, err := layout.Header(file.Metadata())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file.Path(), err)
	}
	a := &assembly{path: file.Path(), header: header, parts: parts, end: layout.Size()}
	for i, info := range infos {
		offset, _ := layout.Offset(info.Name)
		a.parts[i].offset, a.parts[i].end = offset, offset+info.Bytes()
	}
	sort.Slice(a.parts, func(i, j int) bool { return a.parts[i].offset < a.parts[j].offset })
	return a, nil
}

func (a *assembly) size() int64 { return a.end }

// ReadAt implements io.ReaderAt.
func (a *assembly) ReadAt(p []byte, at int64) (int, error) {
	if at < 0 {
		return 0, fmt.Errorf("read %s at %d: negative offset", a.path, at)
	}
	done := 0
	if at < int64(len(a.header)) {
		done = copy(p, a.header[at:])
	}
	i := sort.Search(len(a.parts), func(i int) bool { return a.parts[i].end > at+int64(done) })
	for ; done < len(p) && at+int64(done) < a.end; i++ {
		here := at + int64(done)
		// Padding lies before a part, and after the last one.
		start, end := a.end, a.end
		if i < len(a.parts) {
			start, end = a.parts[i].offset, a.parts[i].end
		}
		if gap := min(start-here, int64(len(p)-done)); gap > 0 {
			clear(p[done : done+int(gap)])
			done += int(gap)
			here += gap
		}
		if n := min(end-here, int64(len(p)-done)); n > 0 {
			if err := a.parts[i].file.ReadAt(p[done:done+int(n)], a.parts[i].name, here-start); err != nil {
				return done, err
			}
			done += int(n)
		}
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}
