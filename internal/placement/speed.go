package placement

import "time"

// This file makes weights of measured speed, for new sessions. What exists stays where it is. A worker that is slow only while it has
// much to do is given less until it has not. So that this does not swing, a share changes by a sixteenth at a time, and rests until
// what is measured differs from it by three.

const (
	// fullShare is the share of its weight that a worker has as a rule, in sixteenths, and leastShare the least.
	fullShare, leastShare = 16, 8
	// restShare is by how much what is measured differs from a share that rests before it begins to change.
	restShare = 3
	// SpeedEvery is how often what was measured is looked at. It is as long as what was measured is remembered for, at least.
	SpeedEvery = 20 * time.Second
	// leastCompared is of how many calls it is known how long a worker took, before that counts.
	leastCompared = 50
	// speedKept is how long a share is kept of whom nothing is measured any more.
	speedKept = 5 * time.Minute
)

// Measured is how long a worker's answers took beside those of others to the same calls.
type Measured struct {
	Worker   string
	Boot     [16]byte
	Beside   float64 // its time / that of the middle one
	Compared uint64  // calls of which that is known
}

// Speeds are the shares that workers have of their weights. The zero value is ready for use. It has no lock.
type Speeds struct {
	of     map[string]speed
	looked time.Time
}

type speed struct {
	boot     [16]byte
	share    int
	changes  bool // it does not rest
	measured time.Time
}

// Look looks at what was measured, of workers that are there, if it is time for that. Who is not named is forgotten.
func (s *Speeds) Look(now time.Time, workers []Measured) {
	if !s.looked.IsZero() && now.Sub(s.looked) < SpeedEvery {
		return
	}
	s.looked = now
	of := make(map[string]speed, len(workers))
	for _, m := range workers {
		one, ok := s.of[m.Worker]
		if !ok || one.boot != m.Boot {
			one = speed{boot: m.Boot, share: fullShare, measured: now}
		}
		switch {
		case m.Compared >= leastCompared && m.Beside > 0:
			one.measured = now
			one.follow(min(max(int(fullShare/max(m.Beside, 1)+0.5), leastShare), fullShare))
		case now.Sub(one.measured) >= speedKept:
			one.share = min(one.share+1, fullShare)
		}
		of[m.Worker] = one
	}
	s.of = of
}

// follow lets a share go a step towards what is measured, unless it rests.
func (s *speed) follow(wants int) {
	far := max(wants-s.share, s.share-wants)
	if far == 0 || far < restShare && !s.changes && wants != fullShare && wants != leastShare {
		s.changes = false
		return
	}
	if wants < s.share {
		s.share--
	} else {
		s.share++
	}
	s.changes = far > 1
}

// Share is the share of its weight that a worker has for new sessions, from a half to 1.
func (s *Speeds) Share(worker string) float64 {
	one, ok := s.of[worker]
	if !ok {
		return 1
	}
	return float64(one.share) / fullShare
}

// Weigh gives rooms the weights that they have for new sessions, if any of them has not all of it. Those whose weights are fixed keep
// them.
func (s *Speeds) Weigh(rooms []Room, fixed func(i int) bool) {
	shares, all := make([]int, len(rooms)), true
	for i, r := range rooms {
		shares[i] = fullShare
		if one, ok := s.of[r.Name]; ok && !fixed(i) {
			shares[i] = one.share
		}
		all = all && shares[i] == fullShare
	}
	if all {
		return
	}
	for i := range rooms {
		rooms[i].Weight = max(rooms[i].Weight, 1) * shares[i]
	}
}
