package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/internal/address"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session/fanout"
	"headwater.example/internal/tenants"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// DefaultPort is the coordinator's port if an address names none.
const DefaultPort = 7600

// reconnectDelay is the pause before a reconnect to a lost coordinator.
const reconnectDelay = time.Second

// ReconnectWait is how long Wait tries to reach a lost coordinator: long enough for a restart.
const ReconnectWait = 30 * time.Second

// errShort says that a coordinator ended a stream too early.
var errShort = status.Error(codes.Unavailable, "the answer ended early")

// Client is a connection to one coordinator, and to the workers of direct sessions.
type Client struct {
	address string
	proxy   string // through which it is reached, or ""
	conn    *grpc.ClientConn
	service headwaterv1.CoordinatorServiceClient
	cluster headwaterv1.ClusterServiceClient
	conns   *fanout.Conns
	kept    rpc.Kept     // that to the coordinator
	lane    *fanout.Lane // which drives the sessions
	closed  atomic.Bool
	telling sync.WaitGroup // the coordinator of what this client has found
}

// DialOptions say how a client connects. The zero value is plain text within this machine, without a proxy.
type DialOptions struct {
	// TLSDir is the folder of the client's certificate, as `coord certs issue client NAME` makes it. A coordinator that other
	// machines reach asks for one. Its files are read again when they change.
	TLSDir string
	// Token is the tenant's token, as `coord tenants add NAME` prints it, and TokenFile a file that has it, which is read again for
	// each call; at most one is given. TLSDir then needs no certificate, only ca.crt. Workers never see the token: for direct sessions the
	// client asks the coordinator for capabilities.
	Token, TokenFile string
	// Insecure lets plain text go to other machines: a cluster whose processes were started with --insecure.
	Insecure bool
	// Proxy connects through the proxy that HTTPS_PROXY names, unless NO_PROXY names the address. Errors name the proxy.
	Proxy bool
	// HedgeShare is the most of all attends of direct sessions with copies that are asked of another worker as well, since the first
	// is late; 0 is 0.05, one of twenty, and a negative one asks none twice. The first answer is taken; all are equal in every bit.
	HedgeShare float64
	// GRPC are further options, for tests, for example another dialer.
	GRPC []grpc.DialOption
}

// Dial prepares a connection to the coordinator at host:port, host, or unix:/path, on this machine; the first call connects. It
// uses no proxy. DialWith reaches other machines. The only error is a wrong address.
func Dial(address string, opts ...grpc.DialOption) (*Client, error) {
	return DialWith(address, DialOptions{GRPC: opts})
}

