// Command session opens a session on a cluster, appends a prompt and a token, forks it, and says whether the fork's context has
// the same bits.
//
//	coord local --workers 2
//	go run ./session 127.0.0.1:7600
package main

import (
	"context"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"slices"

	"headwater.example/client"
)

const heads, groups, dim = 8, 2, 64

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: session COORDINATOR")
	}
	if err := run(context.Background(), os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, address string) error {
	c, err := client.Dial(address)
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.OpenSession(ctx, client.SessionOptions{
		Layers: []client.Layer{{Heads: heads, KVHeads: groups, HeadDim: dim}},
	})
	if err != nil {
		return err
	}
	defer s.Close() // drops it

	// A prompt of 100 tokens: keys and values are appended, and only the last one asks.
	prompt := make([]float32, heads*dim)
	if err := s.Step(ctx, 0, numbers(heads*dim), numbers(100*groups*dim), numbers(100*groups*dim), prompt, nil); err != nil {
		return err
	}
	fork, err := s.Fork(ctx)
	if err != nil {
		return err
	}
	defer fork.Close()

	// The same token in both: the same context, to the bit.
	q, k, v := numbers(heads*dim), numbers(groups*dim), numbers(groups*dim)
	one, other := make([]float32, heads*dim), make([]float32, heads*dim)
	if err := s.Step(ctx, 0, q, k, v, one, nil); err != nil {
		return err
	}
	if err := fork.Step(ctx, 0, q, k, v, other, nil); err != nil {
		return err
	}
	fmt.Printf("%d positions, the fork's context is equal: %v\n", s.Len(), slices.Equal(one, other))
	return nil
}

func numbers(n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = rand.Float32() - 0.5
	}
	return x
}
