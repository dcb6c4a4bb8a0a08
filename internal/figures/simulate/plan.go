package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"headwater.example/internal/placement"
	"headwater.example/shard"
)

// The case of plan_ms.
const (
	planWorkers, planZones, planLost = 1000, 20, 50
	planLayers, planGroups           = 80, 8
	planRounds                       = 9
)

// workers makes rooms in zones by turns, each of as much memory.
func workers(n, zones int, budget uint64) []placement.Room {
	rooms := make([]placement.Room, n)
	for i := range rooms {
		rooms[i] = placement.Room{
			Worker: shard.Worker{Name: fmt.Sprintf("w%04d", i), Weight: 1}, Zone: fmt.Sprintf("zone-%02d", i%zones), Budget: budget, Free: budget,
		}
	}
	return rooms
}

// geometry is of layers that are all alike.
func geometry(layers, groups int) (*shard.Geometry, error) {
	shapes := make([]shard.LayerShape, layers)
	for i := range shapes {
		shapes[i] = shard.LayerShape{Heads: 8 * groups, KVHeads: groups, HeadDim: 128, VDim: 128}
	}
	return shard.NewGeometry(shapes)
}

// lost reports whether a worker is one of those that leave: one in so many as makes planLost of all.
func lost(i int) bool { return i%(planWorkers/planLost) == 7 }

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// holdersOf returns the names of those that hold each group of each layer.
func holdersOf(g *shard.Geometry, placed map[string][][]int) [][][]string {
	held := make([][][]string, g.Layers())
	for l := range held {
		held[l] = make([][]string, g.Layer(shard.Layer(l)).KVHeads)
	}
	for name, layers := range placed {
		for l, groups := range layers {
			for _, group := range groups {
				held[l][group] = append(held[l][group], name)
			}
		}
	}
	return held
}

// heal gives what is lacking to workers until nothing is, and returns how many copies that makes. Given is told of each worker
// that is given more, with the number of shards by layer that it did not have.
func heal(held [][][]string, groupBytes []uint64, times int, rooms []placement.Room, given func(name string, shards []int)) (copies int) {
	for {
		name, groups := placement.Lacking(held, groupBytes, times, rooms, false)
		if name == "" {
			return copies
		}
		shards := make([]int, len(held))
		for l := range groups {
			for _, g := range groups[l] {
				if !slices.Contains(held[l][g], name) {
					held[l][g] = append(held[l][g], name)
					shards[l]++
					copies++
				}
			}
		}
		given(name, shards)
	}
}

func replan(_ context.Context, s *simulation) error {
	g, err := geometry(planLayers, planGroups)
	if err != nil {
		return err
	}
	rooms := workers(planWorkers, planZones, 1<<40)
	var rest []placement.Room
	gone, zones := map[string]bool{}, map[string]string{}
	for i, r := range rooms {
		zones[r.Name] = r.Zone
		if gone[r.Name] = lost(i); !gone[r.Name] {
			rest = append(rest, r)
		}
	}
	groupBytes := make([]uint64, planLayers)
	for l := range groupBytes {
		groupBytes[l] = 16384 * 2 * 2 * 128
	}
	var took, moves []float64
	oneZone := 0
	for round := range planRounds {
		placed, err := placement.Place(g, s.seed+uint64(round), rooms, 0, 1)
		if err != nil {
			return err
		}
		least := 0
		for name := range gone {
			if gone[name] {
				for _, groups := range placed[name] {
					least += len(groups)
				}
				delete(placed, name)
			}
		}
		held := holdersOf(g, placed)
		left := slices.Clone(rest)
		at := map[string]int{}
		for i, r := range left {
			at[r.Name] = i
		}
		start := time.Now()
		copies := heal(held, groupBytes, 2, left, func(name string, shards []int) {
			for l, n := range shards {
				left[at[name]].Free -= uint64(n) * groupBytes[l]
			}
		})
		took = append(took, float64(time.Since(start))/float64(time.Millisecond))
		// Of a shard whose holders have both left nothing can be copied: it is made anew on two workers.
		moves = append(moves, float64(copies)/float64(least))
		for l := range held {
			for _, names := range held[l] {
				if len(names) == 2 && zones[names[0]] == zones[names[1]] {
					oneZone++
				}
			}
		}
	}
	s.say("plan_ms", median(took), took)
	s.say("plan_moves", slices.Max(moves), moves)
	s.say("plan_one_zone", float64(oneZone), nil)
	return nil
}

func replanJob(_ context.Context, s *simulation) error {
	g, err := geometry(planLayers, planGroups)
	if err != nil {
		return err
	}
	var all, rest []shard.Worker
	for i := range planWorkers {
		w := shard.Worker{Name: fmt.Sprintf("w%04d", i), Weight: 1}
		all = append(all, w)
		if !lost(i) {
			rest = append(rest, w)
		}
	}
	before, err := shard.MakePlan(g, all, nil)
	if err != nil {
		return err
	}
	least := 0
	for i, w := range all {
		if lost(i) {
			least += len(before.Shards(w.Name))
		}
	}
	var took []float64
	moves := math.NaN()
	for range planRounds {
		start := time.Now()
		after, err := shard.MakePlan(g, rest, before)
		if err != nil {
			return err
		}
		took = append(took, float64(time.Since(start))/float64(time.Millisecond))
		moves = float64(len(shard.Moves(before, after))) / float64(least)
	}
	s.say("plan_job_ms", median(took), took)
	s.say("plan_job_moves", moves, nil)
	return nil
}
