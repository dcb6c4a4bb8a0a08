package sessions

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"headwater.example/coordinator/workers"
	"headwater.example/internal/membership"
	"headwater.example/internal/quota"
	"headwater.example/internal/quotaproto"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// quotas shares out what tenants may have of the cluster among the workers: every second it asks all what each tenant has there, and tells
// each how much it may give. Each coordinator does so; as all go by what the workers say, they tell the same.
type quotas struct {
	r    *Relay
	last map[string]*reported // by worker
	told bool                 // whether workers were told of any limits

	mu      sync.Mutex // guards what follows
	tenants []TenantState
}

// reported is what a worker has said last.
type reported struct {
	at      time.Time
	boot    [16]byte
	usage   map[string]quota.Usage
	steps   map[string]float64 // since the worker started
	refused map[string]map[quota.Kind]uint64
}

// TenantState is what a tenant may have and has of the cluster, as far as it is known here, and how often workers have refused it.
type TenantState struct {
	Tenant  string
	Limit   quota.Limits
	Used    quota.Usage
	Refused map[quota.Kind]uint64
}

// Tenants returns the tenants that have limits, by name.
func (r *Relay) Tenants() []TenantState {
	r.quotas.mu.Lock()
	defer r.quotas.mu.Unlock()
	return slices.Clone(r.quotas.tenants)
}

// run shares quotas out until ctx ends.
func (q *quotas) run(ctx context.Context) {
	ticker := time.NewTicker(quota.Every)
	defer ticker.Stop()
	for {
		q.round(ctx)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// round asks and tells once.
func (q *quotas) round(ctx context.Context) {
	named, others := q.r.security.Limits()
	limited := len(named) > 0 || others != quota.Limits{}
	if !limited && !q.told {
		return
	}
	members := q.r.workers.List()
	answered := q.ask(ctx, members)
	q.forget(members)
	terms, states := q.terms(named, others, answered)
	q.told = limited
	workers.Ask(ctx, answered, func(ctx context.Context, i int, m membership.Member) error {
		req := &headwaterv1.ShareQuotasRequest{}
		for tenant, of := range terms {
			req.Tenants = append(req.Tenants, quotaproto.WriteTerms(tenant, of[i]))
		}
		if (others != quota.Limits{}) {
			share := quota.Divide(others, make([]quota.Usage, len(answered)))[i]
			req.Others = quotaproto.WriteTerms("", quota.Terms{Limit: others, Share: share})
		}
		_, err := q.call(ctx, m, req) // who does not hear it goes on with what it was told before
		return err
	})
	q.mu.Lock()
	q.tenants = states
	q.mu.Unlock()
}

// call makes the call to a worker.
func (q *quotas) call(ctx context.Context, m membership.Member, req *headwaterv1.ShareQuotasRequest) (*headwaterv1.ShareQuotasResponse, error) {
	conn, err := q.r.workers.Use(m)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	return headwaterv1.NewWorkerServiceClient(conn).ShareQuotas(ctx, req)
}

// ask asks all workers what tenants have there, and returns those that have answered. Of the others it is known what they said last.
func (q *quotas) ask(ctx context.Context, members []membership.Member) (answered []membership.Member) {
	answers := make([]*headwaterv1.ShareQuotasResponse, len(members))
	workers.Ask(ctx, members, func(ctx context.Context, i int, m membership.Member) (err error) {
		answers[i], err = q.call(ctx, m, &headwaterv1.ShareQuotasRequest{AskOnly: true})
		return err
	})
	for i, m := range members {
		if answers[i] != nil {
			answered = append(answered, m)
			q.last[m.Name] = report(q.last[m.Name], m.Boot, q.r.now(), answers[i])
		}
	}
	return answered
}

// report reads what a worker says, after what it has said before.
func report(before *reported, boot [16]byte, now time.Time, m *headwaterv1.ShareQuotasResponse) *reported {
	r := &reported{at: now, boot: boot, usage: map[string]quota.Usage{}, steps: map[string]float64{}, refused: map[string]map[quota.Kind]uint64{}}
	if before != nil && before.boot != boot {
		before = nil // it counts anew
	}
	for _, t := range m.GetTenants() {
		u := quota.Usage{Held: int64(t.GetHeld()), Sessions: t.GetSessions(), Bytes: int64(t.GetBytes())}
		if before != nil {
			u.Grown = u.Bytes - before.usage[t.GetTenant()].Bytes
			if since := now.Sub(before.at).Seconds(); since > 0 {
				u.Steps = max(t.GetSteps()-before.steps[t.GetTenant()], 0) / since
			}
		}
		r.usage[t.GetTenant()], r.steps[t.GetTenant()] = u, t.GetSteps()
		if f := t.GetRefused(); f != nil {
			r.refused[t.GetTenant()] = map[quota.Kind]uint64{quota.Sessions: uint64(f.GetSessions()), quota.Bytes: f.GetBytes(), quota.Steps: uint64(f.GetStepsPerSecond())}
		}
	}
	return r
}

// forget forgets workers that are no members.
func (q *quotas) forget(members []membership.Member) {
	for name := range q.last {
		if !slices.ContainsFunc(members, func(m membership.Member) bool { return m.Name == name }) {
			delete(q.last, name)
		}
	}
}

// terms are, by tenant, what each of the workers that have answered is told, and how tenants stand. What the other workers have said last
// is taken off first.
func (q *quotas) terms(named map[string]quota.Limits, others quota.Limits, answered []membership.Member) (all map[string][]quota.Terms, states []TenantState) {
	limits := map[string]quota.Limits{}
	for _, w := range q.last {
		for tenant := range w.usage {
			if (others != quota.Limits{}) {
				limits[tenant] = others
			}
		}
	}
	for tenant, l := range named {
		limits[tenant] = l
	}
	all = map[string][]quota.Terms{}
	for tenant, l := range limits {
		state := TenantState{Tenant: tenant, Limit: l, Refused: map[quota.Kind]uint64{}}
		var everywhere, asked []quota.Usage
		for _, w := range q.last {
			everywhere = append(everywhere, w.usage[tenant])
			for kind, n := range w.refused[tenant] {
				state.Refused[kind] += n
			}
		}
		for _, m := range answered {
			asked = append(asked, q.last[m.Name].usage[tenant])
		}
		state.Used = quota.Total(everywhere)
		for _, share := range quota.Divide(less(l, state.Used, quota.Total(asked)), asked) {
			all[tenant] = append(all[tenant], quota.Terms{Share: share, Limit: l, Used: state.Used})
		}
		states = append(states, state)
	}
	slices.SortFunc(states, func(a, b TenantState) int { return cmp.Compare(a.Tenant, b.Tenant) })
	return all, states
}

// less is what limits leave for some workers of what all have.
func less(l quota.Limits, all, some quota.Usage) quota.Limits {
	if l.Sessions > 0 {
		l.Sessions = max(l.Sessions-int64(all.Sessions-some.Sessions), 1)
	}
	if l.Bytes > 0 {
		l.Bytes = max(l.Bytes-(all.Bytes-some.Bytes), 1)
	}
	return l
}
