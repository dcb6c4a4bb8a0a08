package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var panics atomic.Uint64

// Panics is how many panics this process has caught.
func Panics() uint64 { return panics.Load() }

// Guard calls f. A panic of f becomes an error of code INTERNAL, is logged with its stack, and counted; nothing else ends.
// The servers' interceptors guard handlers. A goroutine that a handler starts guards itself, because a panic there would
// otherwise end the process. log may be nil for slog.Default. what names the call or the work.
func Guard(log *slog.Logger, what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = caught(log, what, p)
		}
	}()
	return f()
}

func caught(log *slog.Logger, what string, p any) error {
	n := panics.Add(1)
	if log == nil {
		log = slog.Default()
	}
	log.Error("a panic was caught; the call that met it ends", "call", what, "panic", fmt.Sprint(p), "panics", n, "stack", string(debug.Stack()))
	// Its value may tell of memory that is not the caller's.
	return status.Errorf(codes.Internal, "%s failed by a fault of the server, which its log describes", what)
}

// guardCalls are the interceptors that guard every handler of a server.
func guardCalls(log *slog.Logger) (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
		err = Guard(log, info.FullMethod, func() error {
			resp, err = handle(ctx, req)
			return err
		})
		return resp, err
	}
	stream := func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		return Guard(log, info.FullMethod, func() error { return handle(srv, stream) })
	}
	return unary, stream
}
