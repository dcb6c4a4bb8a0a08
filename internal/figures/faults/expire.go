package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker"
)

// expiring is how many sessions expire together.
const expiring = 10_000

// expireMillis is the longest that a worker takes to answer anyone while sessions expire together, in milliseconds. The worker is
// in this process, so that its clock can be put forward.
func expireMillis(ctx context.Context, _ string) (_ float64, err error) {
	var ahead atomic.Int64
	w, err := worker.New(worker.Config{
		Name: "w1", Boot: uuid.New(), Weight: 1, Budget: 4 << 30, Threads: 1, SessionTTL: time.Hour, MaxSessions: 2 * expiring,
		Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
	})
	if err != nil {
		return 0, err
	}
	defer w.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	server := grpc.NewServer(w.ServerOptions()...)
	w.Register(rpc.Registrar(server))
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		server.Stop()
		err = errors.Join(err, <-served)
	}()
	conn, err := grpc.NewClient(listener.Addr().String(), rpc.DialOptions()...)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := fill(ctx, conn); err != nil {
		return 0, err
	}
	ahead.Store(int64(2 * time.Hour))
	expiry, end := context.WithCancel(ctx)
	ticks, expired := make(chan time.Time), make(chan struct{})
	go func() { defer close(expired); w.Expire(expiry, ticks) }()
	defer func() { end(); <-expired }()
	ticks <- time.Time{}
	longest, answers := time.Duration(0), 0
	for {
		began := time.Now()
		list, err := headwaterv1.NewSessionServiceClient(conn).ListSessions(ctx, &headwaterv1.ListSessionsRequest{CachesOnly: true})
		if err != nil {
			return 0, err
		}
		longest = max(longest, time.Since(began))
		answers++
		switch left := list.GetCaches()[0].GetSessions(); {
		case left == 0:
			return float64(longest) / float64(time.Millisecond), nil
		case answers == 1<<20:
			return 0, fmt.Errorf("%d sessions do not expire", left)
		}
	}
}

// fill makes sessions that nobody uses.
func fill(ctx context.Context, conn *grpc.ClientConn) error {
	service := headwaterv1.NewSessionServiceClient(conn)
	lane := uuid.New()
	for range expiring {
		id := uuid.New()
		if _, err := service.CreateSession(ctx, &headwaterv1.CreateSessionRequest{
			Session: id[:], Epoch: &headwaterv1.Epoch{Counter: 1, Lane: lane[:]},
			Config: &headwaterv1.SessionConfig{Layers: []*headwaterv1.SessionLayer{{NHeads: 4, NKvHeads: 2, HeadDim: 64, VDim: 64, Storage: headwaterv1.StorageType_STORAGE_TYPE_F16, Causal: true, WindowLeft: -1, WindowRight: -1}}},
			Held:   []*headwaterv1.HeldLayer{{Groups: []uint32{0, 1}}},
		}); err != nil {
			return err
		}
	}
	return nil
}
