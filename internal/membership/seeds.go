package membership

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"headwater.example/internal/address"
)

// longestRetry is how many times of SeedRetry the wait between two tries grows to.
const longestRetry = 16

// join keeps the seeds joined until the view is closed.
func (g *gossip) join() {
	ctx := g.running
	wait, said := g.retry, ""
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
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
	here := g.gossipers()
	var failed []error
	for _, seed := range g.seeds {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := g.joinSeed(ctx, seed, here); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", seed, err))
		}
	}
	return oneLine(failed)
}

func (g *gossip) joinSeed(ctx context.Context, seed address.Address, here map[netip.AddrPort]bool) error {
	ips, err := g.resolve(ctx, seed.Host)
	if err != nil {
		return err
	}
	reached := false
	var failed []error
	for _, ip := range ips {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		at := netip.AddrPortFrom(ip, seed.Port)
		if here[at] {
			reached = true
			continue
		}
		if _, err := g.list.Join([]string{at.String()}); err != nil {
			failed = append(failed, errors.New("no gossip at "+at.String()))
			g.log.Debug("joining a gossip seed", "seed", seed.String(), "gossip", at.String(), "error", err)
			continue
		}
		reached = true
	}
	if reached {
		return nil
	}
	return oneLine(failed)
}

// oneLine joins errors, nil if there is none. Nobody looks into them.
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

// gossipers returns the gossip addresses of the members in the view, this process among them.
func (g *gossip) gossipers() map[netip.AddrPort]bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	here := make(map[netip.AddrPort]bool, len(g.nodes))
	for _, n := range g.nodes {
		if n.holds {
			here[n.gossip] = true
		}
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

// resolveOne returns an address of a host, of IPv4 if it has one.
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
