package cli

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc/health"

	"headwater.example/internal/address"
	"headwater.example/internal/certs"
	"headwater.example/internal/rpc"
	"headwater.example/internal/tenants"
)

// securityFlags say how a process speaks to others.
type securityFlags struct {
	folder   string
	insecure bool
	tenants  string // a coordinator's
	token    string // file of a relay's user's, which is shown to the coordinator
}

func (f *securityFlags) flags(flags *pflag.FlagSet) {
	flags.StringVar(&f.folder, "tls-dir", "", "`folder` of ca.crt, tls.crt and tls.key, as coord certs issue makes it; without it, plain text within this machine")
	flags.BoolVar(&f.insecure, "insecure", false, "let plain text go to other machines and come from them: whoever reaches the network can read and do everything")
}

// open reads the certificates.
func (f *securityFlags) open(log *slog.Logger) (*rpc.Security, error) {
	config := rpc.SecurityConfig{Folder: f.folder, Tenants: f.tenants, Insecure: f.insecure, Logger: log}
	if f.token != "" {
		if _, err := tenants.ReadToken(f.token); err != nil {
			return nil, usage("--token-file: %w", err)
		}
		config.Token = func() (string, error) { return tenants.ReadToken(f.token) }
	}
	s, err := rpc.NewSecurity(config)
	if err != nil {
		return nil, usage("--tls-dir%s: %w", f.also(), err)
	}
	return s, nil
}

// also names the flag of tenants, if it is given.
func (f *securityFlags) also() string {
	if f.tenants == "" {
		return ""
	}
	return " and --tenants"
}

// alone tells whether the process is to be reached by this machine alone, for want of a certificate.
func (f *securityFlags) alone() bool { return f.folder == "" && !f.insecure }

// guards refuses an address to listen on that other machines reach, for want of a certificate.
func (f *securityFlags) guards(flag string, at address.Address, role certs.Role) error {
	if !f.alone() || at.IsLoopback() {
		return nil
	}
	return usage("%s: other machines reach %s, and there is no certificate: give one by --tls-dir (HEADWATER_TLS_DIR), which `coord certs issue %s NAME` makes, name a loopback address, or say --insecure", flag, at, role)
}

// gossipKeys is the file of the keys of gossip; "" for gossip in plain text.
func (f *securityFlags) gossipKeys(named string) string {
	if named == "" && f.folder != "" {
		return filepath.Join(f.folder, certs.GossipFile)
	}
	return named
}

// bindHealth listens for health checks, if there is an address for them.
func (e *endpointFlags) bindHealth(ctx context.Context) error {
	if e.health == "" {
		return nil
	}
	at, err := address.ParseListen(e.health)
	if err != nil {
		return usage("--health: %w", err)
	}
	if e.probes, err = at.Listen(ctx); err != nil {
		return fmt.Errorf("listen for health checks: %w", err)
	}
	return nil
}

// boundHealth is the address of the port for health checks; empty without one.
func (e *endpointFlags) boundHealth() string {
	if e.probes == nil {
		return ""
	}
	return e.probes.Addr().String()
}

// attend answers health checks on a port of their own, and looks at the certificates again and again, until stop is called.
func (e *endpointFlags) attend(ctx context.Context, s *rpc.Security, h *health.Server, log *slog.Logger) (stop func()) {
	tended := tend(ctx, s)
	if e.probes == nil {
		return tended
	}
	server := rpc.NewHealthServer(h, log)
	ended := make(chan error, 1)
	go func() { ended <- serveUntilStopped(server, e.probes) }()
	return func() {
		tended()
		server.Stop()
		if err := <-ended; err != nil {
			log.Warn("health checks were not answered to the end", "error", err)
		}
	}
}

// tendEvery is how often a server looks at its certificates.
const tendEvery = 5 * time.Second

// tend looks at the certificates again and again until stop is called.
func tend(ctx context.Context, s *rpc.Security) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(tendEvery)
		defer ticker.Stop()
		s.Tend(ctx, ticker.C)
	}()
	return func() { cancel(); <-ended }
}
