// Package explore runs the code of sessions that ships (client, fan-out, the relay of a coordinator, workers) through what may
// happen to it: messages that wait, are lost, or come late, connections that break, and workers that crash and start again, in
// every order of a small case or in random ones of a large.
//
// The way of a run: a World is a bubble of testing/synctest with workers, and drivers that each follow a script, on a
// network that stands still (internal/testkit/stillnet). Once nothing runs any more, Moves has what may happen next; the search
// chooses one (search.go), and so on until all scripts have ended. The choices are all that differs between two runs: ids come
// from sources with a seed, time passes only by a move. So a list of choices is a run, and can be run again.
//
// The checker (check.go) keeps what the session may be, given what its clients were told; what they are told further must fit.
// At the end one more client takes the session over, and each of its holders has to have what was acknowledged (finale.go).
package explore

import (
	"context"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"headwater.example/client"
	"headwater.example/coordinator/sessions"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	"headwater.example/internal/testkit/plainholder"
	"headwater.example/internal/testkit/stillnet"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker"
)

// Case is what a run may consist of.
type Case struct {
	Workers int // processes; a session is opened on two of them
	// Drivers have the scripts, by name. The first opens the session, with which a run begins; starting another is a move.
	Drivers []Script
	// Faults are what may break, and how often: "crash w1", "start w1" again, "break A>w1" between a driver and a worker, "late A>w1" is
	// a request of a broken connection that arrives after all, "notice A>w1" that a driver learns of a crash without a request,
	// "tick" lets time pass though messages wait.
	Faults map[string]int
	// Looks lets what a client asks the workers about who holds what reach them one by one, and not all at once.
	Looks bool
	// Full explores moves in all orders, even if those of different workers make no difference.
	Full bool
	// Eager answers arrive with the delivery of their request, unless the connection breaks in between.
	Eager bool
	// Plain lets plain holders (internal/testkit/plainholder), which have a fault, take the place of workers.
	Plain bool
	Fault plainholder.Fault
	// Parted lets sessions go on twice: links of all clients may break. What each client is told is not compared with what others are, but
	// each has to find at some worker what it was acknowledged last.
	Parted bool
	// Forgets lets workers say that no session was of any use since it was made.
	Forgets bool
	// SameBoot lets a worker that starts again say that it is the one that it was before.
	SameBoot bool
}

// World is one run of a case.
type World struct {
	Case
	net     *stillnet.Net
	workers []*process
	drivers []*driver
	check   *checker
	left    map[string]int // of the faults
	began   time.Time
	opened  []string // the workers on which the session was opened
	moved   []string // the names of the moves made
}

// process is one worker.
type process struct {
	name, address string
	boot          int
	end           func() // ends it, nil while it does not run
	told          told
	stale         bool // told is to be asked anew
}

// random is a source of ids that several goroutines use.
type random struct {
	mu  sync.Mutex
	rng *rand.ChaCha8
}

func newRandom(name string) *random {
	var seed [32]byte
	copy(seed[:], name)
	return &random{rng: rand.NewChaCha8(seed)}
}

func (r *random) Read(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rng.Read(b)
}

var _ io.Reader = (*random)(nil)

// newWorld begins a run. It is called, as all else of the world, in a bubble.
func newWorld(c Case) (*World, error) {
	w := &World{
		Case: c, net: stillnet.New(), check: newChecker(c.Parted), left: maps.Clone(c.Faults), began: time.Now(),
	}
	for i := range c.Workers {
		p := &process{name: fmt.Sprintf("w%d", i+1), address: fmt.Sprintf("w%d:1", i+1)}
		w.workers = append(w.workers, p)
		if err := w.start(p); err != nil {
			return w, err
		}
	}
	for _, s := range c.Drivers {
		d, err := w.newDriver(s)
		if err != nil {
			return w, err
		}
		w.drivers = append(w.drivers, d)
	}
	w.drivers[0].start()
	for w.check.acked.receipt == nil {
		if err := w.step(); err != nil {
			return w, err
		}
	}
	w.opened = w.holders(w.check.acked.receipt.Session)
	return w, nil
}

// start starts a worker's process.
func (w *World) start(p *process) error {
	if p.boot == 0 || !w.SameBoot {
		p.boot++
	}
	p.stale = true
	boot := uuid.UUID{p.name[1], byte(p.boot)}
	if w.Plain {
		h := &plainholder.Holder{Name: p.name, Boot: boot, Fault: w.Fault}
		p.end = func() {}
		w.net.Serve(p.address, h.Register)
		return nil
	}
	made, err := worker.New(worker.Config{Name: p.name, Boot: boot, Weight: 1, Budget: 64 << 20, Threads: 1})
	if err != nil {
		return err
	}
	p.end = made.Close
	w.net.Serve(p.address, func(s grpc.ServiceRegistrar) {
		if w.Forgets {
			s = forgetful{s}
		}
		made.Register(s)
	})
	return nil
}

