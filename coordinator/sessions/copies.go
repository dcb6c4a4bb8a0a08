package sessions

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"headwater.example/attention"
	"headwater.example/coordinator/workers"
	"headwater.example/internal/membership"
	"headwater.example/internal/observe"
	"headwater.example/internal/placement"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

const (
	// lookEvery is how long it takes at most until all sessions are looked at, and restoreEvery while something is to be done that
	// could not be.
	lookEvery    = time.Minute
	restoreEvery = 2 * time.Second
	// kickPause is how long it takes at least.
	kickPause = 50 * time.Millisecond
	// restoreAtOnce is how many sessions are asked for at once, and lookAtOnce how many are listed.
	restoreAtOnce = 64
	lookAtOnce    = 1000
	// copiesAtOnce is for how many sessions something is done at once.
	copiesAtOnce = 2
	// maxKicked bounds the sessions that are looked at before all others, and maxAbandoned what is known of copies that were given up.
	maxKicked    = 1 << 12
	maxAbandoned = 1 << 12
)

// keeper makes the copies that sessions lack, frees what workers have of sessions that were left out of them, and moves sessions away
// from workers that are drained. Coordinators may do so beside each other: of two that make one copy, the first one's epoch refuses
// the other.
type keeper struct {
	*Relay
	rate    rate
	kick    chan struct{} // holds one element once there is something to look at
	leaving atomic.Int64  // workers that wait to be drained before they end

	mu      sync.Mutex // guards what follows
	kicked  map[[16]byte]struct{}
	lacking map[[16]byte]int // copies of shards that a session lacks
	lost    map[[16]byte]struct{}
	begun   map[[16]byte]struct{}  // sessions that held nothing and lacked copies when they were looked at first
	torn    map[[16]byte]tear      // sessions whose holders were told of different epochs, or of a closed one
	hung    map[[16]byte]time.Time // since when a holder hangs of sessions that nobody has left it out of
	twice   map[[16]byte]time.Time // since when sessions go on twice; zero once it is said
	// abandoned is what copies have left that were given up, by the id that it was filled under: it is no session that lacks copies.
	abandoned map[[16]byte]abandoned
	said      int // copies that the newest event says are missing
	copies    uint64
	looked    time.Time
	// answered are the boots of the workers that answered at the newest look at all sessions.
	answered [][16]byte
	failed   string        // why the newest thing that was to be done could not be
	turn     chan struct{} // closed when all sessions have been looked at; nil until somebody waits
}

func newKeeper(r *Relay, perSecond int64) *keeper {
	return &keeper{
		Relay: r, rate: rate{perSecond: perSecond}, kick: make(chan struct{}, 1),
		kicked: map[[16]byte]struct{}{}, lacking: map[[16]byte]int{}, lost: map[[16]byte]struct{}{}, begun: map[[16]byte]struct{}{}, torn: map[[16]byte]tear{}, hung: map[[16]byte]time.Time{}, twice: map[[16]byte]time.Time{}, abandoned: map[[16]byte]abandoned{},
	}
}

// look makes a session be looked at soon.
func (k *keeper) look(id [16]byte) {
	k.mu.Lock()
	if len(k.kicked) < maxKicked {
		k.kicked[id] = struct{}{}
	}
	k.mu.Unlock()
	k.wake()
}

