package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/tensor"
)

// The geometry of most figures.
const (
	heads   = 32
	kvHeads = 8
	headDim = 128
	storage = tensor.BF16
)

// bare is a process that has what a step can not do without, and nothing else: the kernel on pages like a worker's, and a
// lane that answers at once.
type bare struct {
	command *exec.Cmd
	stdin   io.Closer
	conn    *grpc.ClientConn
	stream  *session.Stream
	cancel  context.CancelFunc

	request  session.Request
	response session.Response
	next     uint64
}

// startBare starts it as a child of this program, with so many threads.
func startBare(ctx context.Context, threads int) (_ *bare, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b := &bare{command: exec.CommandContext(ctx, self, "-bare")}
	b.command.Stderr = os.Stderr
	b.command.Env = append(os.Environ(), fmt.Sprint("GOMAXPROCS=", threads))
	if b.stdin, err = b.command.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := b.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := b.command.Start(); err != nil {
		return nil, fmt.Errorf("start a bare process: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.stop())
		}
	}()
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("ask a bare process for its address: %w", err)
	}
	if b.conn, err = grpc.NewClient(strings.TrimSpace(address), rpc.DialOptions()...); err != nil {
		return nil, err
	}
	streaming, cancel := context.WithCancel(ctx)
	b.cancel = cancel
	b.stream, err = session.Open(streaming, b.conn, session.LaneID{1})
	return b, err
}

func (b *bare) stop() error {
	if b.cancel != nil {
		b.cancel()
	}
	var err error
	if b.conn != nil {
		err = b.conn.Close()
	}
	return errors.Join(err, b.stdin.Close(), b.command.Wait())
}

// call sends a request with a payload of so many bytes and waits for its answer.
func (b *bare) call(bytes int) (kernel time.Duration, err error) {
	b.next++
	b.request.ID, b.request.Payload = b.next, rpc.NewBuffer(bytes)
	if err := b.stream.Send(&b.request); err != nil {
		return 0, err
	}
	if err := b.stream.Recv(&b.response); err != nil {
		return 0, err
	}
	b.response.Payload.Free()
	b.response.Payload = nil
	if e := b.response.Result.Err; e != nil {
		return 0, e
	}
	return time.Duration(b.response.Result.ComputeNanos), nil
}

// echo is the round trip of a step's bytes: there q, k and v of one token, back its context and LSE.
func (b *bare) echo() error {
	b.request.Reset()
	b.request.Step.Attend = heads*headDim*4 + heads*4 // bytes of the answer
	_, err := b.call(4*heads*headDim + 2*kvHeads*headDim*storage.Size())
	return err
}

// kernel is the attention of the newest tokens of a sequence of so many positions, without anything around it.
func (b *bare) kernel(positions, tokens int) (seconds float64, err error) {
	b.request.Reset()
	b.request.Step.Length, b.request.Step.Append = uint64(positions), uint32(tokens)
	took, err := b.call(1)
	return took.Seconds(), err
}

// batch is a token of each of some sequences of so many positions, shared out over callers that have a thread each.
func (b *bare) batch(positions, sequences int) (seconds float64, err error) {
	b.request.Reset()
	b.request.Step.Length, b.request.Step.Append, b.request.Step.Layer = uint64(positions), 1, uint32(sequences)
	took, err := b.call(1)
	return took.Seconds(), err
}

// serveBare is the child: it serves until in ends.
func serveBare(in io.Reader, out io.Writer) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	e := &echo{pool: attention.NewPool(runtime.GOMAXPROCS(0)), sequences: map[int][][]attention.KV{}}
	server := grpc.NewServer(rpc.ServerOptions()...)
	session.Register(server, e)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	if _, err := fmt.Fprintln(out, listener.Addr()); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in)
	server.Stop()
	err = errors.Join(err, <-served)
	e.pool.Close()
	return err
}

