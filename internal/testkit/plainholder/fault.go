package plainholder

import (
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

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

// follows refuses a step that builds on other appends than those that have made a layer, and tells whether it repeats the newest.
func follows(fault Fault, now *headwaterv1.LayerState, m *session.Step) (repeat bool, _ *session.Error) {
	repeat = m.Append > 0 && now.GetLength() == m.Length+uint64(m.Append)
	switch {
	case m.Append > 0 && m.AppendID == 0:
		return false, refuse(invalid, "an append without an id")
	case fault == TakesLateRetries:
	case now.GetLength() == m.Length && now.GetChain() != m.Chain,
		repeat && (now.GetAppendId() != m.AppendID || now.GetBefore().GetLength() != m.Length || now.GetBefore().GetChain() != m.Chain):
		err := refuse(different, "layer %d was made by other appends", m.Layer)
		err.Why.Length = now.GetLength()
		return false, err
	}
	return repeat, nil
}
