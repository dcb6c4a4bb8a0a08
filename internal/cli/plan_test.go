package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"headwater.example/attention"
	"headwater.example/internal/accuracy"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// TestAPlanSaysItsArithmetic: once where all layers have the same, else beside each layer; nothing where a plan is older.
func TestAPlanSaysItsArithmetic(t *testing.T) {
	geometry, err := shard.NewGeometry(slices.Repeat([]shard.LayerShape{{Heads: 2, KVHeads: 1, HeadDim: 8, VDim: 8}}, 2))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := shard.MakePlan(geometry, []shard.Worker{{Name: "w1", Weight: 1}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		arithmetics []attention.Arithmetic
		head, rows  string // its words
	}{
		{nil, "v_dim 8; 2 shards on 1 worker, epoch 1 layers worker", "0-1 w1 0 0-1 2"},
		{[]attention.Arithmetic{attention.Tiles, attention.Tiles}, "v_dim 8, arithmetic tiles; 2 shards on 1 worker, epoch 1 layers worker", "0-1 w1 0 0-1 2"},
		{[]attention.Arithmetic{attention.Chain, attention.Auto}, "v_dim 8, arithmetic chain and auto; 2 shards on 1 worker, epoch 1 layers arithmetic worker", "0 chain w1 0 0-1 1"},
	} {
		text, err := plan.JSON(c.arithmetics)
		if err != nil {
			t.Fatal(err)
		}
		drawn, err := drawPlan(text)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := (&app{Streams: Streams{Out: &out, Err: &out}}).printPlan(drawn); err != nil {
			t.Fatal(err)
		}
		said := strings.Join(strings.Fields(out.String()), " ")
		if !strings.Contains(said, c.head) || !strings.Contains(said, c.rows) {
			t.Errorf("%v: it says\n%s", c.arithmetics, out.String())
		}
	}
}

// TestDifferencesNameOtherArithmetics: of results in two arithmetics, and only of these.
func TestDifferencesNameOtherArithmetics(t *testing.T) {
	result := func(name, options string) *tensor.File {
		path := filepath.Join(t.TempDir(), name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		data := []tensor.Data{{Info: tensor.Info{Name: "lse", DType: tensor.F32, Shape: []int{1}}, Bytes: make([]byte, 4)}}
		told := map[string]string{"headwater": `{"options":` + options + `,"problems":[{"prefix":"layers.0."},{"prefix":"layers.1."}]}`}
		if err := tensor.WriteSafetensors(f, data, told); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		opened, err := tensor.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = opened.Close() })
		return opened
	}
	chain, both := result("chain", `{}`), result("both", `{"problems":{"layers.1.":{"arithmetic":"tiles"}}}`)
	for _, c := range []struct {
		other *tensor.File
		says  string
	}{{both, "is of arithmetic chain, " + both.Path() + " of chain and tiles\n"}, {chain, "equal bit for bit"}} {
		var out bytes.Buffer
		differences, compared, err := accuracy.Diff(chain, c.other)
		if err != nil {
			t.Fatal(err)
		}
		if err := (&app{Streams: Streams{Out: &out, Err: &out}}).printDifferences(chain, c.other, differences, compared); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), c.says) || strings.Contains(out.String(), "arithmetic") != (c.other == both) {
			t.Errorf("it says %s", out.String())
		}
	}
}
