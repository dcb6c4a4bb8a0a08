package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"headwater.example/client"
	"headwater.example/coordinator/sessions"
	"headwater.example/internal/address"
	"headwater.example/internal/certs"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// relayReady is the line that a relay prints when it serves.
type relayReady struct {
	Address     string `json:"address"`         // where it serves
	Lanes       string `json:"lanes,omitempty"` // where it serves plain lanes, if it does
	Coordinator string `json:"coordinator"`     // whose workers it speaks to
	Protocol    string `json:"protocol"`
	Version     string `json:"version"`
	Process     int    `json:"process"`
}

// relayStop bounds the end of a relay: its client has gone, so nobody waits for answers.
const relayStop = time.Second

func (a *app) relay() *cobra.Command {
	var listen, lanes string
	var open bool
	var coordinator remote
	var hedges float64
	var perAddress int
	cmd := &cobra.Command{
		Use: "relay", Short: "Take sessions' steps of this machine directly to the workers", Args: exactly(),
		Long: "Serve sessions on this machine as a coordinator does, but without jobs: clients speak to the relay, and it\n" +
			"speaks to the workers. It asks a coordinator only where a session is or should be; no step passes the\n" +
			"coordinator. The Python client starts a relay with Client(..., direct=True).\n\n" +
			"It prints one line of JSON with its address when it serves. It ends at a signal and, if its standard input is a\n" +
			"pipe, when that is closed: so it ends with the program that started it. It makes the socket's folder if there is\n" +
			"none, and then removes it at the end.",
		Example: `  coord relay --coordinator 10.0.0.1:7600 --listen unix:/run/headwater.sock
  coord relay --coordinator 10.0.0.1:7600 --listen 127.0.0.1:0`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkHedges(hedges); err != nil {
				return err
			}
			at, err := relayAddress("--listen", listen, open)
			if err != nil {
				return err
			}
			if coordinator.token != "" && !at.IsLoopback() {
				return usage("--token-file: everyone who reaches %s would be the token's tenant: a relay for other machines has a certificate of its own", at)
			}
			coordinator.security.token = coordinator.token
			var plain *address.Address
			if lanes != "" {
				one, err := relayAddress("--lanes", lanes, false)
				if err != nil {
					return err
				}
				plain = &one
			}
			return a.runRelay(cmd.Context(), at, plain, coordinator, hedges, perAddress)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&listen, "listen", "127.0.0.1:0", "`address` to serve on, unix:/path or host:port; port 0 takes a free one")
	flags.StringVar(&lanes, "lanes", "", "a second `address` for plain lanes, which carry steps without HTTP/2: unix:/path, or host:port of loopback; empty is none")
	coordinator.flags(flags)
	hedgeFlag(flags, &hedges)
	addressFlag(flags, &perAddress)
	flags.BoolVar(&open, "allow-remote", false, "let --listen name an address that other machines reach: --tls-dir is then the folder of a relay; with --insecure, everyone who reaches it can use every session")
	return cmd
}

// relayAddress reads where a relay listens. Others than this machine's users are kept out unless they are let in.
func relayAddress(flag, listen string, open bool) (address.Address, error) {
	at, err := address.ParseListen(listen)
	if err != nil {
		return at, usage("%s: %w", flag, err)
	}
	if open || at.IsLoopback() {
		return at, nil
	}
	hint := ""
	if flag == "--listen" {
		hint = ", or say --allow-remote"
	}
	return at, usage("%s: other machines reach %s: name a loopback address or a Unix socket%s", flag, at, hint)
}

// dialCoordinator makes a relay's connection to its coordinator, and the name that errors give it.
func dialCoordinator(coordinator remote, security *rpc.Security) (to address.Address, name string, conn *grpc.ClientConn, err error) {
	to, err = address.Parse(coordinator.address, client.DefaultPort)
	if err != nil {
		return to, "", nil, usage("--coordinator: %w", err)
	}
	name, options := to.String(), rpc.DialOptions()
	if coordinator.proxy {
		options = rpc.ProxyDialOptions()
		if proxy := rpc.Proxy(name); proxy != "" {
			name += " through the proxy " + proxy
		}
	}
	if err := security.Reaches(to, name != to.String()); err != nil {
		return to, "", nil, usage("--coordinator: %w", err)
	}
	if conn, err = grpc.NewClient(to.Target(), append(options, security.Dial(rpc.Expectation{}), security.Sign(rpc.Expectation{}))...); err != nil {
		return to, "", nil, fmt.Errorf("coordinator %s: %w", to, err)
	}
	return to, name, conn, nil
}

