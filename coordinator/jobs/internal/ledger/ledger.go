// Package ledger keeps the account of one job's answers: which worker holds which shard, which answers have come, and which
// are still owed. It is a pure state machine: no network, no clock, no goroutine; the coordinator tells it what happened.
//
// A job's work is a set of units, one for each (problem, group, block of query tokens). The way through it: Adopt a plan,
// which says what to load where; ask for what Asks returns; tell Answer of each context, which accepts it
// exactly once and only from the worker that holds the shard; tell Lose of a dead worker, and Adopt the next plan. When
// Pending is zero every unit was accepted exactly once.
package ledger

import (
	"fmt"

	"headwater.example/shard"
)

// Problem is one (sequence, layer) of the job: the layer of the plan that it follows, and how its work is cut.
type Problem struct {
	Layer  shard.Layer
	Groups int // KV groups
	Blocks int // blocks of query tokens
}

// Unit is the answer of one group to one block of query tokens.
type Unit struct {
	Problem int
	Group   shard.Group
	Block   int
}

func (u Unit) String() string {
	return fmt.Sprintf("problem %d group %d block %d", u.Problem, u.Group, u.Block)
}

// Load says that a worker has to be given a shard of a problem.
type Load struct {
	Problem int
	Group   shard.Group
	Worker  string
	Epoch   shard.Epoch
}

// Ask is one query block to send: a block and the groups that owe an answer to it.
type Ask struct {
	Block  int
	Groups []shard.Group
}

// RefusedError says why an answer was not accepted.
type RefusedError struct {
	Unit   Unit
	Worker string
	Rule   string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("answer of worker %q to %s refused: %s", e.Worker, e.Unit, e.Rule)
}

// account is that of one shard of one problem: its worker and its answers.
type account struct {
	worker string // empty: nobody
	epoch  shard.Epoch
	done   []bool // by block
	owed   int
}

// Ledger is the account of one job. It is not safe for concurrent use.
type Ledger struct {
	problems []Problem
	shards   [][]account // by problem and group
	pending  int
	total    int
}

// New opens the account of a job.
func New(problems []Problem) *Ledger {
	l := &Ledger{problems: problems, shards: make([][]account, len(problems))}
	for i, p := range problems {
		l.shards[i] = make([]account, p.Groups)
		for g := range l.shards[i] {
			l.shards[i][g] = account{done: make([]bool, p.Blocks), owed: p.Blocks}
		}
		l.total += p.Groups * p.Blocks
	}
	l.pending = l.total
	return l
}

// Total is the number of units; Pending the number that has not come yet.
func (l *Ledger) Total() int { return l.total }

// Pending is the number of units that are still owed.
func (l *Ledger) Pending() int { return l.pending }

// Adopt gives the shards that still owe answers and that nobody holds to the workers that the plan names, and returns them
// by problem and group ascending. A living holder keeps what it holds: to move it would be to load it again.
func (l *Ledger) Adopt(plan *shard.Plan) []Load {
	var loads []Load
	for i, p := range l.problems {
		for g := range l.shards[i] {
			s := &l.shards[i][g]
			if s.owed == 0 || s.worker != "" {
				continue
			}
			s.worker, s.epoch = plan.Owner(shard.ID{Layer: p.Layer, Group: shard.Group(g)}), plan.Epoch()
			loads = append(loads, Load{Problem: i, Group: shard.Group(g), Worker: s.worker, Epoch: s.epoch})
		}
	}
	return loads
}

// Asks returns what some groups of a problem owe, blocks ascending.
func (l *Ledger) Asks(problem int, groups []shard.Group) []Ask {
	var asks []Ask
	for b := range l.problems[problem].Blocks {
		var owing []shard.Group
		for _, g := range groups {
			if !l.shards[problem][g].done[b] {
				owing = append(owing, g)
			}
		}
		if len(owing) > 0 {
			asks = append(asks, Ask{Block: b, Groups: owing})
		}
	}
	return asks
}

// Answer accepts a unit once, from its holder, in the epoch in which the holder was given the shard. Anything else is a
// *RefusedError and changes nothing.
func (l *Ledger) Answer(worker string, epoch shard.Epoch, u Unit) error {
	refuse := func(format string, args ...any) error {
		return &RefusedError{Unit: u, Worker: worker, Rule: fmt.Sprintf(format, args...)}
	}
	if u.Problem < 0 || u.Problem >= len(l.problems) || u.Group < 0 || int(u.Group) >= l.problems[u.Problem].Groups || u.Block < 0 || u.Block >= l.problems[u.Problem].Blocks {
		return refuse("the job has no such unit")
	}
	s := &l.shards[u.Problem][u.Group]
	switch {
	case s.worker != worker:
		return refuse("the shard is held by %q", s.worker)
	case s.epoch != epoch:
		return refuse("its epoch is %d, the shard's is %d", epoch, s.epoch)
	case s.done[u.Block]:
		return refuse("it came before")
	}
	s.done[u.Block] = true
	s.owed--
	l.pending--
	return nil
}

// Lose takes all shards from a worker that died. What it answered stays.
func (l *Ledger) Lose(worker string) {
	for i := range l.shards {
		for g := range l.shards[i] {
			if s := &l.shards[i][g]; s.worker == worker {
				s.worker, s.epoch = "", 0
			}
		}
	}
}
