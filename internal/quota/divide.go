package quota

// Usage is what one worker has of a tenant.
type Usage struct {
	Held     int64   // sessions of which it holds a part
	Sessions float64 // the same, each counted as one part of as many as it has holders: over all workers they add up
	Bytes    int64   // of pages, of copies and prefixes as well
	Grown    int64   // bytes that have come since it was asked before
	Steps    float64 // steps a second that it was asked for, each as the part that it answers: they add up as well
}

// Share is how much a worker may give a tenant. Less than 0 is no bound.
type Share struct {
	Held  int64
	Bytes int64
	Steps float64
}

// NoShare bounds nothing.
var NoShare = Share{Held: -1, Bytes: -1, Steps: -1}

// Divide shares out a tenant's limits among workers. Bytes and steps of all shares together are at most the limit: what is
// left is given half to all alike, half to those that have grown, so a tenant whose sessions lie on a few workers gets
// there what is left in a few turns. What a worker has beyond its share it keeps. Sessions are shared out by how many are
// left over the whole cluster: exact where each lies on all workers, and elsewhere from one turn to the next.
func Divide(l Limits, of []Usage) []Share {
	sum := Total(of)
	shares := make([]Share, len(of))
	for i, u := range of {
		shares[i] = NoShare
		n := float64(len(of))
		if l.Sessions > 0 {
			left := max(float64(l.Sessions)-sum.Sessions+rounding, 0)
			shares[i].Held = min(u.Held+int64(left), l.Sessions)
		}
		if l.Bytes > 0 {
			part := 1 / n
			if sum.Grown > 0 {
				part = part/2 + float64(max(u.Grown, 0))/float64(sum.Grown)/2
			}
			shares[i].Bytes = u.Bytes + int64(float64(max(l.Bytes-sum.Bytes, 0))*part)
		}
		if l.Steps > 0 {
			scale := 1.0
			if sum.Steps > l.Steps {
				scale = l.Steps / sum.Steps
			}
			shares[i].Steps = u.Steps*scale + max(l.Steps-sum.Steps, 0)/n
		}
	}
	return shares
}

// rounding makes up for thirds that add up to less than one.
const rounding = 1e-6

// Total is what all workers have of a tenant together.
func Total(of []Usage) (sum Usage) {
	for _, u := range of {
		sum.Held += u.Held
		sum.Sessions += u.Sessions
		sum.Bytes += u.Bytes
		sum.Grown += max(u.Grown, 0)
		sum.Steps += u.Steps
	}
	return sum
}
