package sessions

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"headwater.example/coordinator/workers"
	"headwater.example/internal/certs"
	"headwater.example/internal/membership"
	"headwater.example/internal/observe"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Cluster serves ClusterService: what sessions lack, what happened, and how sessions are moved.
type Cluster struct {
	headwaterv1.UnimplementedClusterServiceServer
	*keeper
	security *rpc.Security // which signs capabilities
}

// Cluster returns the service for who runs the cluster.
func (r *Relay) Cluster() *Cluster { return &Cluster{keeper: r.copies, security: r.security} }

// Copies implements headwater.v1.ClusterService.
func (c *Cluster) Copies(_ context.Context, req *headwaterv1.CopiesRequest) (*headwaterv1.CopiesResponse, error) {
	m := c.told()
	if len(req.GetBoot()) > 0 && !slices.ContainsFunc(m.GetBoots(), func(b []byte) bool { return bytes.Equal(b, req.GetBoot()) }) {
		c.lookAtAll()
	}
	return m, nil
}

// Copies returns how many copies of shards are missing, how many copies were made, and their bytes.
func (r *Relay) Copies() (lacking, made, bytes uint64) {
	m := r.copies.told()
	return m.GetLackingShards(), m.GetCopies(), m.GetCopiedBytes()
}

// told says what sessions lack.
func (k *keeper) told() *headwaterv1.CopiesResponse {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := &headwaterv1.CopiesResponse{
		LackingSessions: uint64(len(k.lacking)), LostSessions: uint64(len(k.lost)), Copies: k.copies, CopiedBytes: uint64(k.rate.bytes()),
	}
	for _, n := range k.lacking {
		m.LackingShards += uint64(n)
	}
	for _, since := range k.twice {
		if since.IsZero() {
			m.TwiceSessions++
		}
	}
	if !k.looked.IsZero() {
		m.Looked = timestamppb.New(k.looked)
	}
	for _, boot := range k.answered {
		m.Boots = append(m.Boots, boot[:])
	}
	return m
}

// WatchEvents implements headwater.v1.ClusterService.
func (c *Cluster) WatchEvents(req *headwaterv1.WatchEventsRequest, stream grpc.ServerStreamingServer[headwaterv1.WatchEventsResponse]) error {
	for after := req.GetAfter(); ; {
		events, changed := c.observe.EventsAfter(after)
		for i := range events {
			e := &events[i]
			after = e.Number
			err := stream.Send(&headwaterv1.WatchEventsResponse{Event: &headwaterv1.Event{
				Number: e.Number, Time: timestamppb.New(e.At), Kind: string(e.What), Worker: e.Worker, Count: uint64(e.Count), Text: e.Text(),
			}})
			if err != nil {
				return err
			}
		}
		if !req.GetFollow() {
			return nil
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-c.stopping:
			return status.Error(codes.Unavailable, "the coordinator stops")
		}
	}
}

// GrantCapability implements headwater.v1.ClusterService.
func (c *Cluster) GrantCapability(ctx context.Context, req *headwaterv1.GrantCapabilityRequest) (*headwaterv1.GrantCapabilityResponse, error) {
	who := rpc.CallerOf(ctx)
	signed, life, err := c.security.Grant(who, req.GetKey(), req.GetSession(), req.GetLife().AsDuration())
	if err != nil {
		return nil, err
	}
	c.log.Debug("a capability is granted", "tenant", who.Tenant, "session", fmt.Sprintf("%x", req.GetSession()))
	return &headwaterv1.GrantCapabilityResponse{Capability: signed, Life: durationpb.New(life)}, nil
}

const (
	// progressEvery is how often a drain says how far it has come, if nothing else makes it, and leavingEvery the same if the worker
	// waits for it to end.
	progressEvery = time.Second
	leavingEvery  = 50 * time.Millisecond
)

