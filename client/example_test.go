package client_test

import (
	"context"
	"fmt"

	"headwater/client"
	"headwater/tensor"
)

// A model of two layers generates: each token's keys and values are appended, and its queries attend over all before.
func ExampleClient_OpenSession() {
	ctx := context.Background()
	c, err := client.Dial("localhost:7600")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	layer := client.Layer{Heads: 32, KVHeads: 8, HeadDim: 128, Storage: tensor.BF16}
	s, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer, layer}, Direct: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	q, k, v := make([]float32, 32*128), make([]float32, 8*128), make([]float32, 8*128)
	attended, lse := make([]float32, 32*128), make([]float32, 32)
	for range 10 {
		for l := range 2 {
			// The model would project q, k and v of this token for layer l here.
			if err := s.Step(ctx, l, q, k, v, attended, lse); err != nil {
				fmt.Println(err)
				return
			}
		}
	}
	// Another continuation from here shares the memory of this one.
	other, err := s.Fork(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	// A draft that was not accepted is taken back.
	if err := other.Truncate(ctx, 8); err != nil {
		fmt.Println(err)
	}
}
