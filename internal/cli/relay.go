package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"headwater.example/client"
	"headwater.example/coordinator/sessions"
	"headwater.example/internal/address"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// relayReady is the line that a relay prints when it serves.
type relayReady struct {
	Address     string `json:"address"`     // where it serves
	Coordinator string `json:"coordinator"` // whose workers it speaks to
	Protocol    string `json:"protocol"`
	Version     string `json:"version"`
	Process     int    `json:"process"`
}

// relayStop bounds the end of a relay: its client has gone, so nobody waits for answers.
const relayStop = time.Second

func (a *app) relay() *cobra.Command {
	var listen string
	var open bool
	var coordinator remote
	cmd := &cobra.Command{
		Use: "relay", Short: "Take sessions' steps of this machine directly to the workers", Args: exactly(),
		Long: "Serve sessions on this machine as a coordinator does, but without jobs: clients speak to the relay, and it speaks to\n" +
			"the workers. A coordinator is asked only where a session is or shall be; no step passes it. The Python client starts one\n" +
			"with Client(..., direct=True).\n\n" +
			"It prints one line of JSON with its address when it serves. It ends at a signal and, if its standard input is a pipe, when\n" +
			"that is closed: so it ends with the program that started it. A socket's folder is made if it is not there, and removed.",
		Example: `  coord relay --coordinator 10.0.0.1:7600 --listen unix:/run/user/1000/headwater/relay.sock
  coord relay --coordinator 10.0.0.1:7600 --listen 127.0.0.1:0`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			at, err := relayAddress(listen, open)
			if err != nil {
				return err
			}
			return a.runRelay(cmd.Context(), at, coordinator)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&listen, "listen", "127.0.0.1:0", "`address` to serve on, unix:/path or host:port; port 0 takes a free one")
	coordinator.flags(flags)
	flags.BoolVar(&open, "allow-remote", false, "let --listen name an address that other machines reach: whoever reaches it can use every session")
	return cmd
}

// relayAddress reads where a relay listens. Others than this machine's users are kept out unless they are let in.
func relayAddress(listen string, open bool) (address.Address, error) {
	at, err := address.ParseListen(listen)
	if err != nil {
		return at, usage("--listen: %w", err)
	}
	if !open && !at.IsLoopback() {
		return at, usage("--listen: other machines reach %s: name a loopback address or a Unix socket, or say --allow-remote", at)
	}
	return at, nil
}

func (a *app) runRelay(ctx context.Context, at address.Address, coordinator remote) (err error) {
	to, err := address.Parse(coordinator.address, client.DefaultPort)
	if err != nil {
		return usage("--coordinator: %w", err)
	}
	name, options := to.String(), rpc.DialOptions()
	if coordinator.proxy {
		options = rpc.ProxyDialOptions()
		if proxy := rpc.Proxy(name); proxy != "" {
			name += " through the proxy " + proxy
		}
	}
	conn, err := grpc.NewClient(to.Target(), options...)
	if err != nil {
		return fmt.Errorf("coordinator %s: %w", to, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	release, err := makeSocketFolder(at)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	bound, err := at.Listen(ctx)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	serving, err := address.Of(bound.Addr())
	if err != nil {
		return errors.Join(err, bound.Close())
	}
	listener := newConnections(bound)
	log := a.logger().With("relay", os.Getpid())
	relay := sessions.NewDirect(name, conn, log)
	server := relay.NewServer(sessions.NewFlight(0, maxConnections(), log), rpc.LogTo(log))
	rpc.Register(server, headwaterv1.SessionService_ServiceDesc.ServiceName)

	ctx, end := context.WithCancel(ctx)
	defer end()
	defer endHard(ctx, log)()
	if a.inputIsPipe() {
		a.endWithInput(end)
	}
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		relay.Run(ctx)
	}()
	served := make(chan error, 1)
	go func() { served <- serveUntilStopped(server, listener) }()
	log.Info("serving", "address", serving.String(), "coordinator", to.String())
	ready := relayReady{Address: serving.String(), Coordinator: to.String(), Protocol: rpc.Version, Version: programVersion, Process: os.Getpid()}
	if err := json.NewEncoder(a.Out).Encode(ready); err != nil {
		log.Warn("nobody was told of the address", "error", err)
	}
	select {
	case err = <-served:
		served <- nil
	case <-ctx.Done():
	}
	end()
	<-kept
	timer := time.AfterFunc(relayStop, func() {
		listener.closeAll()
		server.Stop()
	})
	server.GracefulStop()
	timer.Stop()
	return errors.Join(err, <-served, relay.Close())
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