// DrainWorker implements headwater.v1.ClusterService.
func (c *Cluster) DrainWorker(req *headwaterv1.DrainWorkerRequest, stream grpc.ServerStreamingServer[headwaterv1.DrainWorkerResponse]) error {
	ctx := stream.Context()
	if by := rpc.CallerOf(ctx).Holder; by.Role == certs.Worker && !by.Is(req.GetWorker()) {
		return status.Errorf(codes.PermissionDenied, "a worker drains itself alone, and %s asks to drain %q", by, req.GetWorker())
	}
	all := c.workers.List()
	i := slices.IndexFunc(all, func(m membership.Member) bool { return m.Name == req.GetWorker() })
	if i < 0 {
		return status.Errorf(codes.NotFound, "worker %q is none of the cluster's %d workers", req.GetWorker(), len(all))
	}
	rpc.Audit(ctx, c.log, "a worker is drained", slog.String("worker", all[i].Name), slog.Bool("undo", req.GetUndo()), slog.Bool("leaving", req.GetLeaving()))
	if err := c.setDraining(ctx, all[i], &headwaterv1.SetDrainingRequest{Draining: !req.GetUndo(), Leaving: req.GetLeaving()}); err != nil {
		return err
	}
	if req.GetUndo() {
		c.observe.Happened(observe.Undrained, all[i].Name, 1)
		c.wake()
		return stream.Send(&headwaterv1.DrainWorkerResponse{Moves: &headwaterv1.Moves{Done: true}})
	}
	c.observe.Happened(observe.Draining, all[i].Name, 1)
	every := progressEvery
	if req.GetLeaving() {
		every = leavingEvery
		c.leaving.Add(1)
		defer c.leaving.Add(-1)
	}
	return c.moves(ctx, every, func(m *headwaterv1.Moves) error {
		return stream.Send(&headwaterv1.DrainWorkerResponse{Moves: m})
	}, func() (left, bytes uint64, err error) {
		resp, err := c.conns.List(ctx, all[i].Name, all[i].Address, &headwaterv1.ListSessionsRequest{CachesOnly: true})
		if err != nil {
			return 0, 0, refusal(err)
		}
		for _, cache := range resp.GetCaches() {
			left += cache.GetSessions()
			bytes += cache.GetUsedBytes() - min(cache.GetUsedBytes(), cache.GetPrefixBytes())
		}
		if left == 0 {
			c.observe.Happened(observe.Drained, all[i].Name, 1)
			bytes = 0
		}
		return left, bytes, nil
	})
}

// setDraining tells a worker whether it is drained, which every coordinator learns of it.
func (k *keeper) setDraining(ctx context.Context, m membership.Member, req *headwaterv1.SetDrainingRequest) error {
	conn, err := k.workers.Use(m)
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	defer conn.Release()
	_, err = headwaterv1.NewWorkerServiceClient(conn).SetDraining(ctx, req)
	if status.Code(err) == codes.Unimplemented {
		return status.Errorf(codes.FailedPrecondition, "worker %q can not be drained: its protocol is older than 1.3", m.Name)
	}
	if err != nil {
		return status.Errorf(status.Code(err), "worker %q at %s: %s", m.Name, m.Address, status.Convert(err).Message())
	}
	return nil
}

// moves lets the keeper look at all sessions until none is left, and says how far it has come. If the caller ends soon, it fails once
// nobody could take what is left.
func (k *keeper) moves(ctx context.Context, every time.Duration, say func(*headwaterv1.Moves) error, count func() (left, bytes uint64, err error)) error {
	before := k.told()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for turns := 0; ; {
		looked := k.lookAtAll()
		left, bytes, err := count()
		if err != nil {
			return err
		}
		now := k.told()
		if err := say(&headwaterv1.Moves{
			Left: left, LeftBytes: bytes, Moved: now.GetCopies() - before.GetCopies(), CopiedBytes: now.GetCopiedBytes() - before.GetCopiedBytes(), Error: k.failure(), Done: left == 0,
		}); err != nil || left == 0 {
			return err
		}
		if turns > 0 && every == leavingEvery {
			if _, err := workers.Placeable(k.workers.Describe(ctx, k.workers.List())); err != nil {
				return err
			}
		}
		select {
		case <-looked:
			turns++
		case <-tick.C:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-k.stopping:
			return status.Error(codes.Unavailable, "the coordinator stops; another one, or this one when it is back, goes on with it")
		}
	}
}

// lookAtAll makes the keeper look at all sessions. The channel is closed when it has.
func (k *keeper) lookAtAll() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.turn == nil {
		k.turn = make(chan struct{})
		k.wake()
	}
	return k.turn
}

// failure is why the newest thing that was to be done for a session could not be; empty if it could.
func (k *keeper) failure() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failed
}