// wake makes the keeper look now.
func (k *keeper) wake() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// run keeps copies until ctx ends. It looks at all sessions after workers have come or gone, and from time to time; and at those that
// have gone on without a holder at once.
func (k *keeper) run(ctx context.Context) {
	again := restoreEvery
	var due time.Time // when all sessions are looked at, whatever happens
	for all := true; ; {
		changed, pulse := k.workers.Changed(), k.conns.Pulse()
		switch unfinished := k.pass(ctx, all); {
		case all && unfinished: // Where it is not to be helped, it is tried less and less.
			due, again = time.Now().Add(again), min(2*again, lookEvery)
		case all:
			due, again = time.Now().Add(lookEvery), restoreEvery
		case unfinished:
			due = time.Now().Add(min(time.Until(due), restoreEvery))
		}
		// Calls that find holders changing make it look as well: it must not keep them changing.
		calm := time.NewTimer(kickPause)
		select {
		case <-calm.C:
		case <-ctx.Done():
			calm.Stop()
			return
		}
		timer := time.NewTimer(time.Until(due))
		select {
		case <-timer.C:
			all = true
		case <-changed:
			all, again = true, restoreEvery
		case <-pulse:
			all = true
		case <-k.kick: // What has come at the same time is not forgotten.
			all = k.waited() || closed(changed) || closed(pulse)
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// waited reports whether somebody waits for all sessions to be looked at.
func (k *keeper) waited() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.turn != nil
}

// pass looks at sessions, and reports whether something is left to be done.
func (k *keeper) pass(ctx context.Context, all bool) (unfinished bool) {
	k.mu.Lock()
	kicked := slices.Collect(maps.Keys(k.kicked))
	clear(k.kicked)
	turn := k.turn
	if all {
		k.turn = nil
	}
	k.mu.Unlock()
	if all && k.leaving.Load() > 0 {
		// First what needs no copy, then what would be lost, and all else when they have left.
		_, _ = k.passAll(ctx, (*plan).releases) // what is left comes below again
		_, _ = k.passAll(ctx, (*plan).leaves)
	}
	for some := range slices.Chunk(kicked, restoreAtOnce) {
		unfinished = k.tendAll(ctx, some, (*plan).todo) || unfinished
	}
	if all {
		left, answered := k.passAll(ctx, (*plan).todo)
		unfinished = left || unfinished
		k.mu.Lock()
		k.looked, k.answered = k.now(), answered
		k.mu.Unlock()
		if turn != nil {
			close(turn)
		}
	}
	k.say()
	return unfinished
}

// passAll looks at all sessions that workers hold, does what there is to do for those of some plans, and returns the boots of those that
// answered as it began.
func (k *keeper) passAll(ctx context.Context, some func(*plan) bool) (unfinished bool, answered [][16]byte) {
	seen := map[[16]byte]bool{}
	req := &headwaterv1.ListSessionsRequest{Limit: lookAtOnce}
	for ctx.Err() == nil {
		members := k.answering(ctx)
		if req.After == nil {
			for _, m := range members {
				answered = append(answered, m.Boot)
			}
		}
		answers, _, err := k.list(ctx, members, req)
		if err != nil {
			return true, answered
		}
		ids := slices.SortedFunc(maps.Keys(bySession(members, answers)), func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
		ids = ids[:min(len(ids), lookAtOnce)] // of those beyond parts may be missing
		for chunk := range slices.Chunk(ids, restoreAtOnce) {
			unfinished = k.tendAll(ctx, chunk, some) || unfinished
		}
		for _, id := range ids {
			seen[id] = true
		}
		if len(ids) < lookAtOnce {
			k.keepOnly(seen)
			return unfinished, answered
		}
		last := ids[len(ids)-1]
		req.After = last[:]
	}
	return true, answered
}

// answering returns the workers that answer.
func (k *keeper) answering(ctx context.Context) []membership.Member {
	described, err := workers.Answering(k.workers.Describe(ctx, k.workers.List()))
	if err != nil {
		return nil // no worker has anything, or speaks this protocol
	}
	members := make([]membership.Member, len(described))
	for i, w := range described {
		members[i] = w.Member
	}
	return members
}

// keepOnly forgets what sessions lacked that are not held any more.
func (k *keeper) keepOnly(seen map[[16]byte]bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.lacking, func(id [16]byte, _ int) bool { return !seen[id] })
	maps.DeleteFunc(k.lost, func(id [16]byte, _ struct{}) bool { return !seen[id] })
	maps.DeleteFunc(k.begun, func(id [16]byte, _ struct{}) bool { return !seen[id] })
	maps.DeleteFunc(k.torn, func(id [16]byte, _ tear) bool { return !seen[id] })
	maps.DeleteFunc(k.twice, func(id [16]byte, _ time.Time) bool { return !seen[id] })
	maps.DeleteFunc(k.hung, func(id [16]byte, _ time.Time) bool { return !seen[id] })
}

// tendAll does for sessions what can be done, if their plans are among some, and reports whether something is left.
func (k *keeper) tendAll(ctx context.Context, ids [][16]byte, some func(*plan) bool) (unfinished bool) {
	told, silent, err := k.states(ctx, ids...)
	if err != nil {
		return true
	}
	described := k.workers.Describe(ctx, k.workers.List())
	// All that is missing is known before the first copy is made.
	var todo [][16]byte
	for _, id := range ids {
		if len(told[id]) == 0 {
			k.note(id, 0, false)
			continue
		}
		if was, gone := k.dropAbandoned(ctx, id); was {
			unfinished = unfinished || !gone
			continue
		}
		p := k.plan(id, told[id], silent, described)
		unfinished = k.sayTwice(p) || unfinished
		if k.begins(p) {
			k.note(id, 0, false)
			unfinished = true
		} else if some(p) {
			todo = append(todo, id)
		}
	}
	k.say()
	// Beside each other: while one session stands still for its exchange, or waits for its first bytes, another's are on their way.
	var tasks errgroup.Group
	tasks.SetLimit(copiesAtOnce)
	var left atomic.Bool
	for _, id := range todo {
		tasks.Go(func() error {
			return rpc.Guard(k.log, "keeping the copies of a session", func() error {
				if k.tend(ctx, id, told[id], silent, described, some) {
					left.Store(true)
				}
				return nil
			})
		})
	}
	return tasks.Wait() != nil || left.Load() || unfinished
}

// abandoned is what a worker was filled with for a copy that was given up while it did not answer.
type abandoned struct {
	at   *fanout.Holder
	call uint64
}

// abandon notes what a worker was filled with for a copy that was given up, and could not be told to drop. What is beyond maxAbandoned ends
// by its TTL.
func (k *keeper) abandon(filled [16]byte, at *fanout.Holder, call uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.abandoned) < maxAbandoned {
		k.abandoned[filled] = abandoned{at, call}
	}
}

// dropAbandoned drops what is left of a copy that was given up, if that is what an id stands for, and reports whether it is, and is gone.
func (k *keeper) dropAbandoned(ctx context.Context, id [16]byte) (was, gone bool) {
	k.mu.Lock()
	left, was := k.abandoned[id]
	k.mu.Unlock()
	if !was || k.conns.DropFilled(ctx, id, left.at, left.call) != nil {
		return was, false
	}
	k.mu.Lock()
	delete(k.abandoned, id)
	k.mu.Unlock()
	return true, true
}

// begins reports whether a session may be in the making, as some of its workers hold nothing of it yet and others do not know it: at the
// first look it is left alone. A copy that is made meanwhile would keep it from being made.
func (k *keeper) begins(p *plan) bool {
	if p == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	_, again := k.begun[p.id]
	delete(k.begun, p.id)
	if again || p.lacking == 0 {
		return false
	}
	for _, s := range p.current {
		for _, l := range s.GetLayers() {
			if l.GetLength() > 0 {
				return false
			}
		}
	}
	k.begun[p.id] = struct{}{}
	return true
}

// tear is a session of which not all holders have the newest epoch, or whose epoch is closed: somebody was stepping it as they were
// asked. It is left alone until it has stayed so for tornFor: who was stepping it has not come to an end then.
type tear struct {
	counter uint64
	since   time.Time
}

// tornFor is longer than a call waits for a closed epoch.
const tornFor = 1500 * time.Millisecond

// steps reports whether somebody is perhaps stepping a session's epoch right now; then it is looked at again soon. Holders that were
// asked before the epoch came to them are not lost, though they do not count among those of the newest one.
func (k *keeper) steps(p *plan) bool {
	k.mu.Lock()
	counter, now := p.highest, k.now()
	was, ok := k.torn[p.id]
	switch {
	case !p.torn:
		delete(k.torn, p.id)
	case !ok || was.counter != counter:
		was = tear{counter, now}
		k.torn[p.id] = was
	}
	k.mu.Unlock()
	if !p.torn || now.Sub(was.since) >= tornFor {
		return false
	}
	k.look(p.id)
	return true
}

// isTorn reports whether the epoch of those who hold a session is closed, or has not come to all that it names: some tell of an older one;
// or whether others tell of one above it. These have been left out, unless another coordinator is just stepping them: if a session
// goes on twice, one side looks left out while its holders are exchanged.
func isTorn(current, states []*headwaterv1.SessionState) bool {
	top := current[0].GetEpoch()
	return top.GetClosed() || highest(states) > top.GetCounter() || slices.ContainsFunc(states, func(s *headwaterv1.SessionState) bool {
		same := s.GetEpoch().GetCounter() == top.GetCounter() && bytes.Equal(s.GetEpoch().GetLane(), top.GetLane())
		return !same && slices.ContainsFunc(s.GetHolders(), func(o *headwaterv1.Holder) bool {
			return slices.Contains(top.GetMembers(), o.GetName())
		})
	})
}

// joinTime is longer than workers take to find a coordinator that is back: they look for it once a second.
const joinTime = 3 * time.Second

// awaits reports whether a session's newest epoch names a worker that this coordinator knew before its start, and that has not had the time
// to join yet. It is not lost, though it is not among those that were asked.
func (k *keeper) awaits(p *plan) bool {
	if k.now().Sub(k.began) >= joinTime {
		return false
	}
	named := p.current[0].GetEpoch().GetMembers()
	return slices.ContainsFunc(k.Awaited(), func(m membership.Member) bool { return slices.Contains(named, m.Name) })
}

// hangFor is longer than a worker stands still that goes on: one that is dead is no member any more before that.
const hangFor = 10 * time.Second

// hangs reports whether a session is left as it is, since a worker that its newest epoch names hangs. Whoever drives the session leaves
// it out once a call waits for it. Until then what it has is a copy as good as any, and the session would have one less while another is
// made. One that is refused, or has restarted, does not hang.
func (k *keeper) hangs(p *plan) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(p.hung) == 0 || p.leaves() {
		delete(k.hung, p.id)
		return false
	}
	since, ok := k.hung[p.id]
	if !ok {
		since = k.now()
		k.hung[p.id] = since
	}
	return k.now().Sub(since) < hangFor
}

