package sessions

import (
	"slices"
	"time"

	"headwater.example/internal/membership"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// DefaultAwaitFor is the default of Config.AwaitFor: longer than living workers take to find a coordinator that is back.
const DefaultAwaitFor = time.Minute

// Awaited returns the workers of Config.Await that have not been members since, until Config.AwaitFor has passed. What they hold is
// not known, so a session that nobody else holds may be theirs.
func (r *Relay) Awaited() []membership.Member {
	members := r.workers.List()
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.await = slices.DeleteFunc(r.await, func(a membership.Member) bool {
		return !now.Before(r.awaitUntil) || slices.ContainsFunc(members, func(m membership.Member) bool { return m.Name == a.Name })
	})
	return slices.Clone(r.await)
}

// listed returns the workers that there are, and as silent ones the awaited workers that are not among them. One that joins meanwhile
// is among the ones or the others: who asks those workers that there are does not take what it holds for gone.
func (r *Relay) listed() (members []membership.Member, awaited []*headwaterv1.SilentWorker) {
	before := r.Awaited()
	members = r.workers.List()
	for _, a := range before {
		if !slices.ContainsFunc(members, func(m membership.Member) bool { return m.Name == a.Name }) {
			awaited = append(awaited, &headwaterv1.SilentWorker{
				Worker: a.Name, Address: a.Address, Error: "it was a worker before the coordinator's start, and has not joined again yet",
			})
		}
	}
	return members, awaited
}
