package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// defaultDrainTimeout is the default of --drain-timeout. With the rest of a stop it is less than the 30 s after which Kubernetes kills.
const defaultDrainTimeout = 10 * time.Second

// departure is how a worker that is asked to end gives its sessions to others while it still serves: it asks a coordinator to drain
// it.
type departure struct {
	name     string
	view     membership.View
	security *rpc.Security
	within   time.Duration // 0 is not at all
	log      *slog.Logger
	holds    func() int // sessions
}

// run returns when the worker holds no sessions, when nobody can take what it holds, or when the time is over. A stop goes on in
// any case.
func (d *departure) run(ctx context.Context) {
	if d.within == 0 || d.holds() == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, d.within)
	defer cancel()
	began, before := time.Now(), d.holds()
	err := errors.New("no coordinator is known")
	for _, m := range d.view.Members() {
		if m.Role != membership.RoleCoordinator {
			continue
		}
		if err = d.ask(ctx, m.Address); err == nil || ctx.Err() != nil {
			break
		}
	}
	if left := d.holds(); err != nil && left > 0 {
		d.log.Warn("sessions have not moved away: what no other worker has of them ends with this one", "sessions", left, "moved", before-left, "error", err)
		return
	}
	d.log.Info("all sessions have moved away", "sessions", before, "took", time.Since(began))
}

// ask lets one coordinator drain the worker, and waits until it has.
func (d *departure) ask(ctx context.Context, address string) error {
	conns := rpc.NewConns(d.security, rpc.DialOptions()...)
	defer conns.Close()
	conn, err := conns.Use(rpc.Peer{Name: address, Address: address})
	if err != nil {
		return err
	}
	defer conn.Release()
	stream, err := headwaterv1.NewClusterServiceClient(conn).DrainWorker(ctx, &headwaterv1.DrainWorkerRequest{Worker: d.name, Leaving: true})
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
