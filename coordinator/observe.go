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
}
