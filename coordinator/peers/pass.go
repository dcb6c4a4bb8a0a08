package peers

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/coordinator/jobs"
	"headwater.example/internal/certs"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

type client = headwaterv1.CoordinatorServiceClient

// pass makes a call at another coordinator for the caller of ctx.
func pass[Q, R any](ctx context.Context, p *Peers, m membership.Member, call func(client, context.Context, *Q, ...grpc.CallOption) (*R, error), req *Q) (*R, error) {
	to, err := p.reach(ctx, m)
	if err != nil {
		return nil, err
	}
	resp, err := call(to.client, to.ctx, req, grpc.Header(&to.header))
	return resp, to.end(err)
}

// reached is a call to another coordinator.
type reached struct {
	client
	peers  *Peers
	to     membership.Member
	caller context.Context
	ctx    context.Context // ends also if the coordinator hangs
	header metadata.MD
	conn   *rpc.Conn
	stop   func() rpc.Peer
}

// reach begins a call to another coordinator. It ends with end.
func (p *Peers) reach(ctx context.Context, m membership.Member) (*reached, error) {
	if rpc.CallerOf(ctx).Nobody() { // it would be taken for this coordinator
		return nil, status.Error(codes.PermissionDenied, "the call is made for nobody who was proven")
	}
	conn, err := p.conns.Use(peer(m))
	if err != nil {
		return nil, p.unreachable(m.Name, err.Error())
	}
	r := &reached{peers: p, client: headwaterv1.NewCoordinatorServiceClient(conn), to: m, caller: ctx, conn: conn}
	r.ctx, r.stop = p.conns.Heed(rpc.PassOn(ctx, p.Name), func() bool { return true }, peer(m))
	return r, nil
}

// end ends a call that came to an error, or nil, and returns what the caller is told.
func (r *reached) end(err error) error {
	silent := r.stop() != rpc.Peer{}
	r.conn.Release()
	switch code := status.Code(err); {
	case err == nil, errors.Is(err, io.EOF):
		return err
	case r.caller.Err() != nil:
		return status.FromContextError(r.caller.Err()).Err()
	case silent:
		return r.peers.unreachable(r.to.Name, errSilent.Error())
	case code == codes.Unavailable:
		return r.peers.unreachable(r.to.Name, status.Convert(err).Message())
	case (code == codes.Unauthenticated || code == codes.PermissionDenied) && len(r.header.Get(rpc.MetadataKey)) == 0:
		// Only an error of the call itself is of these codes. The call has ended then, and nobody writes its header.
		return r.peers.unreachable(r.to.Name, "it does not take this coordinator: "+status.Convert(err).Message())
	}
	return err
}

// unreachable is the error of a call about a job of a coordinator that can't be asked.
func (p *Peers) unreachable(name, why string) error {
	heard, _ := p.memory.heard(name)
	return rpc.Unreachable(name, strings.Join(strings.Fields(why), " "), heard)
}

// GetJob implements headwater.v1.CoordinatorService.
func (p *Peers) GetJob(ctx context.Context, r *headwaterv1.GetJobRequest) (*headwaterv1.GetJobResponse, error) {
	return one(ctx, p, r, jobs.Best, p.local.GetJob, func(ctx context.Context, m membership.Member, id string) (*headwaterv1.GetJobResponse, error) {
		return pass(ctx, p, m, client.GetJob, &headwaterv1.GetJobRequest{Id: id})
	})
}

// CancelJob implements headwater.v1.CoordinatorService.
func (p *Peers) CancelJob(ctx context.Context, r *headwaterv1.CancelJobRequest) (*headwaterv1.CancelJobResponse, error) {
	return one(ctx, p, r, jobs.Unended, p.local.CancelJob, func(ctx context.Context, m membership.Member, id string) (*headwaterv1.CancelJobResponse, error) {
		p.audit(ctx, "a job is cancelled", m, id)
		return pass(ctx, p, m, client.CancelJob, &headwaterv1.CancelJobRequest{Id: id})
	})
}

// DeleteJob implements headwater.v1.CoordinatorService.
func (p *Peers) DeleteJob(ctx context.Context, r *headwaterv1.DeleteJobRequest) (*headwaterv1.DeleteJobResponse, error) {
	return one(ctx, p, r, jobs.Best, p.local.DeleteJob, func(ctx context.Context, m membership.Member, id string) (*headwaterv1.DeleteJobResponse, error) {
		p.audit(ctx, "a job is deleted", m, id)
		return pass(ctx, p, m, client.DeleteJob, &headwaterv1.DeleteJobRequest{Id: id})
	})
}

// audit logs what an admin does to a job of another coordinator, which does not learn who it is.
func (p *Peers) audit(ctx context.Context, did string, m membership.Member, id string) {
	if rpc.CallerOf(ctx).Holder.Role == certs.Admin {
		rpc.Audit(ctx, p.Logger, did, slog.String("job", id), slog.String("coordinator", m.Name))
	}
}

