package drivers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session/fanout"
	"headwater.example/internal/testkit/cut"
	"headwater.example/internal/testkit/jump"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// processes are a cluster of processes, that are stopped, killed and started again.
type processes struct {
	*localcluster.Cluster
	config    Config
	addresses []string // of the coordinators
	*reach
}

func startProcesses(ctx context.Context, config Config) (company, error) {
	args := []string{"--replicas", strconv.Itoa(config.Replicas)}
	c, err := localcluster.Start(ctx, localcluster.Options{
		Workers: config.Workers, Memory: config.Budget, Threads: 1, Command: []string{config.Command}, CoordinatorArgs: args, Log: config.Log,
	})
	if err != nil {
		return nil, err
	}
	p := &processes{Cluster: c, config: config}
	if config.Coordinators == 2 {
		if err := c.StartSecond(ctx); err != nil {
			return nil, errors.Join(err, c.Stop(ctx))
		}
	}
	for i := range max(config.Coordinators, 1) {
		service, _ := c.Addresses(-1 - i)
		p.addresses = append(p.addresses, service)
	}
	p.reach = newReach(p.workers())
	return p, nil
}

// workers are the workers, by name.
func (p *processes) workers() (all []rpc.Peer) {
	for i := range p.Workers() {
		service, _ := p.Addresses(i)
		all = append(all, rpc.Peer{Name: p.Name(i), Address: service})
	}
	return all
}

func (p *processes) coordinators() []string { return p.addresses }

// victim draws a process: a worker, or less than 0 for a coordinator.
func (p *processes) victim(random *rand.Rand) int {
	n := len(p.addresses)
	return random.IntN(p.Workers()+n) - n
}

func (p *processes) stop() error {
	p.reach.stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return p.Stop(ctx)
}

// disturb stops and kills one process at a time, until ctx ends. Then all run, and the coordinator sees them.
func (p *processes) disturb(ctx context.Context, r *run) error {
	random := rand.New(rand.NewPCG(p.config.Seed, 1))
	for n := 1; ; n++ {
		victim := p.victim(random)
		pause, length := time.Duration(50+random.IntN(300))*time.Millisecond, time.Duration(random.IntN(300))*time.Millisecond
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		// What a fault before has cost is there again, or the next one could meet the only copy that is left.
		if err := p.copies(ctx, r); err != nil || ctx.Err() != nil {
			return err
		}
		if err := p.jump(r, random); err != nil {
			return err
		}
		var err error
		switch {
		case n%10 == 7 && p.config.Slow:
			err = p.slow(ctx, r, random.IntN(32<<20)+2<<20, 10*length)
		case n%10 == 4 && p.config.Starve:
			err = p.starve(ctx, r, victim, 10*length)
		case n%10 == 2 && p.config.Delay:
			err = p.delay(ctx, r, random, victim, 10*length)
		case n%3 == 1:
			err = p.kill(ctx, r, victim, 5*length)
		case n%8 == 0:
			err = p.halt(ctx, r, victim, 10*length) // longer than calls last
		case n%3 == 2 && p.config.Network != nil:
			err = p.cut(ctx, r, victim, cut.Direction(random.IntN(3)), 10*length)
		default:
			err = p.halt(ctx, r, victim, length)
		}
		if err != nil {
			return err
		}
	}
}

// jump sets the clock of a process, or that of those which are started from now on, forth or back by up to an hour.
func (p *processes) jump(r *run, random *rand.Rand) error {
	if p.config.Clocks == nil {
		return nil
	}
	r.tally.jumps.Add(1)
	off := jump.Somewhere(random)
	if random.IntN(p.Workers()+2) == 0 {
		return p.config.Clocks.SetNew(off)
	}
	return p.config.Clocks.Set(p.Process(p.victim(random)), off)
}

// halt stops a process for some time.
func (p *processes) halt(ctx context.Context, r *run, victim int, length time.Duration) error {
	r.tally.stops.Add(1)
	id := p.Process(victim)
	if err := syscall.Kill(id, syscall.SIGSTOP); err != nil {
		return err
	}
	wait(ctx, length)
	return syscall.Kill(id, syscall.SIGCONT)
}

// cut drops packets to a process, from it, or both, for some time. Where sessions have copies, it waits until they have them again.
func (p *processes) cut(ctx context.Context, r *run, victim int, which cut.Direction, length time.Duration) error {
	r.tally.cuts.Add(1)
	service, gossip := p.Addresses(victim)
	if err := p.config.Network.Drop(which, service, gossip); err != nil {
		return err
	}
	wait(ctx, length)
	if err := p.config.Network.Heal(); err != nil {
		return err
	}
	healed, cancel := context.WithTimeout(context.WithoutCancel(ctx), settled)
	defer cancel()
	if err := p.AwaitWorkers(healed); err != nil {
		return err
	}
	return p.copies(ctx, r)
}