// crash ends a worker's process.
func (w *World) crash(p *process) {
	w.net.Stop(p.address)
	p.end()
	p.end, p.told = nil, told{}
}

// close ends all that runs.
func (w *World) close() {
	for _, d := range w.drivers {
		d.close()
	}
	for _, p := range w.workers {
		if p.end != nil {
			w.crash(p)
		}
	}
}

// party is a client with a relay of its own, which is as a part of it.
type party struct {
	name   string
	client *client.Client
	relay  *sessions.Relay
}

func (w *World) newParty(name string) (*party, error) {
	var members []membership.Member
	for _, p := range w.workers {
		members = append(members, membership.Member{Name: p.name, Role: membership.RoleWorker, Address: p.address, Weight: 1})
	}
	options := append(w.net.Dial(name), fanout.WithRandom(newRandom(name)))
	p := &party{name: name, relay: sessions.New(sessions.Config{
		View: membership.Static(members), Dial: append(rpc.DialOptions(), options...), Logger: slog.New(slog.DiscardHandler), Replicas: 1,
	})}
	coordinator := strings.ToLower(name) + ":1"
	w.net.ServeOpen(coordinator, func(s grpc.ServiceRegistrar) { session.Register(s, p.relay) })
	var err error
	p.client, err = client.Dial(coordinator, options...)
	return p, err
}

func (p *party) close(w *World) {
	_ = p.client.Close() // it fails only if it was closed before
	w.net.Stop(p.client.Address())
	_ = p.relay.Close()
}

// settle waits until nothing runs, and takes up what the drivers have been told and what has become of the workers.
func (w *World) settle() error {
	for {
		synctest.Wait()
		if !w.Eager || !w.answer() {
			break
		}
	}
	for _, p := range w.workers {
		if p.end != nil && p.stale {
			if err := p.ask(w.net); err != nil {
				return err
			}
			p.stale = false
		}
	}
	for _, d := range w.drivers {
		if err := d.report(); err != nil {
			return err
		}
	}
	return nil
}

// step lets the first message through, and time pass where there is none.
func (w *World) step() error {
	if err := w.settle(); err != nil {
		return err
	}
	for _, c := range w.net.Calls() {
		if c.Requests() > 0 && !c.Orphan() {
			return w.deliver(c)
		}
		if c.Answers() > 0 {
			c.Answer()
			return nil
		}
	}
	w.pass()
	return nil
}

// answer hands out all answers, and reports whether there were any.
func (w *World) answer() bool {
	some := false
	for _, c := range w.net.Calls() {
		for c.Answers() > 0 {
			c.Answer()
			some = true
		}
	}
	return some
}

// move is something that may happen.
type move struct {
	name   string
	fault  string // that it uses up, or ""
	worker string // whose alone it is, with the clients that wait for that worker; "" is everybody's
	begins bool   // whether it starts a driver
	do     func() error
}

// moves returns what may happen next, in an order that follows from the moves made.
func (w *World) moves() []move {
	all, waits := w.messages()
	idle := false
	for _, d := range w.drivers {
		switch {
		case !d.started:
			all = append(all, move{name: "start " + d.name, begins: true, do: func() error { d.start(); return nil }})
		case !d.ended && !waits[d.name]:
			idle = true
		}
	}
	for _, p := range w.workers {
		switch {
		case p.end != nil && w.left["crash "+p.name] > 0:
			all = append(all, move{name: "crash " + p.name, fault: "crash " + p.name, worker: p.address, do: func() error { w.crash(p); return nil }})
		case p.end == nil && w.left["start "+p.name] > 0:
			all = append(all, move{name: "start " + p.name, fault: "start " + p.name, worker: p.address, do: func() error { return w.start(p) }})
		}
	}
	switch tick := (move{name: "time passes", do: func() error { w.pass(); return nil }}); {
	case !idle:
	case len(waits) == 0:
		all = append(all, tick)
	case w.left["tick"] > 0:
		tick.fault = "tick"
		all = append(all, tick)
	}
	return all
}

