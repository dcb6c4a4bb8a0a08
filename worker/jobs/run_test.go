package jobs

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/workertest"
)

// drawJob draws a small problem of any shape and options.
func drawJob(t *rapid.T) *job {
	size, groups := rapid.IntRange(1, 4).Draw(t, "group size"), rapid.IntRange(1, 4).Draw(t, "n_kv_heads")
	heads := size * groups
	p := &headwaterv1.Problem{
		NHeads: uint32(heads), NKvHeads: uint32(groups),
		HeadDim: rapid.Uint32Range(1, 24).Draw(t, "head_dim"), VDim: rapid.Uint32Range(1, 24).Draw(t, "v_dim"),
		Tokens: rapid.Uint64Range(1, 9).Draw(t, "tokens"), KvLen: rapid.Uint64Range(0, 150).Draw(t, "kv_len"),
		Storage: headwaterv1.StorageType(rapid.Int32Range(1, 4).Draw(t, "storage")),
		Causal:  rapid.Bool().Draw(t, "causal"),
		Scale:   0.25,
		Offset:  rapid.Int64Range(-5, 160).Draw(t, "offset"),
	}
	p.WindowLeft, p.WindowRight = rapid.Int64Range(-1, 70).Draw(t, "left"), rapid.Int64Range(-1, 70).Draw(t, "right")
	if rapid.Bool().Draw(t, "softcap") {
		p.Softcap = 5
	}
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	if rapid.Bool().Draw(t, "alibi") {
		p.AlibiSlopes = workertest.Normals(rng, heads)
	}
	if rapid.Bool().Draw(t, "sinks") {
		p.Sinks = workertest.Normals(rng, heads)
	}
	operand := rapid.SampledFrom([]int{0, 1, heads})
	return newJob(t, rng, p, operand.Draw(t, "mask heads"), operand.Draw(t, "bias heads"))
}

// TestContextsDoNotDependOnTheShare runs jobs on workers of any threads, in any blocks, with any share of the groups.
func TestContextsDoNotDependOnTheShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		j := drawJob(t)
		var groups []uint32
		for g := range j.problem.NKvHeads {
			groups = append(groups, g)
		}
		groups = rapid.Permutation(groups).Draw(t, "order")
		for len(groups) > 0 {
			n := rapid.IntRange(1, len(groups)).Draw(t, "share")
			share := groups[:n]
			groups = groups[n:]
			w := newPlace(t, 64<<20, rapid.IntRange(1, 3).Draw(t, "threads"))
			messages := []*headwaterv1.RunRequest{open(&headwaterv1.Open{JobId: "j", Codec: headwaterv1.ContextCodec_CONTEXT_CODEC_EXACT, Problems: []*headwaterv1.Problem{j.problem}})}
			messages = append(messages, j.load(t, 0, share, rapid.IntRange(1, 100).Draw(t, "positions"))...)
			step, piece := rapid.IntRange(1, int(j.problem.Tokens)).Draw(t, "tokens of a block"), rapid.IntRange(1, 500).Draw(t, "piece")
			blocks := 0
			for from := 0; from < int(j.problem.Tokens); from += step {
				messages = append(messages, j.query(0, uint32(blocks), share, from, min(from+step, int(j.problem.Tokens)), piece)...)
				blocks++
			}
			answers, err := play(t, w, false, messages...)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			for _, a := range answers {
				switch {
				case a.GetShardOpened() != nil && a.GetShardOpened().ReservedBytes > 0:
				case a.GetShardSealed() != nil && a.GetShardSealed().Receipt.Hash == j.receipt(t, int(a.GetShardSealed().Group)).Hash:
				case a.GetContext() != nil && a.GetContext().Epoch == 7:
					c := a.GetContext()
					seen[fmt.Sprint(c.Group, c.Block)] = true
					j.check(t, c, int(c.Block)*step, min((int(c.Block)+1)*step, int(j.problem.Tokens)))
				default:
					t.Fatalf("an answer that nothing asked for: %v", a)
				}
			}
			if len(answers) != 2*len(share)+len(seen) || len(seen) != blocks*len(share) {
				t.Fatalf("%d answers, %d of them different contexts, for %d groups and %d blocks", len(answers), len(seen), len(share), blocks)
			}
		}
	})
}
