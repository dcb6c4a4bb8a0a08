package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"headwater.example/internal/placement"
	"headwater.example/shard"
)

// The case of sim_spread: short and long sessions, some of them a hundred times as long as others.
const (
	churnWorkers, churnZones, churned = 100, 5, 10
	churnGroups, churnLayers          = 8, 32
	medianLength, lengthSigma         = 2000, 1.2
	copyRate                          = 64 << 20 // bytes a second, the default of coord serve --copy-rate
)

// cluster is what all workers hold. A session's layers are alike, so one stands for all of them.
type cluster struct {
	geometry *shard.Geometry
	rooms    []placement.Room
	at       map[string]int
	sessions []*held
	came     int
}

// held is a session: who holds each of its groups, and how many bytes one takes.
type held struct {
	id    [16]byte
	each  uint64
	names [][]string
}

func newCluster(s *simulation) (*cluster, error) {
	g, err := geometry(1, churnGroups)
	if err != nil {
		return nil, err
	}
	c := &cluster{geometry: g, at: map[string]int{}}
	random := rand.New(rand.NewPCG(s.seed, 0))
	lengths := make([]uint64, s.sessions)
	total := uint64(0)
	for i := range lengths {
		length := uint64(math.Exp(random.NormFloat64()*lengthSigma) * medianLength)
		lengths[i] = (length + 63) / 64 * 64 * churnLayers * 2 * 2 * 128
		total += 2 * churnGroups * lengths[i]
	}
	for range churnWorkers {
		c.come(2 * total / churnWorkers) // half of the memory is in use
	}
	for i, each := range lengths {
		h := &held{each: each}
		binary.LittleEndian.PutUint64(h.id[:], uint64(i))
		placed, err := placement.Place(g, random.Uint64(), c.rooms, 0, 1)
		if err != nil {
			return nil, err
		}
		h.names = holdersOf(g, placed)[0]
		for _, names := range h.names {
			for _, name := range names {
				c.rooms[c.at[name]].Free -= each
			}
		}
		c.sessions = append(c.sessions, h)
	}
	return c, nil
}

// come adds a worker that holds nothing.
func (c *cluster) come(budget uint64) {
	name := fmt.Sprintf("w%04d", c.came)
	c.at[name] = len(c.rooms)
	c.rooms = append(c.rooms, placement.Room{
		Worker: shard.Worker{Name: name, Weight: 1}, Zone: fmt.Sprintf("zone-%02d", c.came%churnZones), Budget: budget, Free: budget,
	})
	c.came++
}

// leave takes a worker away and gives what it held to others. It returns how many bytes that copies.
func (c *cluster) leave(name string) (copied uint64, err error) {
	c.rooms = slices.Delete(c.rooms, c.at[name], c.at[name]+1)
	delete(c.at, name)
	for i, r := range c.rooms {
		c.at[r.Name] = i
	}
	for _, h := range c.sessions {
		lacks := false
		for g := range h.names {
			if i := slices.Index(h.names[g], name); i >= 0 {
				h.names[g] = slices.Delete(h.names[g], i, i+1)
				lacks = true
			}
		}
		if !lacks {
			continue
		}
		all := [][][]string{h.names}
		heal(all, []uint64{h.each}, 2, c.rooms, func(name string, shards []int) {
			copied += uint64(shards[0]) * h.each
			c.rooms[c.at[name]].Free -= uint64(shards[0]) * h.each
		})
		h.names = all[0]
		for _, names := range h.names {
			if len(names) != 2 {
				return 0, fmt.Errorf("session %x has a group with %d holders: no worker has room", h.id, len(names))
			}
		}
	}
	return copied, nil
}

