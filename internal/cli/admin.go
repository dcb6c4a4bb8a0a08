package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"

	"github.com/spf13/pflag"

	"headwater.example/internal/address"
	"headwater.example/internal/certs"
	"headwater.example/internal/dashboard"
	"headwater.example/internal/observe"
	"headwater.example/internal/rpc"
)

// adminFlag is the flag that names the address of the admin port.
type adminFlag struct {
	address  string
	listener net.Listener // nil without the flag

	logins, cert, key string           // files; a coordinator's
	users             dashboard.Logins // of logins, nil without

	tls      bool          // by certificates of the cluster
	security *rpc.Security // then
}

func (f *adminFlag) flag(flags *pflag.FlagSet, what string) {
	flags.StringVar(&f.address, "admin", "", "`host:port` of the admin port: "+what+" (default: none)")
	flags.BoolVar(&f.tls, "admin-tls", false, "serve the admin port by the certificate of --tls-dir, and to holders of the cluster's certificates alone: all of it to admins, /metrics to monitors as well")
}

// others are the flags by which others than this machine see the dashboard.
func (f *adminFlag) others(flags *pflag.FlagSet) {
	flags.StringVar(&f.logins, "admin-logins", "", "`file` of people who may see the dashboard; each line has a name, viewer or admin, the SHA-256 of a token, and perhaps tenant=NAME (default: everyone on this machine)")
	flags.StringVar(&f.cert, "admin-cert", "", "PEM `file` of the certificate by which the admin port is served over TLS; read anew for each connection")
	flags.StringVar(&f.key, "admin-key", "", "PEM `file` of its key")
}

// read reads the files of the flags.
func (f *adminFlag) read() error {
	if (f.cert == "") != (f.key == "") {
		return usage("--admin-cert and --admin-key: give both or neither")
	}
	switch {
	case f.address == "" && (f.logins != "" || f.cert != "" || f.tls):
		return usage("--admin-tls, --admin-logins, --admin-cert and --admin-key are for the port of --admin, which is missing")
	case f.tls && (f.logins != "" || f.cert != ""):
		return usage("--admin-tls lets in by certificates alone, and is served by that of --tls-dir: leave out --admin-logins, --admin-cert and --admin-key")
	}
	if f.cert != "" {
		if _, err := tls.LoadX509KeyPair(f.cert, f.key); err != nil {
			return usage("--admin-cert: %w", err)
		}
	}
	if f.logins == "" {
		return nil
	}
	file, err := os.Open(f.logins)
	if err != nil {
		return usage("--admin-logins: %w", err)
	}
	defer file.Close()
	if f.users, err = dashboard.ReadLogins(file); err != nil {
		return usage("--admin-logins: %s: %w", f.logins, err)
	}
	return nil
}

// bind listens, if the flag says so.
func (f *adminFlag) bind(ctx context.Context, s *rpc.Security) error {
	if err := f.read(); err != nil {
		return err
	}
	if f.address == "" {
		return nil
	}
	var mutual *tls.Config
	if f.tls {
		var err error
		if mutual, err = s.HTTPS(certs.Admin, certs.Monitor); err != nil {
			return usage("--admin-tls: %w", err)
		}
		f.security = s
	}
	at, err := address.ParseListen(f.address)
	if err != nil {
		return usage("--admin: %w", err)
	}
	if f.listener, err = at.Listen(ctx); err != nil {
		return fmt.Errorf("listen for the admin port: %w", err)
	}
	if mutual != nil {
		f.listener = tls.NewListener(f.listener, mutual)
	}
	if f.cert != "" {
		f.listener = tls.NewListener(f.listener, &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				pair, err := tls.LoadX509KeyPair(f.cert, f.key)
				return &pair, err
			},
		})
	}
	return nil
}

// board serves a dashboard to who is on this machine, or to who has a login: on loopback, and elsewhere if nobody can listen in.
func (f *adminFlag) board(on *observe.Admin, board http.Handler) {
	if f.security != nil || f.users != nil && (on.OnLoopback() || f.cert != "") {
		on.Handle("/", board)
		return
	}
	on.Local("/", board)
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

// access is who is let in to a dashboard.
func (f *adminFlag) access(failed func()) dashboard.Access {
	a := dashboard.Access{Logins: f.users, Secure: f.cert != "", Failed: failed}
	if f.security != nil {
		a.Secure = true
		a.Shown = func(r *http.Request) (string, bool) {
			h, ok := f.security.Shown(r)
			return h.String(), ok && h.Role == certs.Admin
		}
	}
	return a
}

// serve serves the admin port, if there is one, until stop is called. more adds to it.
func (f *adminFlag) serve(r *observe.Registry, log *slog.Logger, more func(*observe.Admin)) (stop func()) {
	admin := observe.NewAdmin(f.listener.Addr(), r)
	if f.security != nil {
		admin.Guard(func(r *http.Request) (all, metrics bool) {
			h, ok := f.security.Shown(r)
			return ok && h.Role == certs.Admin, ok && h.Role == certs.Monitor
		})
	}
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
