package peers_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"headwater.example/coordinator/peers"
	"headwater.example/internal/certs"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

const (
	annsJob = "a-01ARZ3NDEKTSV4RRFFQ69G5FAV"
	bobsJob = "a-01BX5ZZKBKACTAV9WEVGEMMVRZ"
)

// owner is a coordinator that has jobs of two tenants, and counts what it is asked.
type owner struct {
	headwaterv1.UnimplementedCoordinatorServiceServer
	calls, passed atomic.Int64
}

var owned = []*headwaterv1.Job{
	{Id: annsJob, Tenant: "ann", Key: "k", Created: timestamppb.New(time.Unix(2, 0)), State: headwaterv1.JobState_JOB_STATE_RUNNING},
	{Id: bobsJob, Tenant: "bob", Key: "k", Created: timestamppb.New(time.Unix(1, 0)), State: headwaterv1.JobState_JOB_STATE_RUNNING},
}

func (o *owner) GetJob(ctx context.Context, r *headwaterv1.GetJobRequest) (*headwaterv1.GetJobResponse, error) {
	o.calls.Add(1)
	if rpc.PassedOn(ctx) {
		o.passed.Add(1)
	}
	for _, job := range owned {
		if (job.GetId() == r.GetId() || job.GetKey() == r.GetId()) && rpc.CallerOf(ctx).Owns(job.GetTenant()) {
			return &headwaterv1.GetJobResponse{Job: job}, nil
		}
	}
	return nil, status.Error(codes.NotFound, "no such job")
}

func (o *owner) ListJobs(ctx context.Context, r *headwaterv1.ListJobsRequest) (*headwaterv1.ListJobsResponse, error) {
	all := &headwaterv1.ListJobsResponse{}
	for _, job := range owned {
		if rpc.CallerOf(ctx).Owns(job.GetTenant()) {
			all.Jobs = append(all.Jobs, job)
		}
	}
	return all, nil
}

func (o *owner) Status(ctx context.Context, _ *headwaterv1.StatusRequest) (*headwaterv1.StatusResponse, error) {
	all, err := o.ListJobs(ctx, &headwaterv1.ListJobsRequest{})
	return &headwaterv1.StatusResponse{Jobs: []*headwaterv1.StateCount{{State: headwaterv1.JobState_JOB_STATE_RUNNING, Count: uint64(len(all.GetJobs()))}}}, err
}

// none is a coordinator without jobs of its own.
type none struct {
	headwaterv1.UnimplementedCoordinatorServiceServer
}

func (none) GetJob(context.Context, *headwaterv1.GetJobRequest) (*headwaterv1.GetJobResponse, error) {
	return nil, status.Error(codes.NotFound, "no such job")
}

func (none) ListJobs(context.Context, *headwaterv1.ListJobsRequest) (*headwaterv1.ListJobsResponse, error) {
	return &headwaterv1.ListJobsResponse{}, nil
}

// town is a cluster's authority, and its members.
type town struct {
	*testing.T
	authority *certs.Authority
	folder    string

	mu      sync.Mutex
	members []membership.Member
}

func (w *town) Members() []membership.Member {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.members)
}

func (*town) Changed() <-chan struct{}    { return nil }
func (*town) Close(context.Context) error { return nil }

func (w *town) security(role certs.Role, name string) *rpc.Security {
	w.Helper()
	id := certs.Identity{Role: role, Name: name}
	folder := w.authority.FolderOf(id)
	if _, err := w.authority.Issue(id, folder, time.Hour); err != nil {
		w.Fatal(err)
	}
	s, err := rpc.NewSecurity(rpc.SecurityConfig{Folder: folder, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.Fatal(err)
	}
	return s
}

// serve serves a coordinator until stop is called, or the test ends.
func (w *town) serve(s *rpc.Security, service headwaterv1.CoordinatorServiceServer) (address string, stop func()) {
	w.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	server := grpc.NewServer(rpc.ServerOptions(rpc.Secure(s))...)
	headwaterv1.RegisterCoordinatorServiceServer(server, service)
	rpc.Register(server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(lis) // ends with Stop
	}()
	stop = sync.OnceFunc(func() {
		server.Stop()
		<-done
	})
	w.Cleanup(stop)
	return lis.Addr().String(), stop
}

// dial connects to a coordinator as who has a certificate.
func (w *town) dial(address string, s *rpc.Security) headwaterv1.CoordinatorServiceClient {
	w.Helper()
	conn, err := grpc.NewClient(address, append(rpc.DialOptions(), s.Dial(rpc.Expectation{}))...)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		if err := conn.Close(); err != nil {
			w.Error(err)
		}
	})
	return headwaterv1.NewCoordinatorServiceClient(conn)
}

