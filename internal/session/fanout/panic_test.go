package fanout_test

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// faultyStream is a lane whose message of one direction panics, once it carries a step.
type faultyStream struct {
	grpc.ClientStream
	sends bool
}

func (s faultyStream) SendMsg(m any) error {
	if s.sends {
		panic("injected")
	}
	return s.ClientStream.SendMsg(m)
}

func (s faultyStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil || s.sends {
		return err
	}
	panic("injected")
}

// TestAPanicOfAGoroutineEndsItsCallAlone: what serves a call beside it, on the way to one holder or back, ends that call with
// INTERNAL and is counted. The process and the next call go on.
func TestAPanicOfAGoroutineEndsItsCallAlone(t *testing.T) {
	layers := []shard.LayerSpec{shape(2, 2, 4, 4)}
	for _, where := range []string{"unary", "send", "receive"} {
		t.Run(where, func(t *testing.T) {
			faulty := true
			opts := append(rpc.DialOptions(),
				grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
					if faulty && where == "unary" {
						panic("injected")
					}
					return call(ctx, method, req, reply, conn, opts...)
				}),
				grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
					stream, err := open(ctx, desc, conn, method, opts...)
					if err == nil && faulty && where != "unary" {
						return faultyStream{stream, where == "send"}, nil
					}
					return stream, err
				}))
			var log bytes.Buffer
			conns := fanout.NewConns(nil, opts...)
			conns.Log = slog.New(slog.NewTextHandler(&log, nil))
			lane := fanout.NewLane(session.LaneID{1}, conns)
			defer func() {
				lane.Close()
				if err := conns.Close(); err != nil {
					t.Error(err)
				}
			}()
			h, err := fanout.NewHolding(layers,
				&fanout.Holder{Name: "a", Address: serve(t, (&script{step: count}).Register), Groups: [][]int{{0}}},
				&fanout.Holder{Name: "b", Address: serve(t, (&script{step: count}).Register), Groups: [][]int{{1}}})
			if err != nil {
				t.Fatal(err)
			}
			call := func() error {
				if where == "unary" {
					return conns.Drop(t.Context(), h.Holders(), &headwaterv1.DropSessionRequest{Session: make([]byte, 16)})
				}
				step, _ := draw(rand.New(rand.NewPCG(1, 1)), layers, 0, [16]byte{1}, 0, make([]uint64, 2), 1, 0)
				return lane.Start(t.Context(), at(h), step).Once(t.Context())
			}
			before := rpc.Panics()
			if err := call(); status.Code(err) != codes.Internal {
				t.Errorf("the call ended with %v", err)
			}
			if n := rpc.Panics() - before; n != 2 {
				t.Errorf("%d panics are counted", n)
			}
			if !strings.Contains(log.String(), "panic_test.go") {
				t.Errorf("the log has no stack:\n%s", log.String())
			}
			faulty = false
			if err := call(); err != nil {
				t.Errorf("the next call: %v", err)
			}
		})
	}
}
