// Package peers makes the coordinators of a cluster look like one to who asks about jobs. A job belongs to the coordinator that took it,
// which its id names.
//
// The way of a call about a job: place says whose the job is, by its id, or by asking the others if it is named by a key or a content hash.
// A call about another coordinator's job is passed on to that one (pass.go), for the same caller, and is not passed on again: whoever gets
// it answers for itself alone. A list is that of all coordinators, merged (list.go). What the others have is asked for every second and
// remembered, also over a restart (memory.go): the jobs of a coordinator that does not answer are listed as unreachable, and are not gone.
//
// For whom a call is made is said as coordinators say it of all calls (rpc.As), so only the holder of a coordinator's certificate is
// believed. Both coordinators look whether the job is the caller's.
package peers

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

const (
	// maxCoordinators bounds the other coordinators that are asked, and those that are remembered.
	maxCoordinators = 16
	// maxPassed bounds the calls that are passed on at once, without bytes of jobs; maxBulk those with them, results and submissions;
	// and maxLists the lists that are merged at once.
	maxPassed, maxBulk, maxLists = 256, 32, 8
	// passWindow is what another coordinator may send on a call that is not read yet, and connWindow on all calls to it.
	passWindow, connWindow = 256 << 10, 16 << 20
	// askTimeout is how long another coordinator may take to say what it has. One that hangs is found out earlier.
	askTimeout = 5 * time.Second
)

// Config is what Peers are made with.
type Config struct {
	Name     string // of this coordinator
	DataDir  string // where what the others have is remembered
	View     membership.View
	Logger   *slog.Logger
	Security *rpc.Security
	KeepFor  time.Duration    // how long jobs of a coordinator are remembered that does not answer
	Now      func() time.Time // clock; nil is time.Now
}

// local is the service of this coordinator's own jobs.
type local = headwaterv1.CoordinatorServiceServer

// Peers are the other coordinators of a cluster. They implement headwater.v1.CoordinatorService for the jobs of all of them, Submit and
// Status apart, which are the local one's.
type Peers struct {
	Config
	local
	conns  *rpc.Conns
	memory *memory

	passed, bulk, lists chan struct{} // an element for each that is under way
}

// New makes Peers. Own is called before any call is served.
func New(c Config) *Peers {
	if c.Now == nil {
		c.Now = time.Now
	}
	options := append(rpc.DialOptions(), grpc.WithInitialWindowSize(passWindow), grpc.WithInitialConnWindowSize(connWindow))
	p := &Peers{
		Config: c, conns: rpc.NewConns(c.Security, options...),
		passed: make(chan struct{}, maxPassed), bulk: make(chan struct{}, maxBulk), lists: make(chan struct{}, maxLists),
	}
	var err error
	if p.memory, err = readMemory(c.DataDir, c.Now()); err != nil {
		c.Logger.Warn("what other coordinators had before this start is not known", "error", err)
	}
	return p
}

// Own says who serves this coordinator's own jobs.
func (p *Peers) Own(own local) { p.local = own }

