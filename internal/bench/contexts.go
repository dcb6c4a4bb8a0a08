package bench

import (
	"errors"
	"fmt"
	"strings"

	"headwater/tensor"
	"headwater/wire"
)

// frameRows is about how many rows, a token of a head each, one frame carries.
const frameRows = 64

// ContextBlocks reads the contexts of a result file with their LSE, in frames of a few rows.
func ContextBlocks(path string) (blocks []wire.Block, err error) {
	file, err := tensor.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for _, name := range file.Names() {
		prefix, ok := strings.CutSuffix(name, "context")
		info, _ := file.Lookup(name)
		if !ok || len(info.Shape) != 3 || info.DType != tensor.F32 {
			continue
		}
		context, err := floatsOf(file, name)
		if err != nil {
			return nil, err
		}
		lse, err := floatsOf(file, prefix+"lse")
		if err != nil {
			return nil, err
		}
		all, heads, dim := info.Shape[0], info.Shape[1], info.Shape[2]
		if len(lse) != all*heads {
			return nil, fmt.Errorf("%s: %slse has %d elements, %d rows of context need as many", path, prefix, len(lse), all*heads)
		}
		tokens := max(frameRows/heads, 1)
		for at := 0; at < all; at += tokens {
			n := min(tokens, all-at)
			blocks = append(blocks, wire.Block{
				Tokens: n, Heads: heads, VDim: dim, Context: context[at*heads*dim:][:n*heads*dim], LSE: lse[at*heads:][:n*heads],
			})
		}
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("%s holds no context [tokens, n_heads, v_dim] in f32: it is no result", path)
	}
	return blocks, nil
}

// floatsOf reads a tensor of float32.
func floatsOf(file *tensor.File, name string) ([]float32, error) {
	info, ok := file.Lookup(name)
	if !ok || info.DType != tensor.F32 {
		return nil, fmt.Errorf("%s has no tensor %s in f32", file.Path(), name)
	}
	data := make([]byte, info.Bytes())
	if err := file.ReadAt(data, name, 0); err != nil {
		return nil, err
	}
	values := make([]float32, info.Elements())
	return values, tensor.Widen(values, data, tensor.F32)
}