// highest is the highest counter of an epoch that is told.
func highest(states []*headwaterv1.SessionState) (counter uint64) {
	for _, s := range states {
		counter = max(counter, s.GetEpoch().GetCounter())
	}
	return counter
}

// tend does for one session what can be done while its plan is among some.
func (k *keeper) tend(ctx context.Context, id [16]byte, states []*headwaterv1.SessionState, silent []string, described []workers.Description, some func(*plan) bool) (unfinished bool) {
	for ctx.Err() == nil && len(states) > 0 {
		p := k.plan(id, states, silent, described)
		if !some(p) {
			return false
		}
		if k.leaving.Load() > 0 && !p.leaves() {
			return true // those who leave wait: this comes after them
		}
		done, err := k.act(ctx, p)
		hangs := k.hangs(p)
		k.mu.Lock()
		if k.failed = ""; err != nil {
			k.failed = workers.OneLine(err)
		} else if !done && k.awaits(p) {
			k.failed = fmt.Sprintf("session %x: a worker that had a part of it has not joined again yet", id)
		} else if !done && hangs {
			k.failed = fmt.Sprintf("session %x: %s has a part of it and hangs", id, strings.Join(p.hung, ", "))
		} else if !done && (p.torn || p.holding.Split()) {
			k.failed = fmt.Sprintf("session %x is being taken over: its holders have different epochs", id)
		} else if !done {
			k.failed = fmt.Sprintf("no worker has room for session %x", id)
		}
		k.mu.Unlock()
		if err != nil {
			k.log.Warn("a session's copies could not be put right: it is tried again", "session", fmt.Sprintf("%x", id), "error", err)
			return true
		}
		if !done {
			return true
		}
		var again map[[16]byte][]*headwaterv1.SessionState
		if again, silent, err = k.states(ctx, id); err != nil {
			return true
		}
		states, described = again[id], k.workers.Describe(ctx, k.workers.List())
	}
	return len(states) > 0
}

