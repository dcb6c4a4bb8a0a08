package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"headwater.example/internal/address"
	"headwater.example/internal/membership"
	"headwater.example/internal/readiness"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// How long it takes until a process that is not ready, or is, finds out whether it is.
const (
	unreadyPause = time.Second
	readyPause   = 10 * time.Second
)

// readyCheck is what a service needs to know of itself to find out whether it is ready.
type readyCheck struct {
	worker string   // its name; "" of a coordinator
	boot   [16]byte // of a worker
	own    net.Listener
}

// watchReady keeps what the port for health checks says of readiness, until stop is called. It does nothing without that port.
func (e *endpointFlags) watchReady(ctx context.Context, s *service, security *rpc.Security, c readyCheck) (stop func()) {
	if e.probes == nil {
		return func() {}
	}
	s.health.SetServingStatus(readiness.Service, healthv1.HealthCheckResponse_NOT_SERVING)
	at, err := address.Of(c.own.Addr())
	if err != nil {
		s.log.Warn("whether this process is ready is not known", "error", err)
		return func() {}
	}
	conns := fanout.NewConns(security, rpc.DialOptions()...)
	probe := readiness.NewProbe(conns, c.worker, at.String())
	r := &readiness.Readiness{
		Health: s.health, Log: s.log,
		Attend: func(ctx context.Context) error {
			if c.worker == "" && !slices.ContainsFunc(s.view.Members(), isWorker) {
				return nil // it takes jobs, which wait for a worker
			}
			return probe.Attend(ctx)
		},
	}
	if c.worker != "" && e.gossip != "" {
		r.Whole = func(ctx context.Context) error { return whole(ctx, conns, s.view, c.boot) }
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		keepLooking(ctx, r)
	}()
	return func() {
		cancel()
		<-ended
		probe.Close()
		_ = conns.Close() // nothing runs on them any more
	}
}

// keepLooking looks again and again until ctx ends.
func keepLooking(ctx context.Context, r *readiness.Readiness) {
	for {
		pause := unreadyPause
		if r.Look(ctx) {
			pause = readyPause
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

func isWorker(m membership.Member) bool { return m.Role == membership.RoleWorker }

// whole asks coordinators whether a worker counts among those that answer, and no session lacks a copy. One that says so is enough.
func whole(ctx context.Context, conns *fanout.Conns, view membership.View, boot [16]byte) error {
	why := errors.New("no coordinator is a member of the cluster yet")
	for _, m := range view.Members() {
		if m.Role != membership.RoleCoordinator {
			continue
		}
		if why = wholeAt(ctx, conns, m, boot); why == nil {
			return nil
		}
	}
	return why
}

func wholeAt(ctx context.Context, conns *fanout.Conns, m membership.Member, boot [16]byte) error {
	conn, err := conns.Use(rpc.Peer{Name: m.Address, Address: m.Address})
	if err != nil {
		return err
	}
	defer conn.Release()
	said, err := headwaterv1.NewClusterServiceClient(conn).Copies(ctx, &headwaterv1.CopiesRequest{Boot: boot[:]})
	switch {
	case err != nil:
		return fmt.Errorf("coordinator %s at %s: %w", m.Name, m.Address, err)
	case !slices.ContainsFunc(said.GetBoots(), func(b []byte) bool { return bytes.Equal(b, boot[:]) }):
		return fmt.Errorf("coordinator %s has not looked at all sessions since this worker came", m.Name)
	case said.GetLackingShards() > 0:
		return fmt.Errorf("sessions lack copies, %d shards, says coordinator %s", said.GetLackingShards(), m.Name)
	}
	return nil
}
