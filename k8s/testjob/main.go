// Command testjob writes an attention job of seeded numbers, the same for the same flags, that is small to send and long
// to compute: something can happen to the cluster in the meantime.
package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"

	"headwater.example/internal/atomicfile"
	"headwater.example/tensor"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "testjob:", err)
		os.Exit(1)
	}
}

func run() error {
	out := flag.String("out", "", "job file to write")
	tokens := flag.Int("tokens", 2048, "query tokens")
	positions := flag.Int("positions", 8192, "positions of keys and values")
	heads := flag.Int("heads", 8, "query heads")
	groups := flag.Int("groups", 4, "key/value heads")
	dim := flag.Int("dim", 64, "head_dim and v_dim")
	seed := flag.Uint64("seed", 1, "seed of the numbers")
	flag.Parse()
	if *out == "" || flag.NArg() != 0 {
		return errors.New("want -out FILE")
	}
	random := rand.New(rand.NewPCG(*seed, 0))
	normal := func(name string, rows, heads int) tensor.Data {
		d := tensor.Data{Info: tensor.Info{Name: name, DType: tensor.F32, Shape: []int{rows, heads, *dim}}}
		for range rows * heads * *dim {
			d.Bytes = binary.LittleEndian.AppendUint32(d.Bytes, math.Float32bits(float32(random.NormFloat64())))
		}
		return d
	}
	// In the order of names, as the file has them.
	job := []tensor.Data{normal("k", *positions, *groups), normal("q", *tokens, *heads), normal("v", *positions, *groups)}
	f, err := atomicfile.Create(*out, 0)
	if err != nil {
		return err
	}
	defer f.Abort()
	if err := tensor.WriteSafetensors(f, job, map[string]string{"headwater": `{"kind":"attention"}`}); err != nil {
		return fmt.Errorf("writing %s: %w", *out, err)
	}
	return f.Commit()
}