// plan is what there is to do for a session.
type plan struct {
	id       [16]byte
	current  []*headwaterv1.SessionState // of those that hold it
	stale    []*headwaterv1.SessionState // of those that were left out of it
	aside    []string                    // workers that have another side of it
	holding  *fanout.Holding
	lacking  int            // copies of shards
	target   *fanout.Holder // who is to have more, with all that it is to have then; nil is nobody
	highest  uint64         // counter of the highest epoch that is told
	torn     bool           // somebody may be stepping the session's epoch
	hung     []string       // holders that told nothing, and are there all the same
	draining []string       // holders that are drained
	leaving  []string       // those of them that end soon
}

func (p *plan) todo() bool {
	return p != nil && (len(p.stale) > 0 || p.lacking > 0 || len(p.draining) > 0)
}

// leaves reports whether a holder ends soon, and releases whether the session can go on without it as it is.
func (p *plan) leaves() bool   { return p != nil && len(p.leaving) > 0 }
func (p *plan) releases() bool { return p.leaves() && p.whole() }

// plan says what there is to do for a session, and notes what it lacks. Silent are the workers that did not answer when they were asked
// for its states; they were described after that.
func (k *keeper) plan(id [16]byte, states []*headwaterv1.SessionState, silent []string, described []workers.Description) *plan {
	h, current, err := fanout.Current(states)
	if err != nil {
		k.note(id, 0, true)
		return nil // nobody has what is missing
	}
	p := &plan{id: id, current: current, holding: h, stale: fanout.Stale(h, current, states), highest: highest(states), torn: isTorn(current, states)}
	for _, s := range otherSides(h, current, states) {
		for _, o := range s.GetHolders() {
			p.aside = append(p.aside, o.GetName())
		}
	}
	var places []workers.Description
	for _, w := range described {
		if slices.Contains(silent, w.Name) && slices.Contains(current[0].GetEpoch().GetMembers(), w.Name) &&
			(w.Err == nil || k.conns.Silent(rpc.Peer{Name: w.Name, Address: w.Address})) {
			p.hung = append(p.hung, w.Name)
		}
		holds := slices.ContainsFunc(h.Holders(), func(o *fanout.Holder) bool { return o.Name == w.Name })
		switch {
		case w.Err != nil:
		case slices.Contains(p.aside, w.Name): // it takes no copy in the place of what it has
		case !w.Said.GetDraining():
			places = append(places, w)
		case holds:
			p.draining = append(p.draining, w.Name)
			if w.Said.GetLeaving() {
				p.leaving = append(p.leaving, w.Name)
			}
		}
	}
	held := holders(h, p.draining)
	replicas := int(current[0].GetConfig().GetReplicas())
	for l := range held {
		for _, by := range held[l] {
			p.lacking += max(0, 1+replicas-len(by))
		}
	}
	times := 1 + replicas
	if p.leaves() {
		times = 1 // copies beside that come when it has left
	}
	p.target = lackedBy(h.Layers(), held, current, times, places, len(p.draining) > 0)
	if len(p.draining) > 0 { // It is not missing what is about to be moved.
		lacking := 0
		for _, groups := range holders(h, nil) {
			for _, by := range groups {
				lacking += max(0, 1+replicas-len(by))
			}
		}
		k.note(id, lacking, false)
		return p
	}
	k.note(id, p.lacking, false)
	return p
}

