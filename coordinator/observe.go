package coordinator

import (
	"headwater.example/internal/observe"
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
		counts := c.jobs.Counts()
		for _, state := range observe.JobStates {
			emit(&observe.JobsOfStates, float64(counts[state]), state)
		}
	})
}
