package sessions

import (
	"context"
	"sync"
	"time"

	"headwater.example/coordinator/workers"
	"headwater.example/internal/placement"
)

// speeds are the shares that workers have of their weights for new sessions, by how quickly they answer this coordinator.
type speeds struct {
	mu sync.Mutex
	placement.Speeds
}

// keepSpeeds looks at how quickly workers answer, until ctx ends.
func (r *Relay) keepSpeeds(ctx context.Context) {
	tick := time.NewTicker(placement.SpeedEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.lookAtSpeeds()
		case <-ctx.Done():
			return
		}
	}
}

func (r *Relay) lookAtSpeeds() {
	times := r.AnswerTimes()
	var measured []placement.Measured
	for _, m := range r.workers.List() {
		one := times[m.Name]
		measured = append(measured, placement.Measured{Worker: m.Name, Boot: m.Boot, Beside: one.Beside, Compared: one.Compared})
	}
	r.speeds.mu.Lock()
	defer r.speeds.mu.Unlock()
	r.speeds.Look(r.now(), measured)
}

// weigh gives rooms of workers the weights that they have for new sessions.
func (r *Relay) weigh(rooms []placement.Room, of []workers.Description) {
	r.speeds.mu.Lock()
	defer r.speeds.mu.Unlock()
	r.speeds.Weigh(rooms, func(i int) bool { return of[i].Said.GetWeightGiven() })
}

// WeightShare is the share of its weight that a worker has for new sessions, from 0.5 to 1, unless its weight was given to it.
func (r *Relay) WeightShare(worker string) float64 {
	r.speeds.mu.Lock()
	defer r.speeds.mu.Unlock()
	return r.speeds.Share(worker)
}