// sayTwice makes it an event, once, if a session went on twice. While its holders are exchanged it may look so: then it is to be looked at
// again.
func (k *keeper) sayTwice(p *plan) (again bool) {
	if p == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	since, known := k.twice[p.id]
	switch {
	case len(p.aside) == 0:
		delete(k.twice, p.id)
		return false
	case !known || p.holding.Closed():
		k.twice[p.id] = k.now()
		return true
	case since.IsZero():
		return false
	case k.now().Sub(since) < tornFor:
		return true
	}
	k.twice[p.id] = time.Time{}
	for _, name := range p.aside {
		k.observe.Happened(observe.GoesOnTwice, name, 1)
	}
	k.log.Warn("a session went on twice: what the workers of the other side have of it stays until its TTL", "session", fmt.Sprintf("%x", p.id), "workers", strings.Join(p.aside, " "))
	return false
}

// act does one thing of a plan, and reports whether there was one that could be done.
func (k *keeper) act(ctx context.Context, p *plan) (done bool, _ error) {
	switch {
	case k.steps(p), k.awaits(p), k.hangs(p):
		return false, nil
	case p.holding.Split():
		return false, nil // no lane drives all of its holders, so that nobody may step their epoch: the next take ends that
	case len(p.stale) > 0:
		for _, s := range p.stale {
			if err := k.free(ctx, p.id, s); err != nil {
				return false, err
			}
		}
		return true, nil
	case p.target != nil:
		if err := k.conns.Restore(ctx, p.holding, p.current[0], p.target); err != nil {
			k.observe.Failed(observe.CopyFailed, p.target.Name, err)
			return false, err
		}
		k.mu.Lock()
		k.copies++
		k.mu.Unlock()
		k.doubt(ctx, p.id[:])
		k.observe.Happened(observe.CopiesMade, p.target.Name, 1)
		k.log.Info("a copy of a session was made", "session", fmt.Sprintf("%x", p.id), "worker", p.target.Name)
		return true, nil
	case len(p.draining) > 0 && p.whole():
		if err := k.conns.Release(ctx, p.id, p.holding, p.current[0], p.draining...); err != nil {
			return false, err
		}
		k.doubt(ctx, p.id[:])
		k.log.Info("a session has moved away", "session", fmt.Sprintf("%x", p.id), "workers", p.draining)
		return true, nil
	}
	return false, nil
}

