// Package soak loads a worker with ordinary clients, with some that fill it, and with some that never read, and says what became
// of its memory.
//
// The way of a soak: Run starts a coordinator and a worker, in a memory group of its own where the machine permits one. Ordinary
// clients open a session, append a prompt, ask for tokens and drop it, over and over, half of them directly. Filling ones append
// to a session until the worker refuses, and drop it a moment later. Mute ones send steps on a lane of the worker and never read
// an answer. At the end of the load all are gone, and Run watches until the worker's memory is back.
package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Options say what a soak is.
type Options struct {
	Command  string        // the program coord
	Load     time.Duration // how long the load lasts
	Sessions int64         // how many sessions have to be through before it ends, also beyond Load
	Refusals int64         // how many calls have to be refused by then
	Memory   int64         // of the worker, --memory
	Limit    int64         // of its memory group; 0 is none
	Ordinary int           // clients
	Filling  int           // clients that append until the worker is full
	Mute     int           // clients that never read
	Log      io.Writer     // of the processes
}

// Default is what `make soak` runs: as many clients as a machine has, on a worker in a container of 1 GiB.
func Default() Options {
	return Options{Load: 10 * time.Minute, Memory: 768 << 20, Limit: 1 << 30, Ordinary: 128, Filling: 4, Mute: 8}
}

// slack is what a worker may take beside its --memory, and near how much above idle memory counts as given back.
const (
	slack = 96 << 20
	near  = 64 << 20
)

// Result is what a soak found.
type Result struct {
	Largest  int64         // bytes that were resident at most
	Over     float64       // of Memory and 96 MiB
	Back     time.Duration // from the end of the load until no more than 64 MiB beyond an idle worker's are resident
	Sessions int64         // that ordinary clients went through
	Refused  int64         // calls that were refused as ones to try again
	Gone     int64         // sessions that were evicted
	Full     int64         // times that a client has filled the worker
	Grouped  bool          // whether the memory group held
}

// Run soaks a worker. It fails if the worker ends, if a client's error is not one to try again, or if memory does not come back.
func Run(ctx context.Context, o Options) (_ Result, err error) {
	var r Result
	cluster, err := localcluster.Start(ctx, localcluster.Options{Workers: 1, Memory: o.Memory, Command: []string{o.Command}, Log: o.Log})
	if err != nil {
		return r, err
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if stopped := cluster.Stop(ending); err == nil {
			err = stopped
		}
	}()
	id := cluster.Process(0)
	group, grouped := newGroup(o.Limit, id)
	defer group.remove()
	r.Grouped = grouped
	idle, err := resident(id)
	if err != nil {
		return r, err
	}
	address, err := workerAddress(ctx, cluster.Address())
	if err != nil {
		return r, err
	}
	if err := load(ctx, o, &r, cluster, address); err != nil {
		return r, err
	}
	ended := time.Now()
	for {
		now, err := resident(id)
		if err != nil {
			return r, err
		}
		if r.Back = time.Since(ended); now <= idle+near {
			break
		}
		if r.Back > 2*time.Minute {
			return r, fmt.Errorf("%d MiB are resident two minutes after the load, %d were before it", now>>20, idle>>20)
		}
		time.Sleep(100 * time.Millisecond) // polls, since no one tells
	}
	r.Over = float64(r.Largest) / float64(o.Memory+slack)
	return r, nil
}

// load runs all clients for as long as the load lasts.
func load(ctx context.Context, o Options, r *Result, cluster *localcluster.Cluster, address string) error {
	loading, cancel := context.WithCancel(ctx)
	defer cancel()
	end := time.Now().Add(o.Load)
	failed := make(chan error, o.Ordinary+o.Filling)
	var clients sync.WaitGroup
	var seen counts
	for i := range o.Ordinary + o.Filling {
		clients.Go(func() {
			do := one
			if i >= o.Ordinary {
				do = fill
			}
			if err := repeat(loading, cluster.Address(), i, do, &seen); err != nil {
				failed <- fmt.Errorf("client %d: %w", i, err)
			}
		})
	}
	for range o.Mute {
		clients.Go(func() { mute(loading, address, ofWorker) })
	}
	defer func() {
		clients.Wait()
		r.Sessions, r.Refused, r.Gone, r.Full = seen.sessions.Load(), seen.refused.Load(), seen.gone.Load(), seen.full.Load()
	}()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			cancel()
			return err
		case <-cluster.WorkerDone(0):
			cancel()
			return errors.New("the worker has ended under the load")
		case <-ticker.C:
			now, err := resident(cluster.Process(0))
			if err != nil {
				cancel()
				return err
			}
			r.Largest = max(r.Largest, now)
			if time.Now().After(end) && seen.sessions.Load() >= o.Sessions && seen.refused.Load() >= o.Refusals && (o.Filling == 0 || seen.full.Load() > 0) {
				cancel()
				return nil
			}
		}
	}
}

// layers are those of the ordinary clients' model.
var layers = []client.Layer{{Heads: 8, KVHeads: 2, HeadDim: 128}, {Heads: 8, KVHeads: 2, HeadDim: 128}}

// counts are what clients have seen.
type counts struct{ sessions, refused, gone, full atomic.Int64 }

