package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"headwater.example/internal/contextframe"
	"headwater.example/tensor"
)

// frameRows is how many rows, a token of a head each, one frame carries.
const frameRows = 64

// ContextBlocks reads the contexts of a result file with their LSE, cut as workers cut them: by KV group, in frames of 64
// rows. Rows that do not fill a frame are left out, unless they are all of their group's.
func ContextBlocks(path string) (blocks []contextframe.Block, err error) {
	file, err := tensor.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	kvHeads, err := groupsOf(file)
	if err != nil {
		return nil, err
	}
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
		tokens, heads, dim := info.Shape[0], info.Shape[1], info.Shape[2]
		groups := kvHeads[prefix]
		if groups < 1 || heads%groups != 0 || len(lse) != tokens*heads {
			return nil, fmt.Errorf("%s: %s [%d, %d, %d] fits neither its %d groups nor its %d LSEs", path, name, tokens, heads, dim, groups, len(lse))
		}
		size := heads / groups
		rows := tokens * size
		for first := 0; first < heads; first += size {
			group := contextframe.Block{Tokens: rows, Heads: 1, VDim: dim}
			for t := range tokens {
				at := t*heads + first
				group.Context = append(group.Context, context[at*dim:(at+size)*dim]...)
				group.LSE = append(group.LSE, lse[at:at+size]...)
			}
			n := min(rows, frameRows)
			for at := 0; at+n <= rows; at += n {
				blocks = append(blocks, contextframe.Block{
					Tokens: n, Heads: 1, VDim: dim, Context: group.Context[at*dim:][:n*dim], LSE: group.LSE[at:][:n],
				})
			}
		}
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("%s holds no context [tokens, n_heads, v_dim] in f32: it is no result", path)
	}
	return blocks, nil
}

// groupsOf returns the number of KV heads of a result's problems, by prefix.
func groupsOf(file *tensor.File) (map[string]int, error) {
	type layer struct {
		Prefix  string `json:"prefix"`
		KVHeads int    `json:"n_kv_heads"`
	}
	var result struct {
		Problems []layer                  `json:"problems"`
		Plan     struct{ Layers []layer } `json:"plan"` // of results of older versions, in the problems' order
	}
	if err := json.Unmarshal([]byte(file.Metadata()["headwater"]), &result); err != nil {
		return nil, fmt.Errorf("%s is no result: metadata headwater: %w", file.Path(), err)
	}
	groups := map[string]int{}
	for _, p := range result.Problems {
		groups[p.Prefix] = p.KVHeads
	}
	for _, name := range file.Names() {
		prefix, ok := strings.CutSuffix(name, "context")
		if ok && len(result.Problems) == 0 && len(result.Plan.Layers) > 0 {
			groups[prefix], result.Plan.Layers = result.Plan.Layers[0].KVHeads, result.Plan.Layers[1:]
		}
	}
	return groups, nil
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