// echo serves lanes: a request without positions gets as many bytes back as its Attend says, another the kernel's time.
type echo struct {
	session.Service
	pool      *attention.Pool
	sequences map[int][][]attention.KV // by positions: of each sequence a KV for each group
}

func (e *echo) Lane(s *session.ServerStream) error {
	var request session.Request
	var response session.Response
	for {
		switch err := s.Recv(&request); {
		case errors.Is(err, io.EOF), s.Context().Err() != nil:
			return nil
		case err != nil:
			return err
		}
		response.Reset()
		response.ID = request.ID
		request.Payload.Free()
		request.Payload = nil
		if positions := int(request.Step.Length); positions > 0 {
			took, err := e.attend(s.Context(), positions, int(request.Step.Append), max(int(request.Step.Layer), 1))
			if err != nil {
				return status.FromContextError(err).Err()
			}
			response.Result.ComputeNanos = uint64(took)
		} else {
			response.Payload = rpc.NewBuffer(int(request.Step.Attend))
		}
		if err := s.Send(&response); err != nil {
			return err
		}
	}
}

// attend lets the newest tokens of each of some sequences attend, and returns how long it took. The pool's threads take turns
// with the sequences; none helps another.
func (e *echo) attend(ctx context.Context, positions, tokens, sequences int) (time.Duration, error) {
	for len(e.sequences[positions]) < sequences {
		groups, err := newSequence(positions)
		if err != nil {
			return 0, err
		}
		e.sequences[positions] = append(e.sequences[positions], groups)
	}
	all := e.sequences[positions][:sequences]
	const size = heads / kvHeads
	rng := rand.New(rand.NewPCG(5, 6))
	q := attention.Query{Q: random(tokens*size*headDim, rng), Tokens: tokens, Heads: size, Offset: int64(positions - tokens)}
	opts := attention.DefaultOptions(headDim)
	opts.Causal = true
	callers := min(e.pool.Threads(), sequences)
	work := make([]func() error, callers)
	for caller := range callers {
		thread, err := e.pool.Acquire(ctx, attention.Foreground)
		if err != nil {
			return 0, err
		}
		defer thread.Release()
		out := attention.Output{Context: make([]float32, tokens*size*headDim), LSE: make([]float32, tokens*size)}
		work[caller] = func() error {
			for s := caller; s < sequences; s += callers {
				for _, kv := range all[s] {
					if err := thread.Attend(ctx, kv, q, opts, out); err != nil {
						return err
					}
				}
			}
			return nil
		}
	}
	began := time.Now()
	var others errgroup.Group
	for _, some := range work[1:] {
		others.Go(some)
	}
	err := errors.Join(work[0](), others.Wait())
	return time.Since(began), err
}

// newSequence makes pages like a worker's, a KV for each group.
func newSequence(positions int) (groups []attention.KV, err error) {
	layout, err := attention.NewLayout(storage, headDim, headDim)
	if err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(3, 4))
	rows := attention.Rows{K: make([]byte, attention.PageLen*layout.KRowBytes()), V: make([]byte, attention.PageLen*layout.VRowBytes())}
	for _, to := range [][]byte{rows.K, rows.V} {
		if err := tensor.Narrow(to, random(len(to)/storage.Size(), rng), storage); err != nil {
			return nil, err
		}
	}
	for range kvHeads {
		arena, err := kvcache.MapArena(int64((positions+attention.PageLen-1)/attention.PageLen) * int64(layout.PageBytes()))
		if err != nil {
			return nil, err
		}
		kv := attention.KV{Layout: layout, Len: positions}
		for at := 0; at < len(arena.Bytes()); at += layout.PageBytes() {
			page := arena.Bytes()[at:][:layout.PageBytes()]
			if err := layout.Write(page, 0, attention.PageLen, rows); err != nil {
				return nil, err
			}
			kv.Pages = append(kv.Pages, page)
		}
		groups = append(groups, kv)
	}
	return groups, nil
}

func random(n int, rng *rand.Rand) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = rng.Float32()*2 - 1
	}
	return x
}