// repeat does the same over and over until ctx ends. It fails at an error that tells a client neither to try again nor to begin
// anew.
func repeat(ctx context.Context, address string, i int, do func(context.Context, *client.Client, *rand.Rand, bool, *counts) error, seen *counts) error {
	c, err := client.Dial(address)
	if err != nil {
		return err
	}
	defer c.Close()
	rng := source(i)
	for ctx.Err() == nil {
		err := do(ctx, c, rng, i%2 == 0, seen)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			continue
		case errors.Is(err, client.ErrTryAgain):
			seen.refused.Add(1)
		case errors.Is(err, client.ErrGone):
			seen.gone.Add(1)
		default:
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(50+rng.IntN(100)) * time.Millisecond): // again later, as the error says
		}
	}
	return nil
}

// one opens a session, appends a prompt, asks for some tokens, and drops it.
func one(ctx context.Context, c *client.Client, rng *rand.Rand, direct bool, seen *counts) (err error) {
	s, err := c.OpenSession(ctx, client.SessionOptions{Layers: layers, Direct: direct})
	if err != nil {
		return err
	}
	defer drop(ctx, s, &err)
	for n, tokens := 0, 100+rng.IntN(900); n < 8; n, tokens = n+1, 1 {
		for l, layer := range layers {
			q, k := values(rng, tokens*layer.Heads*layer.HeadDim), values(rng, tokens*layer.KVHeads*layer.HeadDim)
			if err := s.Do(ctx, &client.Step{Layer: l, Q: q, K: k, V: k, Context: make([]float32, len(q))}); err != nil {
				return err
			}
		}
	}
	seen.sessions.Add(1)
	return nil
}

// fill opens a session, appends to it until the worker has no room, and drops it a moment later.
func fill(ctx context.Context, c *client.Client, rng *rand.Rand, direct bool, seen *counts) (err error) {
	s, err := c.OpenSession(ctx, client.SessionOptions{Layers: layers, Direct: direct})
	if err != nil {
		return err
	}
	defer drop(ctx, s, &err)
	k := values(rng, 1024*layers[0].KVHeads*layers[0].HeadDim)
	for {
		err := client.Do(ctx, &client.Step{Session: s, Layer: 0, K: k, V: k}, &client.Step{Session: s, Layer: 1, K: k, V: k})
		if errors.Is(err, client.ErrOverBudget) {
			seen.full.Add(1)
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(rng.IntN(1000)) * time.Millisecond): // a client that holds on to what it has
			}
		}
		if err != nil {
			return err
		}
	}
}

// drop ends a session, also if ctx has ended.
func drop(ctx context.Context, s *client.Session, err *error) {
	dropping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if dropped := s.Drop(dropping); *err == nil {
		*err = dropped
	}
}

// source is a client's random numbers.
func source(i int) *rand.Rand { return rand.New(rand.NewPCG(1, uint64(i))) }

func values(rng *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = rng.Float32() - 0.5
	}
	return x
}

// muteOptions say what a client that never reads asks for.
type muteOptions struct {
	groups int  // of the session's one layer, with 16 query heads in all
	held   bool // whether the server is a worker, which is told what it holds
	tokens int  // of a step; each makes 16 KiB of context
}

// ofWorker asks a worker for contexts of 8 MiB.
var ofWorker = muteOptions{groups: 1, held: true, tokens: 500}

// mute sends steps with large answers on lanes of which it reads nothing, one after the other as they end.
func mute(ctx context.Context, address string, o muteOptions) {
	for ctx.Err() == nil {
		if err := muteLane(ctx, address, o); err != nil && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond): // it was ended, which is right
			}
		}
	}
}

func muteLane(ctx context.Context, address string, o muteOptions) error {
	conn, err := grpc.NewClient(address, rpc.DialOptions()...)
	if err != nil {
		return err
	}
	defer conn.Close()
	id, lane := uuid.New(), session.LaneID(uuid.New())
	service := headwaterv1.NewSessionServiceClient(conn)
	create := &headwaterv1.CreateSessionRequest{
		Session: id[:], Epoch: &headwaterv1.Epoch{Counter: 1, Lane: lane[:]},
		Config: &headwaterv1.SessionConfig{Layers: []*headwaterv1.SessionLayer{{NHeads: 16, NKvHeads: uint32(o.groups), HeadDim: 64, VDim: 256, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, WindowLeft: -1, WindowRight: -1}}},
	}
	if o.held {
		create.Held = []*headwaterv1.HeldLayer{{Groups: []uint32{0}}}
	}
	if _, err := service.CreateSession(ctx, create); err != nil {
		return err
	}
	defer func() {
		dropping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, _ = service.DropSession(dropping, &headwaterv1.DropSessionRequest{Session: id[:]})
	}()
	stream, err := session.Open(ctx, conn, lane)
	if err != nil {
		return err
	}
	for n := uint64(1); ; n++ {
		r := &session.Request{ID: n, Step: session.Step{Session: id, Epoch: 1, Hashes: make([]uint64, o.groups), Attend: uint32(o.tokens), Encoding: headwaterv1.StorageType_STORAGE_TYPE_F32, Codec: headwaterv1.StepCodec_STEP_CODEC_RAW}}
		r.Payload = rpc.NewBuffer(4 * o.tokens * 16 * 64)
		clear(r.Payload.Bytes())
		if err := stream.Send(r); err != nil {
			return err
		}
	}
}

func workerAddress(ctx context.Context, coordinator string) (string, error) {
	c, err := client.Dial(coordinator)
	if err != nil {
		return "", err
	}
	status, err := c.Status(ctx)
	if err = errors.Join(err, c.Close()); err != nil {
		return "", err
	}
	return status.Workers[0].Address, nil
}
