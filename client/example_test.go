package client_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"math"
	"os"
	"path/filepath"

	"headwater.example/client"
	"headwater.example/tensor"
)

// A model generates: each token's keys and values are appended to its layers, and its queries attend over all before.
func Example() {
	c, stop := dialCluster() // client.Dial("coordinator.example:7600")
	defer stop()
	ctx := context.Background()

	s, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer, layer}})
	if err != nil {
		log.Fatal(err)
	}
	attended, lse := make([]float32, 2), make([]float32, 2)
	for _, token := range []float32{3, 5, 10} {
		for l := range 2 {
			q, k, v := projected(token) // of what the layer before made of the token
			if err := s.Step(ctx, l, q, k, v, attended, lse); err != nil {
				log.Fatal(err)
			}
		}
		fmt.Println("token", token, "attends to", attended)
	}
	fmt.Println(s.Len(), "positions")
	if err := s.Drop(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// token 3 attends to [3 30]
	// token 5 attends to [4 40]
	// token 10 attends to [6 60]
	// 3 positions
}

// A session that begins with tokens which the cluster has seen need not project or append their whole pages again.
func ExampleClient_OpenSession() {
	c, stop := dialCluster()
	defer stop()
	ctx := context.Background()

	prompt := make([]float32, 150)
	for i := range prompt {
		prompt[i] = float32(i)
	}
	for _, question := range []float32{7, 8} {
		tokens := append(prompt[:len(prompt):len(prompt)], question)
		s, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer}, Tokens: ids(tokens...)})
		if err != nil {
			log.Fatal(err)
		}
		rest := tokens[s.Prefix():]
		q, k, v := projected(rest...)
		attended := make([]float32, len(q))
		if err := s.Do(ctx, &client.Step{Q: q, K: k, V: v, Tokens: ids(rest...), Context: attended}); err != nil {
			log.Fatal(err)
		}
		fmt.Println(s.Prefix(), "positions were there,", len(rest), "are appended")
	}
	// Output:
	// 0 positions were there, 151 are appended
	// 128 positions were there, 23 are appended
}

// Beam search: each beam is a fork of the one that it goes on from. Beams share memory until they differ, and from then on all
// but the pages in which they do.
func ExampleSession_Fork() {
	c, stop := dialCluster()
	defer stop()
	ctx := context.Background()

	step := func(s *client.Session, tokens ...float32) []float32 {
		q, k, v := projected(tokens...)
		attended := make([]float32, len(q))
		if err := s.Step(ctx, 0, q, k, v, attended, nil); err != nil {
			log.Fatal(err)
		}
		return attended[len(attended)-2:]
	}
	prompt, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("prompt:", step(prompt, 1, 2, 3))
	for _, token := range []float32{6, 14} {
		beam, err := prompt.Fork(ctx)
		if err != nil {
			log.Fatal(err)
		}
		attended := step(beam, token)
		fmt.Println("beam", token, "of", beam.Len(), "positions:", attended)
		if err := beam.Drop(ctx); err != nil { // which frees what it alone has
			log.Fatal(err)
		}
	}
	fmt.Println("the prompt has", prompt.Len(), "positions")
	// Output:
	// prompt: [2 20]
	// beam 6 of 4 positions: [3 30]
	// beam 14 of 4 positions: [5 50]
	// the prompt has 3 positions
}

// Speculative decoding: a draft of several tokens goes in one step, and what the model does not accept of it is taken back.
func ExampleSession_Truncate() {
	c, stop := dialCluster()
	defer stop()
	ctx := context.Background()

	s, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer}})
	if err != nil {
		log.Fatal(err)
	}
	draft := []float32{2, 4, 6, 100}
	q, k, v := projected(draft...)
	attended := make([]float32, len(q)) // [4 tokens, 2 heads, 1]
	if err := s.Step(ctx, 0, q, k, v, attended, nil); err != nil {
		log.Fatal(err)
	}
	fmt.Println("drafts attend to", attended)

	accepted := 3 // so says the model
	if err := s.Truncate(ctx, accepted); err != nil {
		log.Fatal(err)
	}
	q, k, v = projected(8)
	if err := s.Step(ctx, 0, q, k, v, attended[:2], nil); err != nil {
		log.Fatal(err)
	}
	fmt.Println("after", accepted, "of them, 8 attends to", attended[:2])
	// Output:
	// drafts attend to [2 20 3 30 4 40 28 280]
	// after 3 of them, 8 attends to [5 50]
}

// A tree of drafts goes in one step: the mask says which of the newest positions each query sees, its branch and no other.
func ExampleStep() {
	c, stop := dialCluster()
	defer stop()
	ctx := context.Background()

	s, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer}})
	if err != nil {
		log.Fatal(err)
	}
	_, k, v := projected(2, 4)
	if err := s.Do(ctx, &client.Step{K: k, V: v}); err != nil { // appends alone
		log.Fatal(err)
	}
	q, k, v := projected(6, 12, 8) // 6 and 12 both follow the prompt, 8 follows 6
	tree := &client.Step{Q: q, K: k, V: v, Context: make([]float32, len(q)), Mask: []bool{
		true, false, false,
		false, true, false,
		true, false, true,
	}}
	if err := s.Do(ctx, tree); err != nil {
		log.Fatal(err)
	}
	fmt.Println("branches attend to", tree.Context)
	// Output:
	// branches attend to [4 40 6 60 5 50]
}

