package membership

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"headwater.example/internal/address"
	"headwater.example/internal/certs"
	"headwater.example/internal/membership/internal/guard"
)

// GossipConfig says whom to announce and where.
type GossipConfig struct {
	// Self is announced to the others. Its boot is fresh at each start of the process.
	Self Member
	// Bind is the host:port that gossip listens on, over TCP and UDP. Port 0 takes a free one (see GossipAddr); an empty
	// host is every address of the machine.
	Bind string
	// Advertise is the host, or host:port if Bind names a port, under which others reach Bind. Empty is what
	// address.Advertised finds. A host name is resolved once, here.
	Advertise string
	// Seeds are host:port of gossip of others, one of which leads to all. Names are resolved anew at each try, all of
	// their addresses are joined, and the own one is left out, so that all members can have the same seeds.
	Seeds []string
	// SeedRetry is the time after which a seed that did not answer is tried again. It doubles up to 16 times of it, and is
	// 16 times of it once all answered: seeds that left the view since are then joined again, which heals a cluster that
	// was cut. Zero is one second.
	SeedRetry time.Duration
	// KeyFile has the keys that gossip is encrypted with, as package certs reads them. It is read again when it changes. "" is
	// gossip in plain text.
	KeyFile string
	// OnRefused, unless nil, is told of each message that is refused, by any goroutine.
	OnRefused func(certs.Reason)
	// Logger gets what happens to members, and memberlist's own messages. Nil is slog.Default().
	Logger *slog.Logger

	lookup func(ctx context.Context, host string) ([]netip.Addr, error) // nil is the system's resolver
	tune   func(*memberlist.Config)                                     // nil but in tests
}

// label stands before each packet and stream of gossip, so that a foreign memberlist at the same address stays outside.
const label = "headwater"

// leaveTimeout bounds the saying of leave if the context of Close does not.
const leaveTimeout = 5 * time.Second

// Gossip announces cfg.Self and follows the others. It returns once it listens; goroutines that Close ends join the
// seeds and meet the members. The context bounds this call alone.
//
// If two living processes have one name, the first keeps it and the other is among the Outsiders, on every member; once
// the first left or does not answer any more, the other takes its place.
func Gossip(ctx context.Context, cfg GossipConfig) (View, error) {
	g := newGossip(cfg)
	var err error
	if g.secret, err = newSecret(cfg.KeyFile); err != nil {
		return nil, fmt.Errorf("keys of gossip: %w", err)
	}
	for _, seed := range cfg.Seeds {
		a, err := parseSeed(seed)
		if err != nil {
			return nil, fmt.Errorf("gossip seed: %w", err)
		}
		g.seeds = append(g.seeds, a)
	}
	if _, err := encodeMetadata(cfg.Self, false); err != nil {
		return nil, fmt.Errorf("announcing this process: %w", err)
	}
	mc := g.config()
	if err := g.listen(ctx, mc, cfg); err != nil {
		return nil, err
	}
	if cfg.tune != nil {
		cfg.tune(mc)
	}
	g.pingTimeout = mc.ProbeTimeout
	if g.list, err = memberlist.Create(mc); err != nil {
		return nil, errors.Join(fmt.Errorf("gossiping on %s: %w", cfg.Bind, err), g.transport.Shutdown())
	}
	close(g.created)
	self := g.list.LocalNode()
	g.address = net.JoinHostPort(self.Addr.String(), strconv.Itoa(int(self.Port)))
	g.log.Debug("gossip listens", "bind", cfg.Bind, "advertise", g.address)
	g.tasks.Go(g.join)
	g.tasks.Go(func() { g.patrol(mc.ProbeInterval) })
	if g.secret != nil {
		ticker := time.NewTicker(keysEvery)
		g.tasks.Go(func() { defer ticker.Stop(); g.tendKeys(ticker.C) })
	}
	return g, nil
}