// copying is called before so many bytes of a session are copied. Workers that leave do not wait for the rate.
func (k *keeper) copying(ctx context.Context, bytes int, still bool) error {
	return k.rate.take(ctx, bytes, still || k.leaving.Load() > 0)
}

// whole reports whether each shard has a holder that is not drained.
func (p *plan) whole() bool { return wholeWithout(p.holding, p.draining) }

// wholeWithout reports whether each shard has a holder that is none of those named.
func wholeWithout(h *fanout.Holding, names []string) bool {
	for _, groups := range holders(h, names) {
		if slices.ContainsFunc(groups, func(by []string) bool { return len(by) == 0 }) {
			return false
		}
	}
	return true
}

// free frees what a worker has of a session that has gone on without it.
func (k *keeper) free(ctx context.Context, id [16]byte, s *headwaterv1.SessionState) error {
	for _, o := range s.GetHolders() {
		epoch := &headwaterv1.Epoch{Counter: s.GetEpoch().GetCounter(), Lane: s.GetEpoch().GetLane(), At: s.GetEpoch().GetCounter()}
		err := k.conns.Drop(ctx, []*fanout.Holder{{Name: o.GetName(), Address: o.GetAddress()}}, &headwaterv1.DropSessionRequest{Session: id[:], Epoch: epoch, Served: s.GetServed()})
		if err != nil {
			return err
		}
		k.observe.Happened(observe.StaleFreed, o.GetName(), 1)
		k.log.Info("what a worker had of a session that has gone on without it was freed", "session", fmt.Sprintf("%x", id), "worker", o.GetName())
	}
	return nil
}

