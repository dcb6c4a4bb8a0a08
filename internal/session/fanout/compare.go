package fanout

import (
	"slices"
	"time"
)

// This file holds the answers of a call against each other: all holders are asked at the same time for the same positions of a layer, so
// that what one takes longer than the others is its own. How long answers take in all says less: sessions differ in length.

const (
	// compareEvery is of how many calls one is compared, and comparedMost how many holders it has at most.
	compareEvery = 8
	comparedMost = 64
	// comparedFrom is added to the times that are compared: what is shorter is more of the network than of the work.
	comparedFrom = 250 * time.Microsecond
	// sameTime is the time that is counted for a ratio of 1.
	sameTime = 1 << 20
)

// compare counts how much longer each holder of a call took than the middle one. Those that answer for more groups have more to do: what
// counts is the smaller ratio, of the times or of the times for a group.
func (c *Call) compare() {
	if s := c.step; s.Attend == 0 || s.Attend > hedgedTokens || len(c.late) > 0 || len(c.parts) < 2 || len(c.parts) > comparedMost ||
		c.holding.layers[s.Layer].Striped() || c.lane.conns.compared.Add(1)%compareEvery != 0 {
		return
	}
	var memory [2][comparedMost]time.Duration
	times, each := memory[0][:0], memory[1][:0]
	for _, p := range c.parts {
		if len(p.answers) > 0 {
			times, each = append(times, p.took+comparedFrom), append(each, (p.took+comparedFrom)/time.Duration(len(p.answers)))
		}
	}
	if len(times) < 2 {
		return
	}
	slices.Sort(times)
	slices.Sort(each)
	middle, now := (len(times)-1)/2, c.lane.conns.now()
	for _, p := range c.parts {
		if n := time.Duration(len(p.answers)); n > 0 {
			took := p.took + comparedFrom
			ratio := min(float64(took)/float64(times[middle]), float64(took/n)/float64(each[middle]))
			p.pace.beside.add(now, time.Duration(ratio*sameTime))
		}
	}
}