func newGossip(cfg GossipConfig) *gossip {
	g := &gossip{
		self:    cfg.Self,
		key:     keyOf(cfg.Self),
		retry:   cfg.SeedRetry,
		log:     cfg.Logger,
		lookup:  cfg.lookup,
		created: make(chan struct{}),
		nodes:   make(map[string]*node),
		refused: make(map[string]refusal),
		keyFile: cfg.KeyFile,
		changed: make(chan struct{}),
	}
	if g.log == nil {
		g.log = slog.Default()
	}
	if g.retry <= 0 {
		g.retry = time.Second
	}
	if g.lookup == nil {
		g.lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	g.running, g.stop = context.WithCancel(context.Background())
	g.output = &logWriter{log: g.log, now: time.Now}
	return g
}

// parseSeed reads the address of a seed. Gossip has no default port.
func parseSeed(text string) (address.Address, error) {
	a, err := address.ParseAdvertised(text, 0)
	if err == nil && a.Unix() {
		err = fmt.Errorf("address %q: gossip needs a network", text)
	}
	return a, err
}

// keyOf is the name of a process among memberlist's nodes: a member's name and its boot. So a process that comes back, at
// whatever address, is another node, and never has to wait until its predecessor is found dead.
func keyOf(m Member) string { return m.Name + "." + hex.EncodeToString(m.Boot[:]) }

// nameOf is the name of a member in the name of its node. Programs from before boots were in it have the name alone.
func nameOf(key string, boot [16]byte) string {
	return strings.TrimSuffix(key, "."+hex.EncodeToString(boot[:]))
}

// GossipAddr returns the host:port under which the others gossip with this view: a seed for them. It is "" for a view
// that does not gossip.
func GossipAddr(v View) string {
	if g, ok := v.(interface{ GossipAddr() string }); ok {
		return g.GossipAddr()
	}
	return ""
}

// config returns memberlist's configuration without its network; g becomes its delegate.
func (g *gossip) config() *memberlist.Config {
	mc := memberlist.DefaultLANConfig()
	mc.Name = g.key
	mc.Label = label
	mc.GossipInterval = 100 * time.Millisecond // leave is said over a few of these
	mc.PushPullInterval = 10 * time.Second     // bounds how long one that missed a message stays wrong
	mc.TCPTimeout = 3 * time.Second            // Close may wait for a seed that swallows packets
	mc.DeadNodeReclaimTime = time.Nanosecond   // a name is free as soon as its holder is dead
	mc.Delegate, mc.Events, mc.Alive = g, g, g
	mc.Logger = log.New(g.output, "", 0)
	if g.secret != nil {
		mc.Keyring = g.secret.Ring
	}
	return mc
}

// listen binds gossip and says in mc what is bound and advertised.
func (g *gossip) listen(ctx context.Context, mc *memberlist.Config, cfg GossipConfig) error {
	bind, err := address.ParseListen(cfg.Bind)
	if err == nil && bind.Unix() {
		err = fmt.Errorf("address %q: gossip needs a network", cfg.Bind)
	}
	if err != nil {
		return fmt.Errorf("gossip address to bind: %w", err)
	}
	if bind.Port == 0 && cfg.Advertise != "" {
		if a, err := address.ParseAdvertised(cfg.Advertise, 1); err == nil && a.Port != 1 {
			return fmt.Errorf("gossip address to advertise: %s names a port, and %s, which is bound, does not", cfg.Advertise, cfg.Bind)
		}
	}
	ip := address.Every()
	if bind.Host != "" {
		if ip, err = g.resolveOne(ctx, bind.Host); err != nil {
			return fmt.Errorf("gossip address to bind: %w", err)
		}
	}
	bind.Host = ip.String()
	advertise := bind
	if bind.Port == 0 {
		advertise.Port = 1 // until one is bound
	}
	if advertise, err = address.Advertised(ctx, advertise, cfg.Advertise, g.seeds); err != nil {
		return fmt.Errorf("gossip address to advertise: %w", err)
	}
	if ip, err = g.resolveOne(ctx, advertise.Host); err != nil {
		return fmt.Errorf("gossip address to advertise: %w", err)
	}
	g.transport, err = guard.Listen(&memberlist.NetTransportConfig{BindAddrs: []string{bind.Host}, BindPort: int(bind.Port), Logger: mc.Logger}, g.secret, func(from net.Addr, err error) {
		if cfg.OnRefused != nil {
			cfg.OnRefused(reasonOf(err))
		}
		g.output.warn("gossip message refused", "from", from.String(), "error", err)
	})
	if err != nil {
		return fmt.Errorf("gossiping on %s: %w", cfg.Bind, err)
	}
	port := g.transport.GetAutoBindPort()
	mc.Transport = g.transport
	mc.BindAddr, mc.BindPort = bind.Host, port
	mc.AdvertiseAddr, mc.AdvertisePort = ip.String(), int(advertise.Port)
	if bind.Port == 0 {
		mc.AdvertisePort = port
	}
	return nil
}

// gossip is the view by memberlist, and its delegate. Memberlist calls the Notify methods with its own lock held: they
// take g.mu alone and call nothing of memberlist.
type gossip struct {
	list        *memberlist.Memberlist
	transport   *guard.Transport
	secret      *guard.Secret // nil for gossip in plain text
	keyFile     string
	created     chan struct{} // closed when list is set
	self        Member
	key         string // of self
	address     string
	seeds       []address.Address
	retry       time.Duration
	pingTimeout time.Duration
	log         *slog.Logger
	output      *logWriter
	lookup      func(ctx context.Context, host string) ([]netip.Addr, error)

	running context.Context // ends with Close
	stop    context.CancelFunc
	tasks   sync.WaitGroup
	closing sync.Once
	closed  error

	mu        sync.Mutex
	ended     bool               // no task is begun any more
	leaving   bool               // what the metadata says
	nodes     map[string]*node   // the living, by their keys
	refused   map[string]refusal // announcements that are not believed, by node
	newcomers int                // keys that came since the hour began
	hour      time.Time
	overTCP   bool // it was said that UDP is blocked
	changed   chan struct{}
}

func (g *gossip) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

// GossipAddr returns the host:port under which the others gossip with this process.
func (g *gossip) GossipAddr() string { return g.address }

func (g *gossip) Close(ctx context.Context) error {
	g.closing.Do(func() {
		g.mu.Lock()
		g.ended = true
		g.leaving = true
		alone := len(g.nodes) <= 1
		g.mu.Unlock()
		g.stop()
		timeout := leaveTimeout
		if deadline, ok := ctx.Deadline(); ok {
			timeout = min(timeout, time.Until(deadline))
		}
		if ctx.Err() != nil {
			timeout = 0
		}
		var failed []error
		// The metadata says it first: of memberlist's message one can't tell who left from who was found dead.
		if !alone && timeout > 0 {
			_ = g.list.UpdateNode(timeout / 2) // it is a hint
		}
		if err := g.list.Leave(max(timeout/2, time.Millisecond)); err != nil { // zero would be forever
			failed = append(failed, fmt.Errorf("saying leave by gossip: %w", err))
		}
		failed = append(failed, g.end()...)
		g.closed = oneLine(failed)
	})
	return g.closed
}

// end ends what runs, without a word to the others.
func (g *gossip) end() (failed []error) {
	g.mu.Lock()
	g.ended = true
	g.mu.Unlock()
	g.stop()
	if err := g.list.Shutdown(); err != nil {
		failed = append(failed, fmt.Errorf("ending gossip: %w", err))
	}
	g.tasks.Wait()
	g.output.close()
	return failed
}

// changedLocked tells the readers. The caller holds g.mu.
func (g *gossip) changedLocked() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// NodeMeta returns the metadata to announce.
func (g *gossip) NodeMeta(int) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	meta, _ := encodeMetadata(g.self, g.leaving) // Gossip has made it before
	return meta
}

// NotifyMsg ignores messages: Headwater sends none by gossip.
func (g *gossip) NotifyMsg([]byte) {}

// GetBroadcasts has nothing to add to what memberlist says.
func (g *gossip) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState has nothing to add to what memberlist says.
func (g *gossip) LocalState(bool) []byte { return nil }

// MergeRemoteState has nothing to read.
func (g *gossip) MergeRemoteState([]byte, bool) {}