// counting answers a status with what other coordinators have.
type counting struct{ *peers.Peers }

func (c counting) Status(ctx context.Context, _ *headwaterv1.StatusRequest) (*headwaterv1.StatusResponse, error) {
	counts, err := c.Counts(ctx)
	resp := &headwaterv1.StatusResponse{}
	for state, n := range counts {
		resp.Jobs = append(resp.Jobs, &headwaterv1.StateCount{State: state, Count: n})
	}
	return resp, err
}

// TestATenantSeesItsOwnThroughAnotherCoordinator: a call is passed on for its caller, once, and for nobody else; whoever has proven nothing is
// not taken for the coordinator that passes the call on.
func TestATenantSeesItsOwnThroughAnotherCoordinator(t *testing.T) {
	t.Parallel()
	w := &town{T: t, folder: filepath.Join(t.TempDir(), "certs")}
	var err error
	if w.authority, err = certs.Init(w.folder, certs.AuthorityLife, time.Now); err != nil {
		t.Fatal(err)
	}
	has := &owner{}
	a, stopA := w.serve(w.security(certs.Coordinator, "a"), has)
	own := w.security(certs.Coordinator, "b")
	made := func(folder string) *peers.Peers {
		p := peers.New(peers.Config{Name: "b", DataDir: folder, View: w, Logger: slog.New(slog.DiscardHandler), Security: own, KeepFor: time.Hour})
		p.Own(none{})
		t.Cleanup(func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
		return p
	}
	folder := t.TempDir()
	p := made(folder)
	b, _ := w.serve(own, counting{p})
	w.members = []membership.Member{{Name: "a", Role: membership.RoleCoordinator, Address: a}, {Name: "b", Role: membership.RoleCoordinator, Address: b}}
	ann, relay, admin := w.dial(b, w.security(certs.Client, "ann")), w.dial(b, w.security(certs.Relay, "r")), w.dial(b, w.security(certs.Admin, "root"))
	get := func(c headwaterv1.CoordinatorServiceClient, ctx context.Context, id string) (string, codes.Code) {
		resp, err := c.GetJob(ctx, &headwaterv1.GetJobRequest{Id: id})
		return resp.GetJob().GetId(), status.Code(err)
	}
	listed := func(c headwaterv1.CoordinatorServiceClient) (ids []string) {
		t.Helper()
		resp, err := c.ListJobs(t.Context(), &headwaterv1.ListJobsRequest{Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		for _, job := range resp.GetJobs() {
			ids = append(ids, job.GetId())
		}
		return ids
	}
	for _, c := range []struct {
		what   string
		client headwaterv1.CoordinatorServiceClient
		tenant string
		id     string
		job    string
		code   codes.Code
	}{
		{"its own", ann, "", annsJob, annsJob, codes.OK},
		{"its own, by its key", ann, "", "k", annsJob, codes.OK},
		{"another tenant's", ann, "", bobsJob, "", codes.NotFound},
		{"another tenant's, which it says that it is", ann, "bob", bobsJob, "", codes.NotFound},
		{"nobody's, of a relay", relay, "", annsJob, "", codes.NotFound},
		{"a tenant's, of its relay", relay, "ann", annsJob, annsJob, codes.OK},
		{"any, of an admin", admin, "", bobsJob, bobsJob, codes.OK},
	} {
		ctx := t.Context()
		if c.tenant != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "headwater-tenant", c.tenant)
		}
		if job, code := get(c.client, ctx, c.id); job != c.job || code != c.code {
			t.Errorf("%s: %q, %v", c.what, job, code)
		}
	}
	if has.passed.Load() != has.calls.Load() || has.calls.Load() == 0 {
		t.Errorf("%d of %d calls say that they were passed on", has.passed.Load(), has.calls.Load())
	}
	before := has.calls.Load()
	if get(relay, t.Context(), annsJob); has.calls.Load() != before {
		t.Error("a call for nobody is passed on, as this coordinator's own")
	}
	if _, code := get(admin, metadata.AppendToOutgoingContext(t.Context(), "headwater-passed-on", "c"), annsJob); code != codes.NotFound || has.calls.Load() != before {
		t.Errorf("what was passed on is passed on again: %v", code)
	}
	if ids := listed(ann); !slices.Equal(ids, []string{annsJob}) {
		t.Errorf("a tenant lists %v", ids)
	}
	if ids := listed(relay); len(ids) != 0 {
		t.Errorf("nobody lists %v", ids)
	}
	if ids := listed(admin); !slices.Equal(ids, []string{annsJob, bobsJob}) {
		t.Errorf("an admin lists %v", ids)
	}

	counted := func(c headwaterv1.CoordinatorServiceClient, state headwaterv1.JobState, want uint64) {
		t.Helper()
		resp, err := c.Status(t.Context(), &headwaterv1.StatusRequest{})
		n := uint64(0)
		for _, one := range resp.GetJobs() {
			if n += one.GetCount(); one.GetState() != state && one.GetCount() > 0 {
				t.Errorf("%v", one)
			}
		}
		if err != nil || n != want {
			t.Errorf("%d jobs are counted, not %d: %v", n, want, err)
		}
	}
	counted(ann, headwaterv1.JobState_JOB_STATE_RUNNING, 1)
	counted(relay, headwaterv1.JobState_JOB_STATE_RUNNING, 0)
	counted(admin, headwaterv1.JobState_JOB_STATE_RUNNING, 2)

	stopA() // what it has is remembered since the admin's list
	counted(ann, headwaterv1.JobState_JOB_STATE_UNREACHABLE, 1)
	counted(relay, headwaterv1.JobState_JOB_STATE_UNREACHABLE, 0)
	counted(admin, headwaterv1.JobState_JOB_STATE_UNREACHABLE, 2)
	ended, end := context.WithCancel(t.Context())
	end()
	p.Run(ended) // writes it down
	restarted, _ := w.serve(own, made(folder))
	for _, at := range []string{b, restarted} {
		ann := w.dial(at, w.security(certs.Client, "ann"))
		resp, err := ann.ListJobs(t.Context(), &headwaterv1.ListJobsRequest{})
		if err != nil || len(resp.GetJobs()) != 1 || resp.GetJobs()[0].GetState() != headwaterv1.JobState_JOB_STATE_UNREACHABLE || resp.GetJobs()[0].GetHeard() == nil {
			t.Errorf("of a coordinator that is gone a tenant lists %v, %v", resp, err)
		}
		for _, id := range []string{annsJob, "k"} {
			_, err := ann.GetJob(t.Context(), &headwaterv1.GetJobRequest{Id: id})
			if s := status.Convert(err); s.Code() != codes.Unavailable || rpc.UnreachableIn(s) != "a" {
				t.Errorf("%q of a coordinator that is gone: %v", id, err)
			}
		}
	}
}

// liar is a coordinator that answers each call with the same job, whoever asks for which.
type liar struct {
	headwaterv1.UnimplementedCoordinatorServiceServer
	job atomic.Pointer[headwaterv1.Job]
}

func (l *liar) GetJob(context.Context, *headwaterv1.GetJobRequest) (*headwaterv1.GetJobResponse, error) {
	return &headwaterv1.GetJobResponse{Job: l.job.Load()}, nil
}

func (l *liar) CancelJob(context.Context, *headwaterv1.CancelJobRequest) (*headwaterv1.CancelJobResponse, error) {
	return &headwaterv1.CancelJobResponse{Job: l.job.Load()}, nil
}

func (l *liar) DeleteJob(context.Context, *headwaterv1.DeleteJobRequest) (*headwaterv1.DeleteJobResponse, error) {
	return &headwaterv1.DeleteJobResponse{Job: l.job.Load()}, nil
}

func (l *liar) ListJobs(context.Context, *headwaterv1.ListJobsRequest) (*headwaterv1.ListJobsResponse, error) {
	return &headwaterv1.ListJobsResponse{Jobs: []*headwaterv1.Job{l.job.Load()}}, nil
}

func (l *liar) WatchJob(_ *headwaterv1.WatchJobRequest, stream headwaterv1.CoordinatorService_WatchJobServer) error {
	return stream.Send(&headwaterv1.WatchJobResponse{Job: l.job.Load()})
}

func (l *liar) DownloadResult(_ *headwaterv1.DownloadResultRequest, stream headwaterv1.CoordinatorService_DownloadResultServer) error {
	return stream.Send(&headwaterv1.DownloadResultResponse{Job: l.job.Load(), Data: []byte("x")})
}

// TestAnswersOfAnotherCoordinatorAreChecked: a job that is not that coordinator's own, or another tenant's, is told to nobody, by whatever call,
// and is not remembered.
func TestAnswersOfAnotherCoordinatorAreChecked(t *testing.T) {
	t.Parallel()
	w := &town{T: t, folder: filepath.Join(t.TempDir(), "certs")}
	var err error
	if w.authority, err = certs.Init(w.folder, certs.AuthorityLife, time.Now); err != nil {
		t.Fatal(err)
	}
	lies := &liar{}
	a, _ := w.serve(w.security(certs.Coordinator, "a"), lies)
	own := w.security(certs.Coordinator, "b")
	p := peers.New(peers.Config{Name: "b", DataDir: t.TempDir(), View: w, Logger: slog.New(slog.DiscardHandler), Security: own, KeepFor: time.Hour})
	p.Own(none{})
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	b, _ := w.serve(own, p)
	w.members = []membership.Member{{Name: "a", Role: membership.RoleCoordinator, Address: a}}
	ann := w.dial(b, w.security(certs.Client, "ann"))
	calls := map[string]func() (string, error){
		"get": func() (string, error) {
			resp, err := ann.GetJob(t.Context(), &headwaterv1.GetJobRequest{Id: annsJob})
			return resp.GetJob().GetId(), err
		},
		"cancel": func() (string, error) {
			resp, err := ann.CancelJob(t.Context(), &headwaterv1.CancelJobRequest{Id: annsJob})
			return resp.GetJob().GetId(), err
		},
		"delete": func() (string, error) {
			resp, err := ann.DeleteJob(t.Context(), &headwaterv1.DeleteJobRequest{Id: annsJob})
			return resp.GetJob().GetId(), err
		},
		"watch": func() (string, error) {
			stream, err := ann.WatchJob(t.Context(), &headwaterv1.WatchJobRequest{Id: annsJob})
			if err != nil {
				return "", err
			}
			resp, err := stream.Recv()
			return resp.GetJob().GetId(), err
		},
		"download": func() (string, error) {
			stream, err := ann.DownloadResult(t.Context(), &headwaterv1.DownloadResultRequest{Id: annsJob})
			if err != nil {
				return "", err
			}
			resp, err := stream.Recv()
			return resp.GetJob().GetId(), err
		},
	}
	for _, c := range []struct {
		what string
		job  *headwaterv1.Job
		code codes.Code
		id   string
	}{
		{"its own", &headwaterv1.Job{Id: annsJob, Tenant: "ann"}, codes.OK, annsJob},
		{"another coordinator's", &headwaterv1.Job{Id: "c" + annsJob[1:], Tenant: "ann"}, codes.Internal, ""},
		{"no job's id", &headwaterv1.Job{Id: "a-1", Tenant: "ann"}, codes.Internal, ""},
		{"another tenant's", &headwaterv1.Job{Id: annsJob, Tenant: "bob"}, codes.NotFound, ""},
	} {
		lies.job.Store(c.job)
		for name, call := range calls {
			if id, err := call(); id != c.id || status.Code(err) != c.code {
				t.Errorf("%s: %s: %q, %v", c.what, name, id, err)
			}
		}
		resp, err := ann.ListJobs(t.Context(), &headwaterv1.ListJobsRequest{})
		if err != nil || (len(resp.GetJobs()) == 1) != (c.code == codes.OK) {
			t.Errorf("%s: list: %v, %v", c.what, resp.GetJobs(), err)
		}
		if _, err := ann.GetJob(t.Context(), &headwaterv1.GetJobRequest{Id: "k"}); status.Code(err) != codes.NotFound && c.code != codes.OK {
			t.Errorf("%s: by its key: %v", c.what, err)
		}
	}
}

// TestOnlyTheCoordinatorOfTheNameIsAsked: a member that says that it is a coordinator and has another's certificate is told nothing.
func TestOnlyTheCoordinatorOfTheNameIsAsked(t *testing.T) {
	t.Parallel()
	w := &town{T: t, folder: filepath.Join(t.TempDir(), "certs")}
	var err error
	if w.authority, err = certs.Init(w.folder, certs.AuthorityLife, time.Now); err != nil {
		t.Fatal(err)
	}
	for i, s := range []*rpc.Security{w.security(certs.Coordinator, "c"), w.security(certs.Relay, "a")} {
		has := &owner{}
		address, _ := w.serve(s, has)
		w.members = []membership.Member{{Name: "a", Role: membership.RoleCoordinator, Address: address}}
		p := peers.New(peers.Config{Name: "b", DataDir: t.TempDir(), View: w, Logger: slog.New(slog.DiscardHandler), Security: w.security(certs.Coordinator, "b"), KeepFor: time.Hour})
		p.Own(none{})
		_, err := p.GetJob(rpc.As(t.Context(), rpc.Anyone), &headwaterv1.GetJobRequest{Id: annsJob})
		if s := status.Convert(err); s.Code() != codes.Unavailable || rpc.UnreachableIn(s) != "a" || has.calls.Load() != 0 {
			t.Errorf("case %d: %v, after %d calls", i, err, has.calls.Load())
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}
