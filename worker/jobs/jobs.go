// Package jobs serves Run: one worker's share of a job.
//
// The way of a run (run.go): a goroutine receives messages, another handles them in the order in which they come, and tasks
// compute answers beside it. Open says what problems the job has (problem.go). ShardOpen reserves the pages of one group of a
// problem, which keys and values then fill (load.go); where the job is a layer, they are projected from hidden states by
// weights that came before (project.go). A sealed shard does not change, so query blocks (query.go) and output blocks
// (output.go) run beside the loading and beside each other.
//
// A stream owns all that it makes the worker hold: shards, weights, and the blocks in flight. Each is counted in the worker's
// budget before it is allocated, and given back when the stream ends. A stream has a few blocks in flight, of flightBytes at
// most. If there is no room for a block, its stream is not read until there is, so that HTTP/2's flow control holds back the
// sender. An error ends the stream; no answer is partial.
package jobs

import (
	"sync"

	"headwater.example/worker/internal/machine"
)

// Service serves Run on a machine.
type Service struct {
	m *machine.Machine

	mu     sync.Mutex
	flight flight        // blocks of all runs
	landed chan struct{} // closed when a block has ended, and made anew
}

// New makes the service of a machine.
func New(m *machine.Machine) *Service {
	return &Service{m: m, landed: make(chan struct{})}
}
