package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/pflag"

	"headwater.example/internal/address"
	"headwater.example/internal/certs"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
)

// endpointFlags say where a process listens and how others find it.
type endpointFlags struct {
	name            string
	listen          string
	advertise       string
	gossip          string
	gossipAdvertise string
	join            []string
	gossipKeys      string
	health          string
	readyFD         int
	perAddress      int
	security        securityFlags

	role   certs.Role
	set    *pflag.FlagSet // which knows what was given
	probes net.Listener   // for health checks; nil without them
}

func (e *endpointFlags) flags(flags *pflag.FlagSet, role certs.Role, listen, gossip string) {
	e.role, e.set = role, flags
	e.security.flags(flags)
	flags.StringVar(&e.name, "name", "", "name in the cluster, a DNS label (default: the host's name after the program's)")
	flags.StringVar(&e.listen, "listen", listen, "`host:port` of the gRPC service, or unix:/path; port 0 takes a free one. Without --tls-dir and --insecure the default is this machine's alone, 127.0.0.1"+listen)
	flags.StringVar(&e.advertise, "advertise", "", "`host` or host:port under which others reach the gRPC service (default: the address of --listen, or this machine's if that is all addresses)")
	flags.StringVar(&e.gossip, "gossip", gossip, "`host:port` of gossip, over TCP and UDP; empty: no gossip. Without --tls-dir and --insecure the default is this machine's alone, as for --listen")
	flags.StringVar(&e.gossipKeys, "gossip-keys", "", "`file` of the keys that encrypt gossip (default: gossip.key in the folder of --tls-dir)")
	flags.StringVar(&e.health, "health", "", "`host:port` that answers gRPC health checks in plain text and nothing else, for probes (default: none)")
	flags.StringVar(&e.gossipAdvertise, "gossip-advertise", "", "`host` or host:port under which others reach gossip (default: the address bound, or that of --advertise, or of this machine)")
	addressFlag(flags, &e.perAddress)
	flags.StringSliceVar(&e.join, "join", nil, "gossip addresses of others, `host:port,...`")
	flags.IntVar(&e.readyFD, localcluster.ReadyFlag, 0, "file descriptor that is told when the process serves")
	_ = flags.MarkHidden(localcluster.ReadyFlag) // it is there
	flagOnly(flags, localcluster.ReadyFlag)
}

var (
	notInLabel = regexp.MustCompile(`[^a-z0-9-]+`)
	dnsLabel   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
)

// self is the name to serve under. A coordinator and a worker of one machine have different ones by default.
func (e *endpointFlags) self(program string) (string, error) {
	if e.name != "" {
		if !dnsLabel.MatchString(e.name) {
			return "", usage("--name: %q is not a DNS label: 1 to 63 of a-z, 0-9 and '-', with no '-' at its ends", e.name)
		}
		return e.name, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", usage("--name is missing, and the host has no name: %w", err)
	}
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	name := program + "-" + notInLabel.ReplaceAllString(host, "-")
	return strings.Trim(name[:min(len(name), 63)], "-"), nil
}

// begin reads the certificates of a process of a name, and binds the ports beside its service.
func (e *endpointFlags) begin(ctx context.Context, name string, admin *adminFlag, log *slog.Logger) (*rpc.Security, error) {
	s, err := e.open(name, log)
	if err != nil {
		return nil, err
	}
	if err := admin.bind(ctx, s); err != nil {
		return nil, err
	}
	return s, admin.close(e.bindHealth(ctx))
}

// open reads the certificates of a process of a name, and lets its default addresses be this machine's alone without any.
func (e *endpointFlags) open(name string, log *slog.Logger) (*rpc.Security, error) {
	s, err := e.security.open(log)
	if err != nil {
		return nil, err
	}
	if err := s.Serves(e.role, name); err != nil {
		return nil, usage("--tls-dir: %w", err)
	}
	if e.security.alone() {
		for flag, at := range map[string]*string{"listen": &e.listen, "gossip": &e.gossip} {
			if !e.set.Changed(flag) {
				*at = "127.0.0.1" + *at
			}
		}
	}
	return s, nil
}

// bind listens, and returns the address under which others dial.
func (e *endpointFlags) bind(ctx context.Context) (_ *connections, _ string, err error) {
	at, err := address.ParseListen(e.listen)
	if err != nil {
		return nil, "", usage("--listen: %w", err)
	}
	if err := e.security.guards("--listen", at, e.role); err != nil {
		return nil, "", err
	}
	seeds, err := e.seeds()
	if err != nil {
		return nil, "", err
	}
	listener, err := at.Listen(ctx)
	if err != nil {
		return nil, "", fmt.Errorf("listen: %w", err)
	}
	bound, err := address.Of(listener.Addr())
	if err == nil {
		bound, err = address.Advertised(ctx, bound, e.advertise, seeds)
	}
	if err != nil {
		return nil, "", errors.Join(usage("--advertise: %w", err), listener.Close())
	}
	return newConnections(listener), bound.String(), nil
}

func (e *endpointFlags) seeds() ([]address.Address, error) {
	var seeds []address.Address
	for _, text := range e.join {
		a, err := address.ParseAdvertised(text, 0)
		if err != nil {
			return nil, usage("--join: %w", err)
		}
		seeds = append(seeds, a)
	}
	return seeds, nil
}

// ready tells the parent that waits on the pipe.
func (e *endpointFlags) ready(r localcluster.Ready) error {
	if e.readyFD == 0 {
		return nil
	}
	pipe := os.NewFile(uintptr(e.readyFD), "ready")
	if pipe == nil {
		return usage("--%s: %d is not a file descriptor", localcluster.ReadyFlag, e.readyFD)
	}
	return errors.Join(json.NewEncoder(pipe).Encode(r), pipe.Close())
}

// view joins the gossip, or follows the list.
func (e *endpointFlags) view(ctx context.Context, self membership.Member, static string, security *rpc.Security, log *slog.Logger) (membership.View, error) {
	switch {
	case static != "":
		members, err := membership.ParseStatic(static)
		if err != nil {
			return nil, usage("--workers: %w", err)
		}
		return membership.Static(members), nil
	case e.gossip == "":
		return membership.Static(nil), nil
	}
	bind, err := address.ParseListen(e.gossip)
	if err != nil {
		return nil, usage("--gossip: %w", err)
	}
	if err := e.security.guards("--gossip", bind, e.role); err != nil {
		return nil, err
	}
	advertise := e.gossipAdvertise
	if advertise != "" {
		if _, err := address.ParseAdvertised(advertise, 1); err != nil {
			return nil, usage("--gossip-advertise: %w", err)
		}
	}
	if a, err := address.Parse(e.advertise, 1); err == nil && advertise == "" && (bind.Host == "" || unspecified(bind.Host)) && net.ParseIP(a.Host) != nil {
		advertise = "[" + a.Host + "]" // both are reached in the same way
	}
	return membership.Gossip(ctx, membership.GossipConfig{Self: self, Bind: e.gossip, Advertise: advertise, Seeds: e.join, KeyFile: e.security.gossipKeys(e.gossipKeys), OnRefused: security.Count, Logger: log})
}

func unspecified(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsUnspecified()
}
