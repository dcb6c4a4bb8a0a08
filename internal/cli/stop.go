package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"headwater.example/internal/membership"
)

// How long a stop may take. Kubernetes kills after 30 s.
const (
	// leaveTimeout is how long a stopping process tries to say that it leaves.
	leaveTimeout = time.Second
	// stopTimeout is how long it waits for what it has accepted, the leave in it. A worker that gives its sessions away first has
	// restTimeout for that.
	stopTimeout = 22 * time.Second
	restTimeout = stopTimeout - defaultDrainTimeout
	// hardStop is how much later it ends in any case.
	hardStop = 5 * time.Second
)

// service is a process that serves until its context ends.
type service struct {
	log    *slog.Logger
	server *grpc.Server
	health *health.Server
	view   membership.View
	within time.Duration // of a stop

	departs func(context.Context) // what comes first, while all is served; nil is nothing
}

// serve answers calls until ctx ends; then it departs, says so, lets drain end what was accepted, leaves and stops. When the time is
// over it closes every connection.
func (s *service) serve(ctx context.Context, listener *connections, drain func(context.Context) error) error {
	served := make(chan error, 1)
	go func() { served <- serveUntilStopped(s.server, listener) }()
	var err error
	select {
	case err = <-served:
		served <- nil
	case <-ctx.Done():
	}
	s.log.Info("stopping")
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.within)
	defer cancel()
	if s.departs != nil && err == nil {
		s.departs(within)
	}
	s.health.Shutdown()
	// Those who look for it should know before they are refused. When they stop as well, nobody is left to be told.
	leaving, left := context.WithTimeout(within, leaveTimeout)
	defer left()
	if err := s.view.Close(leaving); err != nil {
		s.log.Info("nobody was told of the stop", "error", err)
	}
	err = errors.Join(err, drain(within))
	// A connection whose handshake has not ended is waited for by Stop as well: only its end helps.
	stopped := context.AfterFunc(within, func() {
		listener.closeAll()
		s.server.Stop()
	})
	s.server.GracefulStop()
	stopped()
	return errors.Join(err, <-served)
}

// serveUntilStopped serves. If the server was stopped before it began to serve, that is no error.
func serveUntilStopped(server *grpc.Server, listener net.Listener) error {
	if err := server.Serve(listener); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// endHard ends the process after a stop that lasts too long, hardStop longer than it may, unless done is called before.
func endHard(ctx context.Context, within time.Duration, log *slog.Logger) (done func()) {
	ended := make(chan struct{})
	go func() {
		select {
		case <-ctx.Done():
		case <-ended:
			return
		}
		timer := time.NewTimer(within + hardStop)
		defer timer.Stop()
		select {
		case <-timer.C:
			log.Error(fmt.Sprintf("the stop did not end within %v; the process ends now", within+hardStop))
			os.Exit(exitFailed)
		case <-ended:
		}
	}()
	return sync.OnceFunc(func() { close(ended) })
}

// connections is a listener that knows its connections.
type connections struct {
	net.Listener

	mu     sync.Mutex // guards what follows
	open   map[*connection]struct{}
	closed bool
}

type connection struct {
	net.Conn
	of *connections
}

func newConnections(l net.Listener) *connections {
	return &connections{Listener: l, open: map[*connection]struct{}{}}
}

// Accept waits for a connection.
func (c *connections) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	one := &connection{Conn: conn, of: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = conn.Close() // nobody is answered any more
		return one, nil
	}
	c.open[one] = struct{}{}
	return one, nil
}

// closeAll closes all connections, and those that are accepted later.
func (c *connections) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for one := range c.open {
		_ = one.Conn.Close() // nobody is answered any more
	}
	clear(c.open)
}

// Close closes the connection.
func (c *connection) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
