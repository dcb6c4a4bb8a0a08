package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// longestRetry is how many times of SeedRetry the wait between two tries grows to.
const longestRetry = 16

// join keeps the seeds joined until ctx ends.
func (g *gossip) join(ctx context.Context) {
	wait, said := g.retry, ""
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case address := <-g.forgot:
			if _, err := g.list.Join([]string{address}); err != nil {
				g.log.Debug("joining a member that was restarted", "gossip", address, "error", err)
			}
			continue
		case <-timer.C:
		}
		err := g.joinSeeds(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if text := err.Error(); text != said { // a failure that lasts is said once
				g.log.Warn("gossip seeds are not all reached", "error", err, "retry_in", wait)
				said = text
			}
			timer.Reset(wait)
			wait = min(2*wait, longestRetry*g.retry)
		default:
			if said != "" {
				g.log.Info("gossip seeds are all reached")
			}
			wait, said = g.retry, ""
			timer.Reset(longestRetry * g.retry)
		}
	}
}

// joinSeeds joins each address of each seed that is not in the view, and says what it could not reach. A seed is reached
// when one of its addresses is.
func (g *gossip) joinSeeds(ctx context.Context) error {
	// Members that know this process under its predecessor's address must be told again.
	again := g.conflicted.Swap(false)
	here := g.gossipers()
	var failed []error
	for _, seed := range g.seeds {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := g.joinSeed(ctx, seed, here, again); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", seed, err))
		}
	}
	if g.conflicted.Load() {
		failed = append(failed, fmt.Errorf("another living member has the name %s", g.name))
	}
	return oneLine(failed)
}

func (g *gossip) joinSeed(ctx context.Context, seed string, here map[netip.AddrPort]string, again bool) error {
	host, port, err := splitPort(seed)
	if err != nil {
		return err
	}
	ips, err := g.resolve(ctx, host)
	if err != nil {
		return err
	}
	reached := false
	var failed []error
	for _, ip := range ips {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		address := netip.AddrPortFrom(ip, uint16(port))
		if name, ok := here[address]; ok && (name == g.name || !again) {
			reached = true
			continue
		}
		if _, err := g.list.Join([]string{net.JoinHostPort(ip.String(), strconv.Itoa(port))}); err != nil {
			failed = append(failed, errors.New("no gossip at "+address.String()))
			g.log.Debug("joining a gossip seed", "seed", seed, "gossip", address.String(), "error", err)
			continue
		}
		reached = true
	}
	if reached {
		return nil
	}
	return oneLine(failed)
}

// oneLine joins errors, nil where there is none. Nobody looks into them.
func oneLine(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = err.Error()
	}
	return errors.New(strings.Join(texts, "; "))
}

// gossipers returns the names of the members in the view by their gossip addresses.
func (g *gossip) gossipers() map[netip.AddrPort]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	here := make(map[netip.AddrPort]string, len(g.members))
	for name, m := range g.members {
		here[m.gossip] = name
	}
	return here
}

// resolve returns the addresses of a host, which may be an IP address itself.
func (g *gossip) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	ips, err := g.lookup(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("resolving %s: %w", host, err)
	}
	if len(ips) == 0 {
		return nil, fmt.Errorf("resolving %s: it has no address", host)
	}
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	return ips, nil
}

// resolveOne returns an address of a host, of IPv4 where it has one.
func (g *gossip) resolveOne(ctx context.Context, host string) (netip.Addr, error) {
	ips, err := g.resolve(ctx, host)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, ip := range ips {
		if ip.Is4() {
			return ip, nil
		}
	}
	return ips[0], nil
}
