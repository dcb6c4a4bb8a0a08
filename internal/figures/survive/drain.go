package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
)

// drainTokens measures the tokens of sessions while each worker is drained once, beside those before.
func drainTokens(ctx context.Context, f *figures) (_ []float64, err error) {
	l, err := f.startLoad(ctx, localcluster.Options{}, true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.end(ctx)) }()
	for _, w := range l.walkers {
		w.patient = true
	}
	l.walk(ctx)
	var before, during []float64
	for worker := range l.Workers() {
		if err := l.steady(ctx); err != nil {
			return nil, err
		}
		calm := time.Now()
		pause(ctx, 5*time.Second)
		began := time.Now()
		moved, err := l.drain(ctx, worker)
		if err != nil {
			return nil, err
		}
		over := time.Now()
		before, during = append(before, l.between(calm, began)...), append(during, l.between(began, over)...)
		f.add("drain_p99", p99(l.between(began, over))/p99(l.between(calm, began)), map[string]float64{
			"before_p99_seconds": p99(l.between(calm, began)), "drain_p99_seconds": p99(l.between(began, over)), "drain_seconds": over.Sub(began).Seconds(), "copied_bytes": float64(moved.CopiedBytes),
		})
		if err := errors.Join(l.client.Undrain(ctx, l.Name(worker)), l.whole(ctx)); err != nil {
			return nil, err
		}
	}
	failures := 0
	for _, w := range l.walkers {
		w.mu.Lock()
		failures += w.errors
		w.mu.Unlock()
	}
	fmt.Fprintf(os.Stderr, "drain: tokens take %.1f ms at p99 before, %.1f ms meanwhile\n", 1000*p99(before), 1000*p99(during))
	return []float64{p99(during) / p99(before), float64(failures)}, l.failed()
}

// drain drains a worker.
func (l *load) drain(ctx context.Context, worker int) (last client.Moves, err error) {
	err = l.client.Drain(ctx, l.Name(worker), func(m client.Moves) { last = m })
	return last, err
}

// drainRate measures the rate at which the sessions of a worker are moved, beside what a gRPC stream carries in the same round.
func drainRate(ctx context.Context, f *figures) (_ []float64, err error) {
	l, err := f.startLoad(ctx, localcluster.Options{CoordinatorArgs: []string{"--copy-rate", "0"}}, true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.end(ctx)) }()
	var ratios []float64
	for worker := range l.Workers() {
		carried, err := streamRate(ctx)
		if err != nil {
			return nil, err
		}
		began := time.Now()
		moved, err := l.drain(ctx, worker)
		if err != nil {
			return nil, err
		}
		rate := float64(moved.CopiedBytes) / time.Since(began).Seconds()
		ratios = append(ratios, rate/carried)
		f.add("drain_mbs", rate/carried, map[string]float64{"moved_bytes_a_second": rate, "stream_bytes_a_second": carried, "moved_bytes": float64(moved.CopiedBytes)})
		fmt.Fprintf(os.Stderr, "drain: %.0f MB at %.0f MB/s, a stream carries %.0f MB/s\n", float64(moved.CopiedBytes)/1e6, rate/1e6, carried/1e6)
		if err := l.client.Undrain(ctx, l.Name(worker)); err != nil {
			return nil, err
		}
	}
	return []float64{middle(ratios)}, nil
}

// streamed is how many bytes a stream carries when it is measured, in messages of messageBytes.
const (
	streamed     = 1 << 30
	messageBytes = 1 << 20
)

// sink serves lanes that it reads and answers once, at their end.
type sink struct{ session.Service }

// Lane implements session.Service.
func (sink) Lane(s *session.ServerStream) error {
	var request session.Request
	for {
		if err := s.Recv(&request); err != nil {
			return err
		}
		request.Payload.Free()
		request.Payload = nil
		if request.ID == streamed/messageBytes {
			return s.Send(&session.Response{ID: request.ID})
		}
	}
}

// streamRate returns the bytes a second that a gRPC stream carries on loopback, to another goroutine of this process.
func streamRate(ctx context.Context) (_ float64, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	server := grpc.NewServer(rpc.ServerOptions()...)
	session.Register(server, sink{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		server.Stop()
		err = errors.Join(err, <-served)
	}()
	conns := rpc.NewConns(nil)
	defer func() { err = errors.Join(err, conns.Close()) }()
	conn, err := conns.Use(rpc.Peer{Name: "sink", Address: listener.Addr().String()})
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := session.Open(ctx, conn, session.LaneID{1})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for i := range uint64(streamed / messageBytes) {
		if err := stream.Send(&session.Request{ID: i + 1, Payload: rpc.NewBuffer(messageBytes)}); err != nil {
			return 0, err
		}
	}
	var response session.Response
	if err := stream.Recv(&response); err != nil {
		return 0, err
	}
	return streamed / time.Since(began).Seconds(), nil
}
