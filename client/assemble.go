package client

import (
	"fmt"
	"io"
	"sort"

	"headwater.example/tensor"
)

// assembly presents an open file of any format as a safetensors file. It builds pieces as they are read, so neither
// memory nor disk holds a copy.
type assembly struct {
	file   *tensor.File
	header []byte
	parts  []part // by offset
	end    int64
}

// part is the place of one tensor's bytes.
type part struct {
	name        string
	offset, end int64
}

func assemble(file *tensor.File) (*assembly, error) {
	var infos []tensor.Info
	for _, name := range file.Names() {
		info, _ := file.Lookup(name)
		infos = append(infos, info)
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
	a := &assembly{file: file, header: header, end: layout.Size()}
	for _, info := range infos {
		offset, _ := layout.Offset(info.Name)
		a.parts = append(a.parts, part{name: info.Name, offset: offset, end: offset + info.Bytes()})
	}
	sort.Slice(a.parts, func(i, j int) bool { return a.parts[i].offset < a.parts[j].offset })
	return a, nil
}

func (a *assembly) size() int64 { return a.end }

// ReadAt implements io.ReaderAt.
func (a *assembly) ReadAt(p []byte, at int64) (int, error) {
	if at < 0 {
		return 0, fmt.Errorf("read %s at %d: negative offset", a.file.Path(), at)
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
			if err := a.file.ReadAt(p[done:done+int(n)], a.parts[i].name, here-start); err != nil {
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