// one makes a call about one job where the job is: here, or with its id there.
func one[Q interface{ GetId() string }, R interface{ GetJob() *headwaterv1.Job }](
	ctx context.Context, p *Peers, req Q, rank func(*headwaterv1.Job) int,
	here func(context.Context, Q) (R, error), there func(ctx context.Context, m membership.Member, id string) (R, error),
) (none R, _ error) {
	m, id, err := p.place(ctx, req.GetId(), rank)
	if err != nil {
		return none, err
	}
	if m == nil {
		return here(ctx, req)
	}
	leave, err := take(p.passed)
	if err != nil {
		return none, err
	}
	defer leave()
	resp, err := there(ctx, *m, id)
	if err == nil {
		err = p.check(ctx, *m, resp.GetJob())
	}
	if err != nil {
		return none, err
	}
	return resp, nil
}

// WatchJob implements headwater.v1.CoordinatorService.
func (p *Peers) WatchJob(r *headwaterv1.WatchJobRequest, stream headwaterv1.CoordinatorService_WatchJobServer) error {
	ctx := stream.Context()
	m, id, err := p.place(ctx, r.GetId(), jobs.Best)
	if err != nil {
		return err
	}
	if m == nil {
		return p.local.WatchJob(r, stream)
	}
	leave, err := take(p.passed)
	if err != nil {
		return err
	}
	defer leave()
	to, err := p.reach(ctx, *m)
	if err != nil {
		return err
	}
	from, err := to.WatchJob(to.ctx, &headwaterv1.WatchJobRequest{Id: id}, grpc.Header(&to.header))
	for err == nil {
		var resp *headwaterv1.WatchJobResponse
		if resp, err = from.Recv(); err == nil {
			err = p.check(ctx, *m, resp.GetJob())
		}
		if err == nil {
			err = stream.Send(resp)
		}
	}
	return over(to.end(err))
}

// over is the error of a stream that came to an end.
func over(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// DownloadResult implements headwater.v1.CoordinatorService. A result is passed on piece by piece, each counted as what this coordinator
// answers.
func (p *Peers) DownloadResult(r *headwaterv1.DownloadResultRequest, stream headwaterv1.CoordinatorService_DownloadResultServer) error {
	ctx := stream.Context()
	m, id, err := p.place(ctx, r.GetId(), jobs.Best)
	if err != nil {
		return err
	}
	if m == nil {
		return p.local.DownloadResult(r, stream)
	}
	leave, err := take(p.bulk)
	if err != nil {
		return err
	}
	defer leave()
	to, err := p.reach(ctx, *m)
	if err != nil {
		return err
	}
	from, err := to.DownloadResult(to.ctx, &headwaterv1.DownloadResultRequest{Id: id}, grpc.Header(&to.header))
	for first := true; err == nil; first = false {
		piece := &headwaterv1.DownloadResultResponse{}
		var memory *rpc.Buffer
		if memory, err = rpc.RecvBulk(from, piece); err == nil && first {
			err = p.check(ctx, *m, piece.GetJob())
		}
		if err != nil {
			memory.Free()
			break
		}
		err = rpc.SendBulk(stream, piece, memory)
	}
	return over(to.end(err))
}

// Elsewhere looks whether another coordinator has the caller's job with a key, and returns what passes a submission on to it; nil if none
// is known to.
func (p *Peers) Elsewhere(ctx context.Context, key string) jobs.Handover {
	others := p.others()
	if alone(ctx) || len(others) == 0 {
		return nil
	}
	found, _ := p.seek(ctx, key, others)
	for _, f := range found {
		if f.job.GetKey() == key && f.job.GetTenant() == rpc.CallerOf(ctx).Tenant {
			return func(ctx context.Context, s jobs.Submission) error { return p.handOver(ctx, f.at, s) }
		}
	}
	return nil
}

// handOver passes a submission on, and its answers back.
func (p *Peers) handOver(ctx context.Context, m membership.Member, s jobs.Submission) error {
	leave, err := take(p.bulk)
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	to, err := p.reach(ctx, m)
	if err != nil {
		return err
	}
	stream, err := to.Submit(to.ctx, grpc.Header(&to.header))
	if err == nil {
		err = stream.Send(s.First)
	}
	if err != nil && !errors.Is(err, io.EOF) { // else Recv says why
		return to.end(err)
	}
	var sending sync.WaitGroup
	var broken atomic.Pointer[error] // why the client's messages ended early
	sending.Go(func() {
		err := rpc.Guard(p.Logger, "passing a submission on", func() error { return sendRest(stream, s) })
		if err != nil && !errors.Is(err, io.EOF) {
			broken.Store(&err)
			cancel()
		}
	})
	for err = nil; err == nil; {
		var resp *headwaterv1.SubmitResponse
		if resp, err = stream.Recv(); err == nil {
			err = p.check(ctx, m, resp.GetJob())
		}
		if err == nil {
			err = s.Answer(resp)
		}
	}
	why := broken.Load()
	err = over(to.end(err))
	s.Stop()
	sending.Wait()
	if err != nil && why != nil {
		return *why
	}
	return err
}

// sendRest passes the rest of a submission on. io.EOF is the other coordinator's end of the call, whose reason Recv returns.
func sendRest(stream headwaterv1.CoordinatorService_SubmitClient, s jobs.Submission) error {
	for {
		message, memory, err := s.Next()
		if errors.Is(err, io.EOF) {
			return stream.CloseSend()
		}
		if err != nil {
			return err
		}
		if err := rpc.SendBulk(stream, message, memory); err != nil {
			return err
		}
	}
}
