package placement

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	"headwater.example/shard"
)

// evenEnough is the part of a worker's share by which it may hold more or less before sessions are moved, as a divisor.
const evenEnough = 20

// Part is what one worker holds of one session.
type Part struct {
	Session [16]byte
	Bytes   uint64
	Held    map[shard.ID]bool
}

// Load is what a worker holds of all sessions.
type Load struct {
	Room
	Parts map[[16]byte]*Part

	bytes, share uint64
}

// Move is a part that is to go to another worker.
type Move struct {
	Part
	From, To string
}

func (l *Load) over() int64 { return int64(l.bytes) - int64(l.share) }

// Even returns moves after which each worker holds bytes in proportion to its weight, as evenly as whole parts allow. Each
// move is from the worker with the most too much to the one with the most too little. A part does not go where some of its groups
// are already, nor into a zone where they are at another worker. The loads are changed.
func Even(loads []*Load) (moves []Move) {
	total, weights := uint64(0), uint64(0)
	at := map[[16]byte][]*Load{} // who holds parts of a session
	for _, l := range loads {
		l.bytes = 0
		for id, p := range l.Parts {
			l.bytes += p.Bytes
			at[id] = append(at[id], l)
		}
		total += l.bytes
		weights += uint64(max(l.Weight, 1))
	}
	for _, l := range loads {
		l.share = uint64(float64(total) * float64(max(l.Weight, 1)) / float64(weights))
	}
	loads = slices.Clone(loads)
	for {
		slices.SortFunc(loads, func(a, b *Load) int {
			return cmp.Or(cmp.Compare(b.over(), a.over()), cmp.Compare(a.Name, b.Name))
		})
		from, to, part := firstMove(loads, at)
		if part == nil {
			return moves
		}
		id := part.Session
		moves = append(moves, Move{*part, from.Name, to.Name})
		from.bytes, to.bytes = from.bytes-part.Bytes, to.bytes+part.Bytes
		delete(from.Parts, id)
		at[id] = slices.DeleteFunc(at[id], func(l *Load) bool { return l == from })
		if has := to.Parts[id]; has != nil {
			joined := &Part{id, has.Bytes + part.Bytes, maps.Clone(has.Held)}
			maps.Copy(joined.Held, part.Held)
			to.Parts[id] = joined
		} else {
			to.Parts[id] = part
			at[id] = append(at[id], to)
		}
	}
}

// firstMove returns the largest part that makes the loads more even, from those with the most too much to those with the most too
// little, of loads in that order. The part is nil if there is none.
func firstMove(byLoad []*Load, at map[[16]byte][]*Load) (from, to *Load, part *Part) {
	for _, from := range byLoad {
		if from.over() <= 0 {
			return nil, nil, nil
		}
		for _, to := range slices.Backward(byLoad) {
			if to.over() >= 0 || from.over() <= int64(from.share/evenEnough) && -to.over() <= int64(to.share/evenEnough) {
				break
			}
			var best *Part
			for _, p := range from.Parts {
				if int64(p.Bytes) > max(from.over(), -to.over()) || p.Bytes == 0 {
					continue
				}
				if best != nil && cmp.Or(cmp.Compare(p.Bytes, best.Bytes), bytes.Compare(best.Session[:], p.Session[:])) <= 0 {
					continue
				}
				if fits(p, from, to, at[p.Session]) {
					best = p
				}
			}
			if best != nil {
				return from, to, best
			}
		}
	}
	return nil, nil, nil
}

// fits reports whether a part may go from one worker to another, beside those that hold the rest of its session.
func fits(p *Part, from, to *Load, holders []*Load) bool {
	for _, h := range holders {
		if h == from || h != to && (h.Zone != to.Zone || to.Zone == from.Zone) {
			continue
		}
		for id := range h.Parts[p.Session].Held {
			if p.Held[id] {
				return false
			}
		}
	}
	return true
}