// DialWith is Dial with options. Its error is a wrong address, or a folder of certificates that can't be read.
func DialWith(address string, o DialOptions) (*Client, error) {
	a, err := parseAddress(address)
	if err != nil {
		return nil, err
	}
	options, proxy := rpc.DialOptions(), ""
	if o.Proxy {
		options, proxy = rpc.ProxyDialOptions(), rpc.Proxy(a.String())
	}
	token, err := o.token()
	if err != nil {
		return nil, err
	}
	security, err := rpc.NewSecurity(rpc.SecurityConfig{Folder: o.TLSDir, Token: token, Insecure: o.Insecure, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	if err := security.Reaches(a, proxy != ""); err != nil {
		return nil, fmt.Errorf("coordinator: %w", err)
	}
	c, err := dial(a, proxy, security, append(options, o.GRPC...))
	if err == nil && o.HedgeShare != 0 {
		c.conns.HedgeShare = min(max(o.HedgeShare, 0), 1)
	}
	return c, err
}

// token says where the token comes from; nil if there is none.
func (o *DialOptions) token() (func() (string, error), error) {
	switch {
	case o.Token != "" && o.TokenFile != "":
		return nil, errors.New("both Token and TokenFile are given: leave out one of them")
	case o.Token != "":
		return func() (string, error) { return o.Token, nil }, tenants.Check(o.Token)
	case o.TokenFile != "":
		_, err := tenants.ReadToken(o.TokenFile)
		return func() (string, error) { return tenants.ReadToken(o.TokenFile) }, err
	}
	return nil, nil
}

func parseAddress(text string) (address.Address, error) {
	a, err := address.Parse(text, DefaultPort)
	if err != nil {
		return a, fmt.Errorf("coordinator: %w", err)
	}
	return a, nil
}

func dial(a address.Address, proxy string, security *rpc.Security, opts []grpc.DialOption) (*Client, error) {
	conn, err := grpc.NewClient(a.Target(), append(opts[:len(opts):len(opts)], security.Dial(rpc.Expectation{}), security.Sign(rpc.Expectation{}))...)
	if err != nil {
		return nil, fmt.Errorf("coordinator address %q: %w", a, err)
	}
	conns := fanout.NewConns(security, opts...)
	c := &Client{
		address: a.String(), proxy: proxy, conn: conn, service: headwaterv1.NewCoordinatorServiceClient(conn), cluster: headwaterv1.NewClusterServiceClient(conn),
		conns: conns, lane: fanout.NewLane(conns.NewName(), conns),
	}
	conns.Locate = c.locate
	security.GrantBy(conn)
	c.kept.Set(conns.Conns, rpc.Peer{Name: c.address, Address: c.address})
	conns.OnLeave = c.tell
	return c, nil
}

// Address returns the coordinator's address, host:port or unix:/path.
func (c *Client) Address() string { return c.address }

// Close ends the connections. Calls that are running and later calls fail with ErrClosed. Sessions stay on the cluster
// until their TTL.
func (c *Client) Close() error {
	c.closed.Store(true)
	c.lane.Close()
	c.telling.Wait()
	c.kept.Set(c.conns.Conns)
	return errors.Join(c.conns.Close(), c.conn.Close())
}

// Status describes the coordinator and its workers.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	resp, err := unary(ctx, c, "ask for the status", c.service.Status, &headwaterv1.StatusRequest{})
	if err != nil {
		return nil, err
	}
	return newStatus(resp), nil
}

// Get returns a job by id, content hash or key.
func (c *Client) Get(ctx context.Context, id string) (*Job, error) {
	resp, err := unary(ctx, c, "get job "+id, c.service.GetJob, &headwaterv1.GetJobRequest{Id: id})
	return newJob(resp.GetJob()), err
}

// listedJobs is how many jobs List asks for at once.
const listedJobs = 256

// List returns all jobs that the cluster's coordinators keep, newest first.
func (c *Client) List(ctx context.Context) (all []*Job, err error) {
	for req := (&headwaterv1.ListJobsRequest{Limit: listedJobs}); ; {
		resp, err := unary(ctx, c, "list jobs", c.service.ListJobs, req)
		if err != nil {
			return nil, err
		}
		for _, m := range resp.GetJobs() {
			all = append(all, newJob(m))
		}
		if n := len(resp.GetJobs()); !resp.GetMore() || n == 0 {
			return all, nil
		} else {
			last := resp.GetJobs()[n-1]
			req = &headwaterv1.ListJobsRequest{Limit: listedJobs, After: &headwaterv1.JobPlace{Created: last.GetCreated(), Id: last.GetId()}}
		}
	}
}

// Cancel cancels a job and returns it. If the job has ended, nothing changes.
func (c *Client) Cancel(ctx context.Context, id string) (*Job, error) {
	resp, err := unary(ctx, c, "cancel job "+id, c.service.CancelJob, &headwaterv1.CancelJobRequest{Id: id})
	return newJob(resp.GetJob()), err
}

// Delete deletes an ended job and its result, and returns the job. Its key is free again.
func (c *Client) Delete(ctx context.Context, id string) (*Job, error) {
	resp, err := unary(ctx, c, "delete job "+id, c.service.DeleteJob, &headwaterv1.DeleteJobRequest{Id: id})
	return newJob(resp.GetJob()), err
}

// unary makes one call and refuses a coordinator of another major version.
func unary[Q, R any](ctx context.Context, c *Client, doing string, call func(context.Context, *Q, ...grpc.CallOption) (*R, error), req *Q) (*R, error) {
	var header metadata.MD
	resp, err := call(ctx, req, grpc.Header(&header))
	if version := rpc.CheckHeader("coordinator "+c.address, header); version != nil {
		err = version
	}
	if err != nil {
		return nil, c.wrapAnswer(ctx, doing, err, header)
	}
	return resp, nil
}

// Watch calls changed with the job as it is now, and after each change until it has ended, and returns its last state.
// A broken connection is an error; see Wait.
func (c *Client) Watch(ctx context.Context, id string, changed func(*Job)) (*Job, error) {
	doing := "watch job " + id
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.service.WatchJob(ctx, &headwaterv1.WatchJobRequest{Id: id})
	if err != nil {
		return nil, c.wrap(doing, err)
	}
	var last *Job
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if last == nil || !last.Over() {
				return last, c.wrap(doing, errShort)
			}
			return last, nil
		}
		if err == nil && last == nil {
			err = c.checkStream(stream)
		}
		switch {
		case err != nil && last == nil:
			return nil, c.firstError(ctx, doing, err, stream)
		case err != nil:
			return last, c.wrap(doing, err)
		}
		last = newJob(resp.GetJob())
		if changed != nil {
			changed(last)
		}
	}
}

// Wait is a Watch that survives a restart of the coordinator, and of the one whose job it is: it reconnects until ReconnectWait has passed without
// news. If the job ends without a result, the error is *JobError.
func (c *Client) Wait(ctx context.Context, id string, changed func(*Job)) (*Job, error) {
	heard := time.Now()
	for {
		job, err := c.Watch(ctx, id, func(job *Job) {
			heard = time.Now()
			if changed != nil {
				changed(job)
			}
		})
		switch {
		case (errors.Is(err, ErrUnreachable) || elsewhere(err) && time.Since(heard) < ReconnectWait) && ctx.Err() == nil:
			if !c.reconnect(ctx, heard.Add(ReconnectWait)) {
				return job, err
			}
		case err != nil:
			return job, err
		case job.State != JobSucceeded:
			return job, &JobError{Job: job}
		default:
			return job, nil
		}
	}
}

// elsewhere tells whether a job's coordinator did not answer, and another one has said so.
func elsewhere(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Coordinator != ""
}

// reconnect waits until the coordinator can be asked again, and reports whether it can. It pauses first, because a
// coordinator that is stopping is still connected.
func (c *Client) reconnect(ctx context.Context, until time.Time) bool {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	select {
	case <-ctx.Done():
		return false
	case <-time.After(reconnectDelay):
	}
	for {
		state := c.conn.GetState()
		if state == connectivity.Ready || state == connectivity.Shutdown { // where it is closed, the next call says so
			return true
		}
		c.conn.Connect()
		if !c.conn.WaitForStateChange(ctx, state) {
			return false
		}
	}
}

// checkStream refuses a coordinator of another major version once a stream's header has arrived.
func (c *Client) checkStream(stream grpc.ClientStream) error {
	header, err := stream.Header()
	if err != nil {
		return err
	}
	return rpc.CheckHeader("coordinator "+c.address, header)
}
