package tensor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// maxShards bounds the files of one index, which are all open at once.
const maxShards = 4096

// shardOpener opens one shard by its name. The closer is called once the shard's data is no longer needed.
type shardOpener func(name string) (path string, r io.ReaderAt, size int64, c io.Closer, err error)

func openIndexFile(path string, r io.ReaderAt, size int64) (*File, error) {
	if size > MaxHeaderBytes {
		return nil, broken(path, "", "index of %d bytes exceeds the limit of %d", size, MaxHeaderBytes)
	}
	text := make([]byte, size)
	if err := readFull(path, r, text, 0); err != nil {
		return nil, err
	}
	return openIndex(path, text, func(name string) (string, io.ReaderAt, int64, io.Closer, error) {
		shard := filepath.Join(filepath.Dir(path), name)
		f, size, err := openRegular(shard)
		return shard, f, size, f, err
	})
}

// openIndex opens the shards that an index names and joins their tensors. Each tensor must lie in the shard that the
// index says, and each tensor of a shard must be in the index.
func openIndex(path string, text []byte, open shardOpener) (_ *File, err error) {
	shardOf, metadata, err := parseIndex(path, text)
	if err != nil {
		return nil, err
	}
	var closers []io.Closer
	defer func() {
		if err != nil {
			for _, c := range closers {
				c.Close()
			}
		}
	}()
	size := int64(len(text))
	var tensors []stored
	for _, shard := range slices.Compact(slices.Sorted(maps.Values(shardOf))) {
		file, r, bytes, closer, err := open(shard)
		if err != nil {
			return nil, fmt.Errorf("%s: open shard: %w", printable(path), err)
		}
		closers = append(closers, closer)
		if len(closers) > maxShards {
			return nil, broken(path, "", "more than %d shards", maxShards)
		}
		f, err := OpenReaderAt(file, r, bytes)
		if err != nil {
			return nil, err
		}
		size += bytes
		for key, value := range f.metadata {
			if other, ok := metadata[key]; ok && other != value {
				return nil, broken(file, "", "metadata %s differs from that of another shard or the index", quote(key))
			}
			metadata[key] = value
		}
		for _, name := range f.names {
			if got := shardOf[name]; got == "" {
				return nil, broken(file, name, "is not in the index %s", filepath.Base(path))
			} else if got != shard {
				return nil, broken(file, name, "is in this shard, but the index %s puts it in %s", filepath.Base(path), quote(got))
			}
			tensors = append(tensors, f.tensors[name])
		}
	}
	// No shard holds a tensor that the index does not give it, so a difference in number is one that is missing.
	if len(tensors) != len(shardOf) {
		found := make(map[string]bool, len(tensors))
		for _, t := range tensors {
			found[t.info.Name] = true
		}
		for _, name := range slices.Sorted(maps.Keys(shardOf)) {
			if !found[name] {
				return nil, broken(path, name, "missing from its shard %s", quote(shardOf[name]))
			}
		}
	}
	f := newFile(path, size, metadata, tensors)
	f.closers = closers
	return f, nil
}

// parseIndex reads {"metadata": {…}, "weight_map": {"tensor": "shard", …}}. Of the metadata, which mostly holds counts,
// only strings are kept. Other fields are passed over.
func parseIndex(path string, text []byte) (shardOf, metadata map[string]string, err error) {
	r, err := newReader(text)
	if err != nil {
		return nil, nil, broken(path, "", "index: %v", err)
	}
	metadata = map[string]string{}
	err = r.object("index", func(key string) error {
		switch key {
		case "weight_map":
			shardOf, err = r.strings(key)
			return err
		case "metadata":
			return r.objectOrNull(key, func(key string) error {
				var value any
				if err := r.d.Decode(&value); err != nil {
					return err
				}
				if s, ok := value.(string); ok {
					metadata[key] = s
				}
				return nil
			})
		}
		var skipped json.RawMessage
		return r.d.Decode(&skipped)
	})
	if err == nil {
		err = r.end()
	}
	if err == nil && shardOf == nil {
		err = errors.New("has no weight_map")
	}
	if err != nil {
		return nil, nil, broken(path, "", "index: %v", err)
	}
	for name, shard := range shardOf {
		// The shards lie beside the index: a name with a directory in it would reach for other files.
		if !hasSuffix(shard, shardSuffix) || shard != filepath.Base(shard) || strings.ContainsAny(shard, `/\`+"\x00") {
			return nil, nil, broken(path, name, "shard %s is not the name of a %s file beside the index", quote(shard), shardSuffix)
		}
	}
	return shardOf, metadata, nil
}
