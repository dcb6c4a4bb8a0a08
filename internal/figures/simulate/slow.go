package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"headwater.example/internal/placement"
	"headwater.example/shard"
)

// The case of sim_slow: 20 workers, of whom one takes slowTimes as long as the others. Sessions come and go; each lies on a few workers.
const (
	slowWorkers, slowTimes        = 20, 2.0
	slowSessions, slowMost        = 400, 4
	slowLayers, slowGroups        = 32, 8
	slowRounds, slowEnds          = 180, 0.05 // rounds of placement.SpeedEvery, and how many of the sessions end in each
	slowBusy                      = 0.3       // how much of its time a usual worker is at work
	slowFixed, slowNoise, slowAsk = 0.5, 0.1, 100
)

// slowSession is who holds how many groups of each layer, and how much of each there is.
type slowSession struct {
	length float64
	held   []map[int]int // by layer: groups by worker
}

// slowCluster is the cluster with weights of measured speed, or without.
type slowCluster struct {
	geometry *shard.Geometry
	rooms    []placement.Room
	sessions []*slowSession
	speeds   placement.Speeds
	random   *rand.Rand
	came     uint64
	slow     float64
}

func (c *slowCluster) open(measured bool) (*slowSession, error) {
	rooms := slices.Clone(c.rooms)
	if measured {
		c.speeds.Weigh(rooms, func(int) bool { return false })
	}
	c.came++
	placed, err := placement.Place(c.geometry, c.came, rooms, slowMost, 0)
	if err != nil {
		return nil, err
	}
	s := &slowSession{length: math.Exp(c.random.NormFloat64()*lengthSigma) * medianLength, held: make([]map[int]int, slowLayers)}
	for l := range s.held {
		s.held[l] = map[int]int{}
	}
	for i, r := range c.rooms {
		for l, groups := range placed[r.Name] {
			if len(groups) > 0 {
				s.held[l][i] = len(groups)
			}
		}
	}
	return s, nil
}

// load is how much of their time workers are at work, if all of them together have slowBusy of it without the slow one.
func (c *slowCluster) load() (busy, bytes []float64) {
	busy, bytes = make([]float64, slowWorkers), make([]float64, slowWorkers)
	for _, s := range c.sessions {
		for _, held := range s.held {
			for w, groups := range held {
				busy[w] += slowFixed + float64(groups)
				bytes[w] += float64(groups) * s.length
			}
		}
	}
	total := 0.0
	for _, b := range busy {
		total += b
	}
	for w := range busy {
		busy[w] *= slowBusy * slowWorkers / total
	}
	busy[0] *= c.slow
	return busy, bytes
}

// answer is how long a worker takes to answer for some groups of a layer: its own time, and that of others before it.
func (c *slowCluster) answer(busy []float64, w, groups int) float64 {
	took := (slowFixed + float64(groups)) * math.Exp(slowNoise*c.random.NormFloat64())
	if w == 0 {
		took *= c.slow
	}
	return took / (1 - min(busy[w], 0.95))
}

// round asks for tokens, and returns how long they took and what was measured, as session/fanout measures it.
func (c *slowCluster) round() (tokens []float64, measured []placement.Measured) {
	busy, _ := c.load()
	beside := make([][]float64, slowWorkers)
	for range slowAsk * slowWorkers {
		s := c.sessions[c.random.IntN(len(c.sessions))]
		token := 0.0
		for _, held := range s.held {
			var took, each []float64
			slowest, times := 0.0, map[int]float64{}
			for w := range slowWorkers {
				if groups := held[w]; groups > 0 {
					times[w] = c.answer(busy, w, groups)
					took, each, slowest = append(took, times[w]), append(each, times[w]/float64(groups)), max(slowest, times[w])
				}
			}
			token += slowest
			slices.Sort(took)
			slices.Sort(each)
			for w, t := range times {
				if middle := (len(took) - 1) / 2; len(took) > 1 {
					beside[w] = append(beside[w], min(t/took[middle], t/float64(held[w])/each[middle]))
				}
			}
		}
		tokens = append(tokens, token)
	}
	for w, ratios := range beside {
		one := placement.Measured{Worker: c.rooms[w].Name, Compared: uint64(len(ratios))}
		if len(ratios) > 0 {
			one.Beside = median(ratios)
		}
		measured = append(measured, one)
	}
	return tokens, measured
}

// runSlow runs the cluster for an hour, and returns the tokens of its second half, the bytes of the slow worker / mean at its end, and how
// often a share changed in its second half.
func runSlow(ctx context.Context, s *simulation, slow float64, measures bool) (tokens []float64, spread float64, changes int, err error) {
	c := &slowCluster{random: rand.New(rand.NewPCG(s.seed, 2)), slow: slow, rooms: workers(slowWorkers, 1, 1<<50)}
	if c.geometry, err = geometry(slowLayers, slowGroups); err != nil {
		return nil, 0, 0, err
	}
	now, shares := time.Unix(0, 0), make([]float64, slowWorkers)
	for round := range slowRounds {
		if ctx.Err() != nil {
			return nil, 0, 0, ctx.Err()
		}
		c.sessions = slices.DeleteFunc(c.sessions, func(*slowSession) bool { return c.random.Float64() < slowEnds })
		for len(c.sessions) < slowSessions {
			one, err := c.open(measures)
			if err != nil {
				return nil, 0, 0, fmt.Errorf("place a session: %w", err)
			}
			c.sessions = append(c.sessions, one)
		}
		took, measured := c.round()
		now = now.Add(placement.SpeedEvery)
		c.speeds.Look(now, measured)
		for w, r := range c.rooms {
			if share := c.speeds.Share(r.Name); share != shares[w] {
				if shares[w] = share; round >= slowRounds/2 {
					changes++
				}
			}
		}
		if round >= slowRounds/2 {
			tokens = append(tokens, took...)
		}
	}
	_, bytes := c.load()
	sum := 0.0
	for _, b := range bytes {
		sum += b
	}
	slices.Sort(tokens)
	return tokens, bytes[0] * slowWorkers / sum, changes, nil
}

func slowWorker(ctx context.Context, s *simulation) error {
	var p99, p50 [2]float64
	for i, measures := range []bool{false, true} {
		tokens, spread, changes, err := runSlow(ctx, s, slowTimes, measures)
		if err != nil {
			return err
		}
		p99[i], p50[i] = tokens[len(tokens)*99/100], tokens[len(tokens)/2]
		if measures {
			s.say("sim_slow_bytes", spread, nil)
			s.say("sim_slow_changes", float64(changes), nil)
		}
	}
	s.say("sim_slow_p99", p99[1]/p99[0], []float64{p99[0] / p50[0], p99[1] / p50[1]})
	s.say("sim_slow_p50", p50[1]/p50[0], nil)
	// Where all are alike there is nothing to change.
	_, _, changes, err := runSlow(ctx, s, 1, true)
	if err != nil {
		return err
	}
	s.say("sim_alike_changes", float64(changes), nil)
	return nil
}
