package client_test

import (
	"context"
	"errors"
	"log"
	"net"
	"os"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/worker"
)

// dialCluster is what client.Dial("coordinator.example:7600") is outside of examples: it starts a coordinator and two workers
// in this process, and returns a client of them and what ends all.
func dialCluster() (c *client.Client, stop func()) {
	var stops []func()
	stop = func() {
		for i := len(stops) - 1; i >= 0; i-- {
			stops[i]()
		}
	}
	serve := func(register func(grpc.ServiceRegistrar)) string {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			log.Fatal(err)
		}
		server := grpc.NewServer(rpc.ServerOptions()...)
		register(server)
		done := make(chan struct{})
		go func() { defer close(done); _ = server.Serve(listener) }() // ends with Stop
		stops = append(stops, func() { server.Stop(); <-done })
		return listener.Addr().String()
	}
	var members []membership.Member
	for _, name := range []string{"w1", "w2"} {
		w, err := worker.New(worker.Config{Name: name, Boot: uuid.New(), Weight: 1, Budget: 64 << 20, Threads: 1})
		if err != nil {
			log.Fatal(err)
		}
		stops = append(stops, w.Close)
		members = append(members, membership.Member{Name: name, Role: membership.RoleWorker, Address: serve(w.Register), Weight: 1})
	}
	folder, err := os.MkdirTemp("", "headwater-example-")
	if err != nil {
		log.Fatal(err)
	}
	stops = append(stops, func() { _ = os.RemoveAll(folder) }) // a temporary folder
	co, err := coordinator.Open(coordinator.Config{Name: "coord", DataDir: folder, View: membership.Static(members)})
	if err != nil {
		log.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- co.Run(ctx) }()
	stops = append(stops, func() {
		end()
		if err := errors.Join(<-ran, co.Close()); err != nil {
			log.Fatal(err)
		}
	})
	if c, err = client.Dial(serve(co.Register)); err != nil {
		log.Fatal(err)
	}
	stops = append(stops, func() { _ = c.Close() })
	return c, stop
}

// layer is that of the examples' model: two query heads, each with its own keys and values, of one element.
var layer = client.Layer{Heads: 2, KVHeads: 2, HeadDim: 1}

// projected stands for the model's projections of some tokens, which are numbers here. All queries are 0 and see every position
// alike, so that a context is the mean of the values so far: of the tokens in the first head, of ten times them in the second.
func projected(tokens ...float32) (q, k, v []float32) {
	for _, token := range tokens {
		q, k, v = append(q, 0, 0), append(k, token, token), append(v, token, 10*token)
	}
	return q, k, v
}

// ids are the tokens' ids in the model's vocabulary.
func ids(tokens ...float32) []uint32 {
	all := make([]uint32, len(tokens))
	for i, token := range tokens {
		all[i] = uint32(token)
	}
	return all
}
