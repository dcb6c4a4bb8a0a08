package plainholder

// Fault is something that no holder may do.
type Fault int

// The faults.
const (
	Faultless         Fault = iota
	AcknowledgesEarly       // it answers a step, and does it when the next one comes
	TakesAnyEpoch           // it accepts the calls of every lane
	TakesLateRetries        // it accepts a step from before a truncation
	FillsWithZeros          // it answers for its last group with zeros
)