// slow lets only so many bits a second pass, for some time.
func (p *processes) slow(ctx context.Context, r *run, bits int, length time.Duration) error {
	r.tally.slowed.Add(1)
	if err := p.config.Network.Slow(bits); err != nil {
		return err
	}
	wait(ctx, length)
	return p.config.Network.Steady()
}

// delay lets packets to and from a process come late for some time, and those of gossip out of order and twice.
func (p *processes) delay(ctx context.Context, r *run, random *rand.Rand, victim int, length time.Duration) error {
	r.tally.delayed.Add(1)
	lag := cut.Lag{
		Least: time.Duration(random.IntN(20)) * time.Millisecond, More: time.Duration(1+random.IntN(60)) * time.Millisecond, Twice: random.IntN(30),
	}
	service, gossip := p.Addresses(victim)
	end, err := p.config.Network.Delay(lag, rand.New(rand.NewPCG(random.Uint64(), 1)), service, gossip)
	if err != nil {
		return err
	}
	wait(ctx, length)
	return end()
}

// starved is how many bytes more a process may take that gets no more memory: it wants them at once.
const starved = 256 << 10

// starve lets a process have no more memory, so that the kernel kills it, and starts it again. One that needs none for so long is
// killed.
func (p *processes) starve(ctx context.Context, r *run, victim int, length time.Duration) error {
	r.tally.starved.Add(1)
	var err error
	die := func() {
		var release func() error
		if release, err = cut.Starve(p.Process(victim), starved); err != nil {
			return
		}
		select {
		case <-p.WorkerDone(victim):
		case <-time.After(length):
		case <-ctx.Done():
		}
		p.Kill(victim)
		err = release()
	}
	if victim < 0 {
		die()
	} else {
		r.losses.doubt(func() { p.bury(ctx, r, victim, func() { r.losses.kill(p.Name(victim), die) }) })
	}
	if err != nil {
		return err
	}
	return p.restart(ctx, r, victim)
}

// kill kills a process, and starts it again after some time. Where sessions have copies, it waits until they have them again.
func (p *processes) kill(ctx context.Context, r *run, victim int, length time.Duration) error {
	r.tally.kills.Add(1)
	if victim >= 0 {
		if err := p.orphan(ctx, r, victim); err != nil {
			return err
		}
		r.losses.kill(p.Name(victim), func() { p.Kill(victim) })
	} else {
		p.Kill(victim)
	}
	wait(ctx, length)
	return p.restart(ctx, r, victim)
}

// restart starts a process again, also if ctx has ended. Where sessions have copies, it waits until they have them again.
func (p *processes) restart(ctx context.Context, r *run, victim int) error {
	restarting, cancel := context.WithTimeout(context.WithoutCancel(ctx), settled)
	defer cancel()
	var err error
	switch victim {
	case -1:
		err = p.RestartCoordinator(restarting)
	case -2:
		err = p.StartSecond(restarting)
	default:
		err = p.RestartWorker(restarting, victim)
	}
	if err = errors.Join(err, p.AwaitWorkers(restarting)); err != nil {
		return err
	}
	return p.copies(ctx, r)
}

// orphan stops a worker that is about to be killed, and notes the sessions that the others do not have as a whole: what they were
// acknowledged dies with it. Once it stands still it acknowledges nothing more, so all that the others lack is known.
func (p *processes) orphan(ctx context.Context, r *run, victim int) error {
	if p.config.Replicas == 0 {
		return nil
	}
	a := newAsking(r)
	defer a.conns.Close()
	w := p.workers()[victim]
	if err := a.ask(ctx, w); err != nil && ctx.Err() == nil {
		return fmt.Errorf("ask worker %s before it is killed: %w", w.Name, err)
	}
	if err := syscall.Kill(p.Process(victim), syscall.SIGSTOP); err != nil {
		return err
	}
	p.askOthers(ctx, a, victim)
	known := slices.DeleteFunc(slices.Clone(a.ids), func(id client.SessionID) bool { return len(a.told[id]) == 0 })
	r.losses.orphan(a.partial(known, w.Name))
	return nil
}