// messages returns the moves of messages and connections, and which clients wait for some.
func (w *World) messages() (all []move, waits map[string]bool) {
	waits = map[string]bool{}
	var done []string // moves of several calls
	add := func(m move) {
		if !slices.Contains(done, m.name) {
			all = append(all, m)
		}
		done = append(done, m.name)
	}
	for _, c := range w.net.Calls() {
		link := c.From() + ">" + strings.TrimSuffix(c.To(), ":1")
		if c.Orphan() {
			if late := "late " + link; c.Requests() > 0 && w.left[late] > 0 {
				add(move{name: "late " + c.Name(), fault: late, worker: c.To(), do: func() error { return w.deliver(c) }})
			}
			continue
		}
		if c.Answers() > 0 {
			waits[c.From()] = true
			add(move{name: "answer " + c.Name(), worker: c.To(), do: func() error { c.Answer(); return nil }})
		}
		if notice := "notice " + link; c.Broken() && w.left[notice] > 0 {
			add(move{name: "notice " + c.Name(), fault: notice, do: func() error { c.Notice(); return nil }})
		}
		if c.Requests() == 0 {
			continue
		}
		waits[c.From()] = true
		if looks(c) && !w.Looks {
			add(move{name: "look " + c.From(), do: func() error { return w.look(c.From()) }})
			continue
		}
		add(move{name: "deliver " + c.Name(), worker: c.To(), do: func() error { return w.deliver(c) }})
		fault := "break " + link
		if w.left[fault] == 0 {
			continue
		}
		cut := func() error { w.net.Break(c.From(), c.To()); return nil }
		add(move{name: fault, fault: fault, worker: c.To(), do: cut})
		if w.Eager {
			add(move{name: "deliver and break " + c.Name(), fault: fault, worker: c.To(), do: func() error {
				if err := w.deliver(c); err != nil {
					return err
				}
				synctest.Wait()
				return cut()
			}})
		}
	}
	return all, waits
}

// make makes a move.
func (w *World) make(m move) error {
	w.moved = append(w.moved, m.name)
	if m.fault != "" {
		w.left[m.fault]--
	}
	return m.do()
}

// enough returns moves of which one has to be made first, whatever else is made: those at a worker for which all clients wait. No client
// asks it anything new before, so what happens elsewhere in the meantime changes none of them, nor does one of them change that.
func (w *World) enough(all []move) []move {
	if slices.ContainsFunc(all, func(m move) bool { return m.worker == "" && !m.begins }) {
		return all
	}
	waiting := map[string]map[string]bool{} // by worker
	for _, c := range w.net.Calls() {
		if c.Orphan() || c.Requests() == 0 {
			continue
		}
		if looks(c) && !w.Looks {
			return all
		}
		if waiting[c.To()] == nil {
			waiting[c.To()] = map[string]bool{}
		}
		waiting[c.To()][c.From()] = true
	}
	least := all
	for _, p := range w.workers {
		if slices.ContainsFunc(w.drivers, func(d *driver) bool { return d.started && !d.ended && !waiting[p.address][d.name] }) {
			continue
		}
		if slices.ContainsFunc(w.drivers, func(d *driver) bool {
			return d.ended && !waiting[p.address][d.name] && slices.ContainsFunc(w.workers, func(o *process) bool { return waiting[o.address][d.name] })
		}) {
			continue // what runs on behind its script
		}
		some := slices.DeleteFunc(slices.Clone(all), func(m move) bool { return m.worker != p.address && !m.begins })
		if len(some) > 0 && len(some) < len(least) {
			least = some
		}
	}
	return least
}

// deliver hands a request to its worker.
func (w *World) deliver(c *stillnet.Call) error {
	for _, p := range w.workers {
		if p.address == c.To() {
			p.stale = true
		}
	}
	c.Deliver()
	return nil
}

// looks reports whether a call only asks who holds what.
func looks(c *stillnet.Call) bool {
	return c.Method() == headwaterv1.SessionService_ListSessions_FullMethodName || c.Method() == headwaterv1.WorkerService_Describe_FullMethodName
}

// look hands a client's questions of who holds what to all workers.
func (w *World) look(client string) error {
	for _, c := range w.net.Calls() {
		if c.From() == client && looks(c) && !c.Orphan() && c.Requests() > 0 {
			if err := w.deliver(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// pass lets time pass until a driver goes on, a minute at most.
func (w *World) pass() {
	before := len(w.net.Calls())
	for step := 10 * time.Millisecond; step < time.Minute; step *= 2 {
		time.Sleep(step)
		synctest.Wait()
		if len(w.net.Calls()) != before || slices.ContainsFunc(w.drivers, func(d *driver) bool { return len(d.said) > 0 }) {
			return
		}
	}
}

// hash is that of all that the further run depends on.
func (w *World) hash() uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, c := range w.net.Calls() {
		c.Hash(&h)
	}
	for _, p := range w.workers {
		maphash.WriteComparable(&h, [...]uint64{p.told.hash, uint64(p.boot)})
		maphash.WriteComparable(&h, p.end != nil)
	}
	for _, d := range w.drivers {
		maphash.WriteComparable(&h, [...]bool{d.started, d.ended})
		maphash.WriteComparable(&h, d.at)
	}
	w.check.write(w, &h)
	_, _ = fmt.Fprint(&h, w.left)
	maphash.WriteComparable(&h, time.Since(w.began))
	return h.Sum64()
}

var seed = maphash.MakeSeed()

// bounded is the context of what is asked in a run.
func bounded() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Hour)
}