// states returns what workers tell of sessions: who holds them, and what they were made with; and which workers did not answer.
func (r *Relay) states(ctx context.Context, ids ...[16]byte) (told map[[16]byte][]*headwaterv1.SessionState, silent []string, _ error) {
	req := &headwaterv1.ListSessionsRequest{HoldersOnly: true}
	for _, id := range ids {
		req.Sessions = append(req.Sessions, id[:])
	}
	members := r.workers.List()
	answers, unheard, err := r.list(ctx, members, req)
	for _, w := range unheard {
		silent = append(silent, w.GetWorker())
	}
	return bySession(members, answers), silent, err
}

// holders returns the names of those that hold each group of each layer, but for some.
func holders(h *fanout.Holding, without []string) [][][]string {
	layers := h.Layers()
	held := make([][][]string, len(layers))
	for l := range layers {
		held[l] = make([][]string, layers[l].Shards())
	}
	for _, o := range h.Holders() {
		if slices.Contains(without, o.Name) {
			continue
		}
		for l, groups := range o.Groups {
			for _, g := range groups {
				held[l][g] = append(held[l][g], o.Name)
			}
		}
	}
	return held
}

// lackedBy returns the worker that is to have more of a session, with all groups that it is to have then, or nil if there is none; see
// placement.Lacking.
func lackedBy(layers []shard.LayerSpec, held [][][]string, states []*headwaterv1.SessionState, times int, among []workers.Description, must bool) *fanout.Holder {
	name, groups := placement.Lacking(held, groupBytes(layers, states), times, roomsOf(among), must)
	for _, w := range among {
		if w.Name == name {
			return &fanout.Holder{Name: w.Name, Address: w.Address, Boot: w.Said.GetBoot(), Groups: groups}
		}
	}
	return nil
}

// groupBytes returns about how many bytes of pages one group of each layer of a session takes, of a layer in stripes one shard.
func groupBytes(layers []shard.LayerSpec, states []*headwaterv1.SessionState) []uint64 {
	lengths := make([]uint64, len(layers))
	for _, s := range states {
		for _, l := range s.GetLayers() {
			if int64(l.GetLayer()) < int64(len(lengths)) {
				lengths[l.GetLayer()] = max(lengths[l.GetLayer()], l.GetLength()-min(l.GetFirst(), l.GetLength()))
			}
		}
	}
	bytes := make([]uint64, len(layers))
	for l := range layers {
		pages := (lengths[l] + attention.PageLen - 1) / attention.PageLen
		bytes[l] = pages / uint64(layers[l].Shards()/layers[l].KVHeads) * attention.PageLen * uint64(layers[l].Storage().Size()*(layers[l].HeadDim()+layers[l].VDim()))
	}
	return bytes
}

// note notes what a session lacks.
func (k *keeper) note(id [16]byte, lacking int, lost bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if lacking > 0 {
		k.lacking[id] = lacking
	} else {
		delete(k.lacking, id)
	}
	if lost {
		k.lost[id] = struct{}{}
	} else {
		delete(k.lost, id)
	}
}

// say makes it an event if another number of copies is missing than before.
func (k *keeper) say() {
	k.mu.Lock()
	missing := 0
	for _, n := range k.lacking {
		missing += n
	}
	before := k.said
	k.said = missing
	k.mu.Unlock()
	switch {
	case missing == before:
	case missing == 0:
		k.observe.Happened(observe.CopiesWhole, "", 0)
		k.log.Info("no copies of sessions are missing any more")
	default:
		k.observe.Happened(observe.CopiesLacking, "", missing)
		k.log.Warn(fmt.Sprintf("under-replicated: %d shards", missing))
	}
}