// bury lets a worker die at a moment that nobody knows, and notes the sessions that the others do not have as a whole then. What it had it is
// asked all the time: sessions may have gone on with it alone, and those that were left out do not know that.
func (p *processes) bury(ctx context.Context, r *run, victim int, die func()) {
	if p.config.Replicas == 0 {
		die()
		return
	}
	a := newAsking(r)
	defer a.conns.Close()
	living, dies := context.WithCancel(ctx)
	var asking sync.WaitGroup
	asking.Go(func() {
		for w := p.workers()[victim]; living.Err() == nil; wait(living, askEvery) {
			now := a.anew(r)
			if now.ask(living, w) == nil {
				a.told, a.ids = now.told, now.ids
			}
		}
	})
	die()
	dies()
	asking.Wait()
	now := a.anew(r)
	for _, id := range now.ids {
		now.told[id] = a.told[id]
	}
	p.askOthers(context.WithoutCancel(ctx), now, victim)
	r.losses.orphan(now.partial(now.ids, p.Name(victim)))
}

// askOthers asks all workers but one. What one of them does not tell is not known to be there.
func (p *processes) askOthers(ctx context.Context, a *asking, victim int) {
	for i, w := range p.workers() {
		if i != victim {
			_ = a.ask(ctx, w)
		}
	}
}

// asking is what workers tell of the sessions that are driven.
type asking struct {
	conns *fanout.Conns
	ids   []client.SessionID
	told  map[client.SessionID][]*headwaterv1.SessionState
}

func newAsking(r *run) *asking {
	return (&asking{conns: fanout.NewConns(nil, rpc.DialOptions()...)}).anew(r)
}

// anew is what is asked of the sessions that are driven now, over the same connections.
func (a *asking) anew(r *run) *asking {
	a = &asking{conns: a.conns, told: map[client.SessionID][]*headwaterv1.SessionState{}}
	for _, s := range r.slots {
		a.ids = append(a.ids, s.current().id)
	}
	return a
}

func (a *asking) ask(ctx context.Context, w rpc.Peer) error {
	req := &headwaterv1.ListSessionsRequest{HoldersOnly: true}
	for _, id := range a.ids {
		req.Sessions = append(req.Sessions, id[:])
	}
	resp, err := a.conns.List(ctx, w.Name, w.Address, req)
	for _, s := range resp.GetSessions() {
		for _, o := range s.GetHolders() {
			o.Name, o.Address = w.Name, w.Address
		}
		id := client.SessionID(s.GetSession())
		a.told[id] = append(a.told[id], s)
	}
	return err
}

// partial returns those of some sessions that are not told as a whole by others than one worker.
func (a *asking) partial(ids []client.SessionID, without string) []client.SessionID {
	return slices.DeleteFunc(slices.Clone(ids), func(id client.SessionID) bool {
		if len(a.told[id]) == 0 {
			return false
		}
		h, _, err := fanout.Current(a.told[id])
		return err == nil && wholeWithout(h, without)
	})
}

// wholeWithout says whether others than one worker hold each group.
func wholeWithout(h *fanout.Holding, name string) bool {
	for l, layer := range h.Layers() {
		for g := range layer.KVHeads {
			if !slices.ContainsFunc(h.Holders(), func(o *fanout.Holder) bool { return o.Name != name && slices.Contains(o.Groups[l], g) }) {
				return false
			}
		}
	}
	return true
}

// wait waits for a time, or until ctx ends.
func wait(ctx context.Context, length time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(length):
	}
}

// copies waits until each session has all of its copies.
func (p *processes) copies(ctx context.Context, r *run) error {
	if p.config.Replicas == 0 {
		return nil
	}
	c, err := client.Dial(p.Address())
	if err != nil {
		return err
	}
	defer c.Close()
	bounded, cancel := context.WithTimeout(ctx, settled)
	defer cancel()
	for _, s := range r.slots {
		b := s.current()
		for {
			found, err := c.FindSession(bounded, b.id)
			if ctx.Err() != nil {
				return nil
			}
			if bounded.Err() != nil {
				return wrong{fmt.Errorf("session %s has no copies of all after %v: %+v, %w", b.id, settled, found, err)}
			}
			if err := r.judge(err, b, b.born[0]); err != nil {
				return err
			}
			if err == nil && held(found) == groups*(1+p.config.Replicas) {
				break
			}
			r.pause(ctx)
		}
	}
	return nil
}

// held is how many shards the holders of a session have.
func held(s *client.SessionState) (n int) {
	for _, h := range s.Holders {
		for _, l := range h.Layers {
			n += len(l.Groups)
		}
	}
	return n
}