// secureRelay is how a relay speaks to the cluster, and to its clients. To the cluster it is its user; where other machines reach
// it, it has a certificate of its own.
func secureRelay(at address.Address, flags securityFlags, log *slog.Logger) (*rpc.Security, []rpc.ServerOption, error) {
	security, err := flags.open(log)
	options := []rpc.ServerOption{rpc.LogTo(log)}
	if err != nil || at.IsLoopback() {
		return security, options, err
	}
	if err := flags.guards("--listen", at, certs.Relay); err != nil {
		return nil, nil, err
	}
	if err := security.Serves(certs.Relay, ""); err != nil {
		return nil, nil, usage("--tls-dir: %w", err)
	}
	return security, append(options, rpc.Secure(security)), nil
}

// relayListener is one of the sockets of a relay.
type relayListener struct {
	net.Listener
	address string // where it serves
	release func() error
}

func listenRelay(ctx context.Context, at address.Address) (*relayListener, error) {
	release, err := makeSocketFolder(at)
	if err != nil {
		return nil, err
	}
	bound, err := at.Listen(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), release())
	}
	serving, err := address.Of(bound.Addr())
	if err != nil {
		return nil, errors.Join(err, bound.Close(), release())
	}
	return &relayListener{bound, serving.String(), release}, nil
}

func (a *app) runRelay(ctx context.Context, at address.Address, lanes *address.Address, coordinator remote, hedges float64, perAddress int) (err error) {
	log := a.logger().With("relay", os.Getpid())
	security, options, err := secureRelay(at, coordinator.security, log)
	if err != nil {
		return err
	}
	to, name, conn, err := dialCoordinator(coordinator, security)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	bound, err := listenRelay(ctx, at)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bound.release()) }()
	ready := relayReady{Address: bound.address, Coordinator: to.String(), Protocol: rpc.Version, Version: programVersion, Process: os.Getpid()}
	var plain *relayListener
	if lanes != nil {
		if plain, err = listenRelay(ctx, *lanes); err != nil {
			return errors.Join(err, bound.Close())
		}
		defer func() { err = errors.Join(err, plain.release()) }()
		ready.Lanes = plain.address
	}
	relay := sessions.NewDirect(name, conn, security, hedges, log)
	flight := sessions.NewFlight(0, maxConnections(), perAddress, log)

	ctx, end := context.WithCancel(ctx)
	defer end()
	defer endHard(ctx, stopTimeout, log)()
	if a.inputIsPipe() {
		a.endWithInput(end)
	}
	var tasks sync.WaitGroup
	tasks.Go(func() { relay.Run(ctx) })
	defer tend(ctx, security)()
	if plain != nil {
		tasks.Go(func() {
			if err := relay.ServePlain(ctx, plain, flight); err != nil {
				log.Error("plain lanes are served no more", "error", err)
				end()
			}
		})
	}
	log.Info("serving", "address", ready.Address, "lanes", ready.Lanes, "coordinator", ready.Coordinator)
	if err := json.NewEncoder(a.Out).Encode(ready); err != nil {
		log.Warn("nobody was told of the address", "error", err)
	}
	err = serveRelay(ctx, relay.NewServer(flight, options...), newConnections(bound), func() { end(); tasks.Wait() })
	return errors.Join(err, relay.Close())
}

// serveRelay serves until ctx ends. end ends what else the relay does.
func serveRelay(ctx context.Context, server *grpc.Server, listener *connections, end func()) (err error) {
	rpc.Register(server, headwaterv1.SessionService_ServiceDesc.ServiceName)
	served := make(chan error, 1)
	go func() { served <- serveUntilStopped(server, listener) }()
	select {
	case err = <-served:
		served <- nil
	case <-ctx.Done():
	}
	end()
	timer := time.AfterFunc(relayStop, func() {
		listener.closeAll()
		server.Stop()
	})
	server.GracefulStop()
	timer.Stop()
	return errors.Join(err, <-served)
}

// inputIsPipe tells whether standard input is a pipe or a socket, which a program that started this one holds open.
func (a *app) inputIsPipe() bool {
	in, ok := a.In.(*os.File)
	if !ok {
		return false
	}
	info, err := in.Stat()
	return err == nil && info.Mode()&(os.ModeNamedPipe|os.ModeSocket) != 0
}

// endWithInput calls end when standard input is closed. The read ends with the process at the latest.
func (a *app) endWithInput(end func()) {
	go func() {
		_, _ = io.Copy(io.Discard, a.In) // whatever ends it, nobody is at the other end
		end()
	}()
}

// makeSocketFolder makes the folder of a socket if it is not there, for this user alone. release removes what was made.
func makeSocketFolder(at address.Address) (release func() error, err error) {
	release = func() error { return nil }
	if !at.Unix() {
		return release, nil
	}
	folder := filepath.Dir(at.Path)
	err = os.Mkdir(folder, 0o700)
	if errors.Is(err, os.ErrExist) {
		return release, nil
	}
	if err != nil {
		return nil, fmt.Errorf("make the socket's folder: %w", err)
	}
	return func() error {
		if err := os.Remove(folder); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the socket's folder: %w", err)
		}
		return nil
	}, nil
}
