package explore

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/internal/kvcache"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// A session's content is a string of tokens, each of which says who appended it: "A1A2B1". Keys, values and queries follow from
// a token's name, so contexts and hashes follow from a content.

const (
	tokenLen = 2
	heads    = 2
	groups   = 2
	headDim  = 8
)

var layer = client.Layer{Heads: heads, KVHeads: groups, HeadDim: headDim}

// spec is the layer as workers know it.
var spec = func() shard.LayerSpec {
	o := attention.DefaultOptions(headDim)
	o.Causal = true
	l, err := shard.NewLayerSpec(shard.LayerShape{Heads: heads, KVHeads: groups, HeadDim: headDim, VDim: headDim}, tensor.F32, o)
	if err != nil {
		panic(err)
	}
	return l
}()

var errWrong = errors.New("wrong bits")

// rows are a token's keys, values or queries [heads, headDim].
func rows(token string, of byte) []float32 {
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, token, of)
	rng := rand.New(rand.NewPCG(h.Sum64(), 1))
	x := make([]float32, heads*headDim)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

// bytesOf are the rows of one group of all tokens of a content, as they are stored.
func bytesOf(content string, of byte, group int) []byte {
	var b []byte
	for at := 0; at < len(content); at += tokenLen {
		one := make([]byte, 4*headDim)
		_ = tensor.Narrow(one, rows(content[at:at+tokenLen], of)[group*headDim:][:headDim], tensor.F32) // lengths match
		b = append(b, one...)
	}
	return b
}

func newOutput() attention.Output {
	return attention.Output{Context: make([]float32, heads*headDim), LSE: make([]float32, heads)}
}

var (
	memory   sync.Mutex
	contexts = map[string]attention.Output{}
	hashed   = map[string][groups]uint64{}
)

// attended is what the newest token's query sees of a content: over fresh pages, by one call for each group.
func attended(content string) attention.Output {
	memory.Lock()
	defer memory.Unlock()
	if out, ok := contexts[content]; ok {
		return out
	}
	out := newOutput()
	n := len(content) / tokenLen
	for g := range groups {
		page := make([]byte, spec.Layout.PageBytes())
		if err := spec.Layout.Write(page, 0, n, attention.Rows{K: bytesOf(content, 'k', g), V: bytesOf(content, 'v', g)}); err != nil {
			panic(err)
		}
		kv := attention.KV{Layout: spec.Layout, Len: n, Pages: [][]byte{page}}
		query := attention.Query{Q: rows(content[len(content)-tokenLen:], 'q')[g*headDim:][:headDim], Tokens: 1, Heads: 1, FirstHead: g, Offset: int64(n - 1)}
		part := attention.Output{Context: out.Context[g*headDim:][:headDim], LSE: out.LSE[g:][:1]}
		if err := attention.Attend(context.Background(), 1, kv, query, spec.Options, part); err != nil {
			panic(err)
		}
	}
	contexts[content] = out
	return out
}

// hashesOf are the hashes of a content, by group.
func hashesOf(content string) [groups]uint64 {
	memory.Lock()
	defer memory.Unlock()
	if h, ok := hashed[content]; ok {
		return h
	}
	var all [groups]uint64
	for g := range groups {
		if content == "" {
			break
		}
		var h kvcache.Hasher
		if err := h.Update(attention.Rows{K: bytesOf(content, 'k', g), V: bytesOf(content, 'v', g)}, len(content)/tokenLen, spec.Layout); err != nil {
			panic(err)
		}
		all[g] = h.Receipt().Hash
	}
	hashed[content] = all
	return all
}

// contentOf finds a receipt's content among those that somebody has tried to make.
func contentOf(r client.Receipt, known []string) (string, error) {
	for _, content := range known {
		if h := hashesOf(content); r.Layers[0].Length == uint64(len(content)/tokenLen) && slices.Equal(h[:], r.Layers[0].Hashes) {
			return content, nil
		}
	}
	return "", fmt.Errorf("%w: a session of %d positions with hashes %x is none that was made", errWrong, r.Layers[0].Length, r.Layers[0].Hashes)
}
