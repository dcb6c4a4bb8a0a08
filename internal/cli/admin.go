package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"github.com/spf13/pflag"

	"headwater.example/internal/address"
	"headwater.example/internal/observe"
)

// adminFlag is the flag that names the address of the admin port.
type adminFlag struct {
	address  string
	listener net.Listener // nil without the flag
}

func (f *adminFlag) flag(flags *pflag.FlagSet, what string) {
	flags.StringVar(&f.address, "admin", "", "`host:port` of the admin port: "+what+" (default: none)")
}

// bind listens, if the flag says so.
func (f *adminFlag) bind(ctx context.Context) error {
	if f.address == "" {
		return nil
	}
	at, err := address.ParseListen(f.address)
	if err != nil {
		return usage("--admin: %w", err)
	}
	if f.listener, err = at.Listen(ctx); err != nil {
		return fmt.Errorf("listen for the admin port: %w", err)
	}
	return nil
}

// on says whether there is an admin port.
func (f *adminFlag) on() bool { return f.listener != nil }

// bound is the address that is listened on, or "".
func (f *adminFlag) bound() string {
	if !f.on() {
		return ""
	}
	return f.listener.Addr().String()
}

// serve serves the admin port, if there is one, until stop is called. more adds to it.
func (f *adminFlag) serve(r *observe.Registry, log *slog.Logger, more func(*observe.Admin)) (stop func()) {
	admin := observe.NewAdmin(f.listener.Addr(), r)
	more(admin)
	admin.Start(f.listener, log)
	return func() {
		if err := admin.Close(); err != nil {
			log.Warn("the admin port did not end well", "error", err)
		}
	}
}

// close closes a port that is not served.
func (f *adminFlag) close(err error) error {
	if err == nil || !f.on() {
		return err
	}
	if closed := f.listener.Close(); !errors.Is(closed, net.ErrClosed) {
		return errors.Join(err, closed)
	}
	return err
}
