package observe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"time"
)

// How long a client of the admin port may take for its request's header, and how long a connection may idle.
const (
	headerTimeout = 5 * time.Second
	idleTimeout   = 2 * time.Minute
	// stopTimeout is how long requests that run may go on once the process stops.
	stopTimeout = time.Second
)

// Admin serves the admin port: metrics to everyone who reaches it, and to this machine alone what tells more or costs more.
type Admin struct {
	mux    *http.ServeMux
	local  bool                                    // the listener is on loopback
	shown  func(*http.Request) (all, metrics bool) // nil where nobody shows anything
	server http.Server
	ended  chan error
}

// NewAdmin makes the handler of an admin port that listens at an address. Start serves it.
func NewAdmin(at net.Addr, r *Registry) *Admin {
	a := &Admin{mux: http.NewServeMux(), local: loopback(at.String()), ended: make(chan error, 1)}
	a.mux.Handle("GET /metrics", r.handler())
	a.Local("/debug/pprof/", http.HandlerFunc(pprof.Index))
	a.Local("/debug/pprof/cmdline", http.HandlerFunc(pprof.Cmdline))
	a.Local("/debug/pprof/profile", http.HandlerFunc(pprof.Profile))
	a.Local("/debug/pprof/symbol", http.HandlerFunc(pprof.Symbol))
	a.Local("/debug/pprof/trace", http.HandlerFunc(pprof.Trace))
	return a
}

// Handle serves a path to everyone who reaches the port: the handler lets in whom it knows.
func (a *Admin) Handle(pattern string, h http.Handler) { a.mux.Handle(pattern, h) }

// Guard lets in who shows what lets it in: to all, or to metrics alone.
func (a *Admin) Guard(shown func(*http.Request) (all, metrics bool)) { a.shown = shown }

// OnLoopback tells whether the port is bound to a loopback address.
func (a *Admin) OnLoopback() bool { return a.local }

// Local serves a path to this machine alone: where the port is bound to a loopback address and is asked for by a loopback name,
// so that no page of another site can ask through its reader's browser.
func (a *Admin) Local(pattern string, h http.Handler) {
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case a.shown != nil: // who comes to here may see all
			h.ServeHTTP(w, r)
		case !a.local:
			http.Error(w, "this is served on loopback alone: start the process with --admin 127.0.0.1:PORT; a coordinator's dashboard is served elsewhere with --admin-tls, or with --admin-logins, --admin-cert and --admin-key; /metrics is served on every address", http.StatusForbidden)
		case !loopback(r.Host):
			http.Error(w, fmt.Sprintf("the host %q is not this machine's loopback: ask for 127.0.0.1, [::1] or localhost", r.Host), http.StatusForbidden)
		default:
			h.ServeHTTP(w, r)
		}
	})
}

// loopback says whether a host, with or without a port, is of loopback.
func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	if len(host) > 2 && host[0] == '[' {
		host = host[1 : len(host)-1]
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// ServeHTTP implements http.Handler.
func (a *Admin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if a.shown != nil {
		if all, metrics := a.shown(r); !all && !(metrics && r.URL.Path == "/metrics") {
			http.Error(w, "this is for admins, and /metrics for monitors as well: the certificate that was shown is of another role, or holds no more", http.StatusForbidden)
			return
		}
	}
	a.mux.ServeHTTP(w, r)
}

// Start serves on the listener until Close. Requests' contexts end then.
func (a *Admin) Start(l net.Listener, log *slog.Logger) {
	ctx, cancel := context.WithCancel(context.Background())
	a.server = http.Server{
		Handler: a, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	a.server.RegisterOnShutdown(cancel)
	go func() {
		defer cancel()
		a.ended <- a.server.Serve(l)
	}()
}

// Close ends what Start began.
func (a *Admin) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	err := a.server.Shutdown(ctx)
	if err != nil {
		err = a.server.Close()
	}
	if served := <-a.ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