// Run keeps the connections to the other coordinators, and remembers what they have, until ctx ends.
func (p *Peers) Run(ctx context.Context) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var kept rpc.Kept
	defer kept.Set(p.conns)
	var written time.Time
	for {
		others := p.others()
		all := make([]rpc.Peer, len(others))
		for i, m := range others {
			all[i] = peer(m)
		}
		kept.Set(p.conns, all...)
		p.poll(ctx, others)
		if time.Since(written) >= writeEvery || ctx.Err() != nil {
			if p.memory.write(p.DataDir, p.Logger) {
				written = time.Now()
			}
		}
		if ctx.Err() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// Close ends the connections. Call it after Run and the server have ended.
func (p *Peers) Close() error { return p.conns.Close() }

// others are the other coordinators that might be there.
func (p *Peers) others() []membership.Member {
	all := slices.DeleteFunc(p.View.Members(), func(m membership.Member) bool { return m.Role != membership.RoleCoordinator || m.Name == p.Name })
	return all[:min(len(all), maxCoordinators)]
}

func peer(m membership.Member) rpc.Peer {
	return rpc.Peer{Name: m.Name, Address: m.Address, Coordinator: true}
}

// Owner returns the name of the coordinator in a job's id; "" if it is no id of a job.
func Owner(id string) string {
	at := len(id) - ulid.EncodedSize - 1
	if at < 1 || id[at] != '-' {
		return ""
	}
	if _, err := ulid.ParseStrict(id[at+1:]); err != nil {
		return ""
	}
	return id[:at]
}

// alone tells whether this coordinator answers a call for itself: it was passed on, or nobody's jobs are asked for.
func alone(ctx context.Context) bool { return rpc.PassedOn(ctx) || rpc.CallerOf(ctx).Nobody() }

// place says whose a job is that a caller names by its id, content hash or key, and its id there; nobody is this coordinator. Of several
// that a hash or a key names it is one of this coordinator; else, as within one, that of the highest rank, and then the newest.
func (p *Peers) place(ctx context.Context, name string, rank func(*headwaterv1.Job) int) (at *membership.Member, id string, err error) {
	if alone(ctx) {
		return nil, name, nil
	}
	caller, others := rpc.CallerOf(ctx), p.others()
	if of := Owner(name); of == p.Name {
		return nil, name, nil
	} else if of != "" {
		if i := slices.IndexFunc(others, func(m membership.Member) bool { return m.Name == of }); i >= 0 {
			return &others[i], name, nil
		}
		if heard, known := p.memory.heard(of); known {
			return nil, name, rpc.Unreachable(of, "it is not in the cluster now", heard)
		}
	}
	local, err := p.local.GetJob(ctx, &headwaterv1.GetJobRequest{Id: name})
	if status.Code(err) != codes.NotFound {
		return nil, local.GetJob().GetId(), err
	}
	found, silent := p.seek(ctx, name, others)
	var best *foundAt
	for i := range found {
		f := &found[i]
		if best == nil || cmp.Or(cmp.Compare(rank(f.job), rank(best.job)), f.job.GetCreated().AsTime().Compare(best.job.GetCreated().AsTime())) > 0 {
			best = f
		}
	}
	if best != nil {
		return &best.at, best.job.GetId(), nil
	}
	if of, heard, ok := p.memory.named(caller, name, others, silent); ok {
		return nil, name, rpc.Unreachable(of, "it does not answer", heard)
	}
	if len(silent) > 0 {
		return nil, name, status.Errorf(codes.NotFound, "%s; coordinator %s does not answer, and may have it", status.Convert(err).Message(), silent[0])
	}
	return nil, name, err
}

// foundAt is a job that another coordinator has.
type foundAt struct {
	at  membership.Member
	job *headwaterv1.Job
}

// seek asks the other coordinators for a job, all at once, and says which did not answer.
func (p *Peers) seek(ctx context.Context, name string, others []membership.Member) (found []foundAt, silent []string) {
	jobs, errs := make([]*headwaterv1.Job, len(others)), make([]error, len(others))
	p.each(ctx, others, func(ctx context.Context, i int) {
		resp, err := pass(ctx, p, others[i], headwaterv1.CoordinatorServiceClient.GetJob, &headwaterv1.GetJobRequest{Id: name})
		jobs[i], errs[i] = resp.GetJob(), err
	})
	for i, m := range others {
		switch {
		case errs[i] == nil && p.check(ctx, m, jobs[i]) == nil:
			found = append(found, foundAt{m, jobs[i]})
		case status.Code(errs[i]) == codes.Unavailable:
			silent = append(silent, m.Name)
		}
	}
	return found, silent
}

// each calls do for each of some coordinators, all at once, with a context that ends after askTimeout, and waits.
func (p *Peers) each(ctx context.Context, others []membership.Member, do func(ctx context.Context, i int)) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var tasks sync.WaitGroup
	for i, m := range others {
		tasks.Go(func() {
			_ = rpc.Guard(p.Logger, "asking coordinator "+m.Name, func() error { // its answer is missing then
				do(ctx, i)
				return nil
			})
		})
	}
	tasks.Wait()
}

// check refuses a job of another coordinator that is not its own, or not the caller's.
func (p *Peers) check(ctx context.Context, m membership.Member, job *headwaterv1.Job) error {
	switch {
	case Owner(job.GetId()) != m.Name:
		return status.Errorf(codes.Internal, "coordinator %s answers with a job that is not its own", m.Name)
	case !rpc.CallerOf(ctx).Owns(job.GetTenant()):
		return status.Errorf(codes.NotFound, "no job has the id, content hash or key that was asked for")
	}
	return nil
}

// take takes one of the places for calls that are passed on.
func take(places chan struct{}) (leave func(), err error) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	default:
		return nil, rpc.Full("%d such calls are passed on to other coordinators at once: try again", cap(places))
	}
}

// errSilent is the cause of a call's end whose coordinator hangs.
var errSilent = errors.New("it does not answer: it hangs, or the network to it is cut")
