package coordinator

import (
	"headwater.example/internal/observe"
	"headwater.example/internal/quota"
)

// observe registers the metrics that are read at a scrape.
func (c *Coordinator) observe(config Config) {
	o := config.Observe
	if !o.Counts() {
		return
	}
	o.ReadProcess(config.Version, c.flight, config.Security)
	o.Read([]*observe.Metric{
		&observe.RelayLanes, &observe.RelayKnown, &observe.Workers, &observe.WorkersLeft, &observe.JobsOfStates,
		&observe.CopiesLacked, &observe.CopiesDone, &observe.CopiedBytes,
		&observe.Attends, &observe.Hedged, &observe.HedgesWon, &observe.AnswerP50, &observe.AnswerP95, &observe.Unanswered,
	}, func(emit observe.Emit) {
		lanes, known := c.sessions.Open()
		emit(&observe.RelayLanes, float64(lanes))
		emit(&observe.RelayKnown, float64(known))
		members, leftOut := c.jobs.Workers()
		emit(&observe.Workers, float64(members))
		emit(&observe.WorkersLeft, float64(leftOut))
		lacking, made, bytes := c.sessions.Copies()
		emit(&observe.CopiesLacked, float64(lacking))
		emit(&observe.CopiesDone, float64(made))
		emit(&observe.CopiedBytes, float64(bytes))
		hedges := c.sessions.Hedges()
		emit(&observe.Attends, float64(hedges.Attends))
		emit(&observe.Hedged, float64(hedges.Asked))
		emit(&observe.HedgesWon, float64(hedges.Won))
		for name, one := range c.sessions.AnswerTimes() {
			emit(&observe.AnswerP50, one.P50.Seconds(), name)
			emit(&observe.AnswerP95, one.P95.Seconds(), name)
			emit(&observe.Unanswered, float64(one.Queue), name)
		}
		counts := c.jobs.Counts()
		for _, state := range observe.JobStates {
			emit(&observe.JobsOfStates, float64(counts[state]), state)
		}
	})
	o.Read([]*observe.Metric{&observe.QuotaRefusals, &observe.TenantRefusals, &observe.TenantSessions, &observe.TenantBytes}, c.observeTenants)
}

// maxShownTenants bounds the tenants that have metrics of their own.
const maxShownTenants = 100

// observeTenants tells what tenants have that have limits.
func (c *Coordinator) observeTenants(emit observe.Emit) {
	type sums struct{ refused, sessions, bytes float64 }
	var rest sums
	byKind, jobs := map[quota.Kind]float64{}, c.jobs.Refused()
	for _, n := range jobs {
		byKind[quota.Jobs] += float64(n)
	}
	tell := func(tenant string, s sums) {
		emit(&observe.TenantRefusals, s.refused, tenant)
		emit(&observe.TenantSessions, s.sessions, tenant)
		emit(&observe.TenantBytes, s.bytes, tenant)
	}
	for i, t := range c.sessions.Tenants() {
		s := sums{float64(jobs[t.Tenant]), t.Used.Sessions, float64(t.Used.Bytes)}
		for kind, n := range t.Refused {
			byKind[kind] += float64(n)
			s.refused += float64(n)
		}
		if i < maxShownTenants {
			tell(t.Tenant, s)
			continue
		}
		rest = sums{rest.refused + s.refused, rest.sessions + s.sessions, rest.bytes + s.bytes}
	}
	tell("", rest)
	for _, kind := range quota.Kinds {
		emit(&observe.QuotaRefusals, byKind[kind], string(kind))
	}
}
