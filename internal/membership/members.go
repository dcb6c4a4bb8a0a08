package membership

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
)

// The bounds of what gossip may hold. The memory of a node is about a kilobyte, with memberlist's.
const (
	// maxMembers bounds the nodes that are said to live, this one among them.
	maxMembers = 1024
	// maxNewcomers bounds the nodes that come in an hour. Memberlist keeps those that left for a while.
	maxNewcomers = 4096
	// maxOutsiders bounds the outsiders that are told of.
	maxOutsiders = 32
	// refusalKept is how long an announcement that is not believed is told of after it was last made.
	refusalKept = time.Minute
)

// node is a process that gossips, and what it says of itself.
type node struct {
	Member
	key     string // its name among memberlist's nodes
	gossip  netip.AddrPort
	holds   bool          // it is the member of its name in the view; guarded by gossip.mu, as what follows
	leaving bool          // it said that it leaves
	outside string        // why it does not hold its name, "" while that is not known
	missed  int           // packets to it in a row that it did not answer, while it answers over TCP
	gone    chan struct{} // closed when memberlist forgets it
}

// refusal is an announcement that is not believed.
type refusal struct {
	Outsider
	last time.Time
}

// Outsider announces itself and is not among the members.
type Outsider struct {
	Name    string // as it says, unless it says none that can be
	Role    Role   // 0 if it is not known
	Address string // of its gRPC service, or of its gossip where that is not known
	Why     string // why it is no member, and what to do
}

// Outsiders returns who announces itself to the view and is not among its members, for people to see: a second process of
// one name, one that does not answer, one with wrong metadata. They are sorted by name, and are at most 32.
func Outsiders(v interface{ Members() []Member }) []Outsider {
	if g, ok := v.(interface{ Outsiders() []Outsider }); ok {
		return g.Outsiders()
	}
	return nil
}

// Members returns those that have answered.
func (g *gossip) Members() []Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	var members []Member
	for _, n := range g.nodes {
		if n.holds {
			members = append(members, n.Member)
		}
	}
	return sorted(members)
}

// Outsiders implements what the function of this name asks.
func (g *gossip) Outsiders() []Outsider {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []Outsider
	for _, n := range g.nodes {
		if n.outside != "" && !n.holds {
			all = append(all, Outsider{Name: n.Name, Role: n.Role, Address: n.Address, Why: n.outside})
		}
	}
	for _, r := range g.refused {
		if time.Since(r.last) < refusalKept {
			all = append(all, r.Outsider)
		}
	}
	slices.SortFunc(all, func(a, b Outsider) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Address, b.Address))
	})
	return all[:min(len(all), maxOutsiders)]
}

// NotifyAlive keeps those outside whose metadata can't be read, and those that are too many. It is called before any of
// the others.
func (g *gossip) NotifyAlive(peer *memberlist.Node) error {
	_, _, err := decodeMetadata(peer.Name, peer.Meta)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil && g.nodes[peer.Name] == nil {
		err = g.admitLocked(time.Now())
	}
	if err == nil {
		delete(g.refused, peer.Name)
		return nil
	}
	g.refuseLocked(peer, err)
	return err
}

// admitLocked counts one more node. The caller holds g.mu.
func (g *gossip) admitLocked(now time.Time) error {
	if now.Sub(g.hour) > time.Hour {
		g.hour, g.newcomers = now, 0
	}
	if len(g.nodes) >= maxMembers {
		return fmt.Errorf("there are %d members, the most that are allowed", maxMembers)
	}
	if g.newcomers >= maxNewcomers {
		return fmt.Errorf("%d processes joined within an hour, the most that are allowed", maxNewcomers)
	}
	g.newcomers++
	return nil
}

// refuseLocked notes an announcement that is not believed, and logs it the first time. The caller holds g.mu.
func (g *gossip) refuseLocked(peer *memberlist.Node, err error) {
	now := time.Now()
	r, known := g.refused[peer.Name]
	if !known {
		maps.DeleteFunc(g.refused, func(_ string, r refusal) bool { return now.Sub(r.last) > refusalKept })
		if len(g.refused) >= maxOutsiders {
			return
		}
		r.Outsider = Outsider{Name: fmt.Sprintf("%.128q", peer.Name), Address: peer.Address(), Why: "left out: " + err.Error()}
		if validateName(peer.Name) == nil {
			r.Name = peer.Name
		}
		g.log.Warn("an announcement is not believed", "member", r.Name, "gossip", r.Address, "error", err)
	}
	r.last = now
	g.refused[peer.Name] = r
}

// NotifyJoin takes up a node that was unknown, dead or gone.
func (g *gossip) NotifyJoin(n *memberlist.Node) { g.take(n) }

// NotifyUpdate takes up a node's new metadata.
func (g *gossip) NotifyUpdate(n *memberlist.Node) { g.take(n) }

func (g *gossip) take(peer *memberlist.Node) {
	m, leaving, err := decodeMetadata(peer.Name, peer.Meta)
	if err != nil {
		return // NotifyAlive let none of these in
	}
	ip, _ := netip.AddrFromSlice(peer.Addr)
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.nodes[peer.Name]
	if n != nil && n.Boot == m.Boot && n.Role == m.Role { // these do not change while a node is known
		changed := n.Member != m
		n.Address, n.Version, n.Weight, n.leaving = m.Address, m.Version, m.Weight, leaving
		if n.holds && changed {
			g.changedLocked()
		}
		return
	}
	if n != nil { // of a program whose nodes have names without boots
		close(n.gone)
	}
	n = &node{Member: m, key: peer.Name, gossip: netip.AddrPortFrom(ip.Unmap(), peer.Port), leaving: leaving, gone: make(chan struct{})}
	g.nodes[n.key] = n
	switch {
	case n.key == g.key:
		n.holds = true
		g.changedLocked()
	case !g.ended:
		g.tasks.Go(func() { g.meet(n) })
	}
}

// NotifyLeave forgets a node that left or is found dead.
func (g *gossip) NotifyLeave(peer *memberlist.Node) {
	g.mu.Lock()
	n := g.nodes[peer.Name]
	if n != nil {
		delete(g.nodes, n.key)
		close(n.gone)
		if n.holds {
			g.changedLocked()
		}
	}
	g.mu.Unlock()
	switch {
	case n == nil || n.key == g.key || !n.holds:
	case n.leaving:
		g.log.Info("member left", "member", n.Name, "role", n.Role.String(), "address", n.Address)
	default:
		g.log.Warn("member is found dead: it does not answer gossip", "member", n.Name, "role", n.Role.String(), "address", n.Address, "gossip", n.gossip.String())
	}
}