// A server with many users has the steps of all of their sessions in flight at once. One that fails fails alone.
func ExampleDo() {
	c, stop := dialCluster()
	defer stop()
	ctx := context.Background()

	var steps []*client.Step
	for user := range 3 {
		s, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer}, Direct: true})
		if err != nil {
			log.Fatal(err)
		}
		q, k, v := projected(float32(user), 4)
		steps = append(steps, &client.Step{Session: s, Q: q, K: k, V: v, Context: make([]float32, len(q))})
	}
	if err := steps[1].Session.Drop(ctx); err != nil {
		log.Fatal(err)
	}
	if err := client.Do(ctx, steps...); err != nil {
		for user, step := range steps {
			fmt.Println("user", user, "attends to", step.Context, "done:", step.Err == nil)
		}
	}
	// Output:
	// user 0 attends to [0 0 2 20] done: true
	// user 1 attends to [0 0 0 0] done: false
	// user 2 attends to [2 20 3 30] done: true
}

// A session outlives its client: another one takes it up by its receipt, and is never shown less than the receipt says.
func ExampleClient_Attach() {
	c, stop := dialCluster()
	defer stop()
	ctx := context.Background()

	first, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer}})
	if err != nil {
		log.Fatal(err)
	}
	q, k, v := projected(1, 3)
	if err := first.Step(ctx, 0, q, k, v, make([]float32, 4), nil); err != nil {
		log.Fatal(err)
	}
	receipt := first.Receipt() // JSON keeps it as well

	other, err := client.Dial(c.Address())
	if err != nil {
		log.Fatal(err)
	}
	defer other.Close()
	s, err := other.Attach(ctx, receipt.Session, client.AttachOptions{Receipt: &receipt})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("taken up at", s.Len())

	// Who drove it before is told so.
	q, k, v = projected(5)
	err = first.Step(ctx, 0, q, k, v, make([]float32, 2), nil)
	fmt.Println("taken over:", errors.Is(err, client.ErrTakenOver))
	// Output:
	// taken up at 2
	// taken over: true
}

// A session is written to a file on one cluster, and goes on from there on another: with the same bits, whatever number of
// workers it has there.
func ExampleClient_RestoreSession() {
	c, stop := dialCluster()
	defer stop()
	other, stopOther := dialCluster()
	defer stopOther()
	ctx := context.Background()

	s, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer}, Name: "story"})
	if err != nil {
		log.Fatal(err)
	}
	_, k, v := projected(3, 5)
	if err := s.Do(ctx, &client.Step{K: k, V: v}); err != nil {
		log.Fatal(err)
	}
	var file bytes.Buffer
	if err := s.Snapshot(ctx, &file, nil); err != nil {
		log.Fatal(err)
	}

	back, err := other.RestoreSession(ctx, &file, client.RestoreOptions{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(back.Len(), "positions are there")
	q, k, v := projected(10)
	attended := make([]float32, 2)
	if err := back.Step(ctx, 0, q, k, v, attended, nil); err != nil {
		log.Fatal(err)
	}
	fmt.Println("the next token attends to", attended)
	// Output:
	// 2 positions are there
	// the next token attends to [6 60]
}

// A job is attention over whole tensors: a file goes in, a file comes out.
func ExampleClient_Submit() {
	c, stop := dialCluster()
	defer stop()
	ctx := context.Background()
	folder, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(folder)

	path := filepath.Join(folder, "job.safetensors")
	q, k, v := projected(1, 3, 8)
	if err := writeJob(path, q, k, v); err != nil { // as any tool writes safetensors
		log.Fatal(err)
	}
	job, err := c.Submit(ctx, client.SubmitOptions{Path: path})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := c.Wait(ctx, job.ID, nil); err != nil { // also over the coordinator's restart
		log.Fatal(err)
	}
	out := filepath.Join(folder, "context.safetensors")
	if _, err := c.Download(ctx, job.ID, out, nil); err != nil {
		log.Fatal(err)
	}
	result, err := tensor.Open(out)
	if err != nil {
		log.Fatal(err)
	}
	defer result.Close()
	info, _ := result.Lookup("context")
	data := make([]byte, info.Bytes())
	if err := result.ReadAt(data, "context", 0); err != nil {
		log.Fatal(err)
	}
	attended := make([]float32, info.Elements())
	if err := tensor.Widen(attended, data, info.DType); err != nil {
		log.Fatal(err)
	}
	fmt.Println("context", info.Shape, attended)
	// Output:
	// context [3 2 1] [1 10 2 20 4 40]
}

// writeJob writes a job of causal attention over tokens of two heads of one element.
func writeJob(path string, q, k, v []float32) error {
	data := func(name string, x []float32) tensor.Data {
		var b []byte
		for _, f := range x {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
		}
		return tensor.Data{Info: tensor.Info{Name: name, DType: tensor.F32, Shape: []int{len(x) / 2, 2, 1}}, Bytes: b}
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = tensor.WriteSafetensors(f, []tensor.Data{data("q", q), data("k", k), data("v", v)}, map[string]string{"headwater": `{"causal":true}`})
	return errors.Join(err, f.Close())
}
