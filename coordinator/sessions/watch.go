package sessions

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// watchAgain is how long it takes until a session's holders are looked for again, after one of them has ended a watch.
const watchAgain = time.Second

// WatchAttention calls send with where the queries of a session's group look, one call at a time, until send fails, ctx ends or the
// session does. All holders of the group are watched: the one that answers has queries, and if it is lost another one has.
func (r *Relay) WatchAttention(ctx context.Context, req *headwaterv1.WatchAttentionRequest, send func(*headwaterv1.WatchAttentionResponse) error) error {
	for {
		shards, err := r.Shards(ctx, req.GetSession())
		if err != nil {
			return err
		}
		if int64(req.GetLayer()) >= int64(len(shards.Held)) || int64(req.GetGroup()) >= int64(len(shards.Held[req.GetLayer()])) {
			return session.Errorf(session.Invalid, "session %x has no layer %d with a group %d", req.GetSession(), req.GetLayer(), req.GetGroup())
		}
		if layer := &shards.Layers[req.GetLayer()]; layer.Striped() {
			return session.Errorf(session.Invalid, "session %x: layer %d is held in %d stripes: no worker has all positions that its queries see: watch a session that is held whole, as one restored from a snapshot of this one", req.GetSession(), req.GetLayer(), layer.Stripes)
		}
		holders := shards.Held[req.GetLayer()][req.GetGroup()]
		members := slices.DeleteFunc(r.workers.List(), func(m membership.Member) bool { return !slices.Contains(holders, m.Name) })
		if err := r.watchHolders(ctx, members, req, send); err != nil {
			return err
		}
		select {
		case <-time.After(watchAgain):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watchHolders watches holders until one of them ends the watch. It returns an error if to look for the holders again is of no use.
func (r *Relay) watchHolders(ctx context.Context, members []membership.Member, req *headwaterv1.WatchAttentionRequest, send func(*headwaterv1.WatchAttentionResponse) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	all := make(chan *headwaterv1.WatchAttentionResponse)
	ended := make(chan struct{}, len(members))
	for _, m := range members {
		go func() {
			defer func() { ended <- struct{}{} }()
			cancel(rpc.Guard(r.log, "watching worker "+m.Name, func() error { return r.watchHolder(ctx, m, req, all) }))
		}()
	}
	failed := error(nil)
	for running := len(members); running > 0; {
		select {
		case m := <-all:
			if failed == nil {
				if failed = send(m); failed != nil {
					cancel(failed)
				}
			}
		case <-ended:
			running--
		}
	}
	if failed == nil && ctx.Err() != nil {
		failed = context.Cause(ctx)
	}
	// Where it is now, or that it is nowhere, is seen when its holders are looked for again.
	if e, ok := session.FromError(failed); ok && session.KindOf(e.Reason()) != session.Refused {
		return nil
	}
	if code := status.Code(failed); code == codes.Unavailable || code == codes.Canceled {
		return nil
	}
	return failed
}

// watchHolder hands on what one holder sends. The error says why it ended.
func (r *Relay) watchHolder(ctx context.Context, m membership.Member, req *headwaterv1.WatchAttentionRequest, to chan<- *headwaterv1.WatchAttentionResponse) error {
	conn, err := r.workers.Use(m)
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	defer conn.Release()
	stream, err := headwaterv1.NewWorkerServiceClient(conn).WatchAttention(ctx, req)
	if err != nil {
		return err
	}
	for {
		got, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case to <- got:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