// even moves what makes the loads even, and returns how many bytes that are.
func (c *cluster) even() (moved uint64) {
	loads := make([]*placement.Load, len(c.rooms))
	for i, r := range c.rooms {
		loads[i] = &placement.Load{Room: r, Parts: map[[16]byte]*placement.Part{}}
	}
	for _, h := range c.sessions {
		for g, names := range h.names {
			for _, name := range names {
				load := loads[c.at[name]]
				if load.Parts[h.id] == nil {
					load.Parts[h.id] = &placement.Part{Session: h.id, Held: map[shard.ID]bool{}}
				}
				load.Parts[h.id].Held[shard.ID{Group: shard.Group(g)}] = true
				load.Parts[h.id].Bytes += h.each
			}
		}
	}
	for _, m := range placement.Even(loads) {
		moved += m.Bytes
		c.rooms[c.at[m.From]].Free += m.Bytes
		c.rooms[c.at[m.To]].Free -= m.Bytes
	}
	return moved
}

// used returns the bytes of each worker, the heaviest first.
func (c *cluster) used() []float64 {
	used := make([]float64, len(c.rooms))
	for i, r := range c.rooms {
		used[i] = float64(r.Budget - r.Free)
	}
	slices.SortFunc(used, func(a, b float64) int { return int(math.Copysign(1, b-a)) })
	return used
}

func (s *simulation) spread(name, title string, c *cluster) {
	used := c.used()
	sum := 0.0
	for _, u := range used {
		sum += u
	}
	s.say(name, used[0]*float64(len(used))/sum, used)
	s.pictures = append(s.pictures, picture{title, used})
}

func churn(ctx context.Context, s *simulation) error {
	c, err := newCluster(s)
	if err != nil {
		return err
	}
	s.spread("sim_spread_new", "as they were placed", c)
	copied := uint64(0)
	for i := range churned {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		one, err := c.leave(fmt.Sprintf("w%04d", i*churnWorkers/churned))
		if err != nil {
			return err
		}
		copied += one
	}
	s.spread("sim_spread_left", "after ten have left", c)
	s.say("sim_rebuild_s", float64(copied)/churned/copyRate, nil)
	for range churned {
		c.come(c.rooms[0].Budget)
	}
	s.spread("sim_spread_come", "after ten others have come", c)
	moved := c.even()
	s.spread("sim_spread", "after coord rebalance", c)
	fresh := 0.0
	for _, r := range c.rooms[len(c.rooms)-churned:] {
		fresh += float64(r.Budget - r.Free)
	}
	s.say("sim_moved", float64(moved)/fresh, nil)
	holders := 0
	for _, h := range c.sessions {
		all := slices.Concat(h.names...)
		slices.Sort(all)
		holders += len(slices.Compact(all))
	}
	s.say("sim_messages", 2*float64(holders)/float64(len(c.sessions)), nil)
	return nil
}

// The case of sim_tail, in units of the usual time of a holder.
const (
	tailTokens, tailLayers, tailHolders = 20_000, 32, 8
	heldUp, heldUpFor, hedgeAfter       = 0.001, 20, 3
)

func tail(_ context.Context, s *simulation) error {
	random := rand.New(rand.NewPCG(s.seed, 1))
	service := func() float64 {
		if random.Float64() < heldUp {
			return heldUpFor
		}
		return math.Exp(0.1 * random.NormFloat64())
	}
	plain, hedged := make([]float64, tailTokens), make([]float64, tailTokens)
	for t := range tailTokens {
		for range tailLayers {
			slowest, slowestHedged := 0.0, 0.0
			for range tailHolders {
				one := service()
				slowest = max(slowest, one)
				if one > hedgeAfter {
					one = min(one, hedgeAfter+service())
				}
				slowestHedged = max(slowestHedged, one)
			}
			plain[t] += slowest
			hedged[t] += slowestHedged
		}
	}
	for _, tokens := range [][]float64{plain, hedged} {
		slices.Sort(tokens)
	}
	s.say("sim_tail", plain[tailTokens*99/100]/plain[tailTokens/2], nil)
	s.say("sim_tail_hedged", hedged[tailTokens*99/100]/hedged[tailTokens/2], nil)
	return nil
}
