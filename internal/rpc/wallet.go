package rpc

import (
	"context"
	"crypto/tls"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"headwater.example/internal/capability"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

const (
	// renewAfter is the part of its life after which a capability is renewed: a third, so that the clock of a worker may be half a life
	// ahead of the coordinator's, and a coordinator may be away for a while.
	renewAfter = 3
	// grantTimeout bounds a question for a capability, grantPause is until the next one if it failed.
	grantTimeout = 10 * time.Second
	grantPause   = 2 * time.Second
)

// wallet has the capability that a client with a token shows workers, and the key that it is bound to. Both are of one Security.
type wallet struct {
	key tls.Certificate
	now func() time.Time

	asking chan struct{} // one element: the right to ask for another one

	mu    sync.Mutex // guards what follows
	from  headwaterv1.ClusterServiceClient
	shown string
	since time.Time     // when it was asked for
	life  time.Duration // from then on
}

func newWallet(now func() time.Time) (*wallet, error) {
	key, err := capability.NewKey()
	w := &wallet{key: key, now: now, asking: make(chan struct{}, 1)}
	w.asking <- struct{}{}
	return w, err
}

// GrantBy says at which coordinator a client with a token asks for the capabilities that it shows workers. Call it before workers are
// spoken to.
func (s *Security) GrantBy(coordinator grpc.ClientConnInterface) {
	if s == nil || s.wallet == nil {
		return
	}
	s.wallet.mu.Lock()
	defer s.wallet.mu.Unlock()
	s.wallet.from = headwaterv1.NewClusterServiceClient(coordinator)
}

// showsCapabilities tells whether a peer is shown capabilities.
func (s *Security) showsCapabilities(to Peer) bool {
	return s != nil && s.wallet != nil && expect(to).Worker != ""
}

// held returns the capability, "" if there is none that holds, and when to ask for another one.
func (w *wallet) held() (shown string, due time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.now().Before(w.since.Add(w.life)) {
		return "", w.since
	}
	return w.shown, w.since.Add(w.life / renewAfter)
}

// show returns the capability, and asks for one if there is none that holds.
func (w *wallet) show(ctx context.Context) (string, error) {
	if shown, _ := w.held(); shown != "" {
		return shown, nil
	}
	return w.ask(ctx)
}

// ask asks for another capability, unless somebody else has just done so.
func (w *wallet) ask(ctx context.Context) (string, error) {
	select {
	case <-w.asking:
		defer func() { w.asking <- struct{}{} }()
	case <-ctx.Done():
		return "", status.FromContextError(ctx.Err()).Err()
	}
	if shown, due := w.held(); shown != "" && w.now().Before(due) {
		return shown, nil
	}
	w.mu.Lock()
	from := w.from
	w.mu.Unlock()
	if from == nil {
		return "", status.Error(codes.Unauthenticated, "there is no coordinator to ask for a capability")
	}
	ctx, cancel := context.WithTimeout(ctx, grantTimeout)
	defer cancel()
	key, began := capability.KeyOf(w.key.Leaf), w.now()
	resp, err := from.GrantCapability(ctx, &headwaterv1.GrantCapabilityRequest{Key: key[:]})
	if err != nil {
		s := status.Convert(err)
		if s.Code() == codes.Unimplemented {
			return "", status.Error(codes.FailedPrecondition, "workers are spoken to with a token by protocol 1.4, and the coordinator's is older")
		}
		return "", status.Errorf(s.Code(), "ask the coordinator for a capability: %s", s.Message())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shown, w.since, w.life = string(resp.GetCapability()), began, durationOf(resp.GetLife())
	return w.shown, nil
}

func durationOf(d *durationpb.Duration) time.Duration {
	return min(max(d.AsDuration(), 0), capability.Life)
}

// capabilityCredentials make the calls to a worker show the client's capability.
type capabilityCredentials struct{ w *wallet }

func (c capabilityCredentials) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	info, _ := credentials.RequestInfoFromContext(ctx)
	if credentials.CheckSecurityLevel(info.AuthInfo, credentials.PrivacyAndIntegrity) != nil {
		return nil, nil // over a Unix socket, which is its owner's alone
	}
	shown, err := c.w.show(ctx)
	if err != nil {
		return nil, err
	}
	return map[string]string{capabilityKey: shown}, nil
}

// RequireTransportSecurity would refuse Unix sockets.
func (capabilityCredentials) RequireTransportSecurity() bool { return false }

// renew keeps the capability that workers are shown a good one until ctx ends.
func (c *Conns) renew(ctx context.Context) {
	for {
		timer := time.NewTimer(c.renewDue(ctx))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// renewDue renews the capability if it is time, and shows the new one on all connections to workers, so that what runs there goes on. It
// returns when to look again.
func (c *Conns) renewDue(ctx context.Context) time.Duration {
	w := c.security.wallet
	shown, due := w.held()
	if !due.After(w.now()) {
		var err error
		if shown, err = w.ask(ctx); err != nil {
			return grantPause
		}
		_, due = w.held()
	}
	c.mu.Lock()
	told := c.told == shown
	c.told = shown
	c.mu.Unlock()
	if !told {
		c.showAll(ctx)
	}
	return max(due.Sub(w.now()), grantPause)
}

// showAll makes a call to each worker that is connected, which shows the newest capability.
func (c *Conns) showAll(ctx context.Context) {
	var workers []*Conn
	c.mu.Lock()
	for peer, conn := range c.conns {
		if c.security.showsCapabilities(peer) && conn.GetState() == connectivity.Ready {
			conn.users++
			workers = append(workers, conn)
		}
	}
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, grantTimeout)
	defer cancel()
	var calls sync.WaitGroup
	for _, conn := range workers {
		calls.Go(func() {
			defer conn.Release()
			// A connection that broke has nothing to renew, and a worker that hangs is found by others.
			_, _ = healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
		})
	}
	calls.Wait()
}
