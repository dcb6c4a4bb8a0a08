package dashboard

import "time"

// Snapshot is a cluster at one moment. Its JSON is what the page reads.
//
// A number that a metric has is called by the metric's name, without what all of a process have before it: memory_used_bytes of
// a worker is headwater_worker_memory_used_bytes, and comes from where that one comes from. Where a metric has a label the number
// is the sum over its values.
type Snapshot struct {
	At      time.Time `json:"at"`
	Name    string    `json:"coordinator"`
	Version string    `json:"version"`
	Error   string    `json:"error,omitempty"` // why nothing else is known

	Coordinator  Totals    `json:"totals"`
	Workers      []Worker  `json:"workers"`
	Sessions     []Session `json:"sessions"` // the first of them
	SessionsLeft bool      `json:"sessions_left_out"`
	Jobs         []Job     `json:"jobs"` // newest first
	JobsLeft     int       `json:"jobs_left_out"`
	Events       []Event   `json:"events"` // newest first
}

// Totals are the coordinator's own numbers, headwater_coordinator_….
type Totals struct {
	Workers        uint64            `json:"workers"`
	LeftOut        uint64            `json:"workers_left_out"`
	Lanes          uint64            `json:"lanes"`
	Known          uint64            `json:"sessions_known"`
	WorkersLost    uint64            `json:"workers_lost_total"`
	SessionsLost   uint64            `json:"sessions_lost_total"`
	SessionsMoved  uint64            `json:"sessions_moved_total"`
	CopiesLacking  uint64            `json:"copies_lacking"`
	CopiesMade     uint64            `json:"copies_made_total"`
	JobWorkersLost uint64            `json:"job_workers_lost_total"`
	Attends        uint64            `json:"attends_total"`        // of sessions with copies
	Hedged         uint64            `json:"attends_hedged_total"` // those of them that were asked twice
	Jobs           map[string]uint64 `json:"jobs"`                 // by state, those that there are
}

// Worker is one worker, headwater_worker_…. Counters are since its start, and 0 of one that does not count.
type Worker struct {
	Name  string `json:"name"`
	Boot  string `json:"boot"`
	Error string `json:"error,omitempty"` // why nothing else is known

	Budget      uint64 `json:"memory_budget_bytes"`
	Used        uint64 `json:"memory_used_bytes"`
	Spare       uint64 `json:"memory_spare_bytes"`
	Sessions    uint64 `json:"sessions"`
	Queued      uint64 `json:"queued_steps"`
	PrefixAsked uint64 `json:"prefix_asked_positions_total"`
	PrefixHits  uint64 `json:"prefix_hit_positions_total"`

	Counts bool    `json:"counts"` // whether it tells what follows
	Bus    uint64  `json:"bus_bytes_per_second"`
	Read   uint64  `json:"kernel_read_bytes_total"`
	Steps  uint64  `json:"step_queue_seconds_count"`
	Waited float64 `json:"step_queue_seconds_sum"`

	Answers Answers `json:"answers"`
}

// Answers is how long a worker takes to answer the coordinator's attends, headwater_coordinator_… of that worker.
type Answers struct {
	P50     float64 `json:"answer_p50_seconds"` // 0 if there were none
	P95     float64 `json:"answer_p95_seconds"`
	Waiting uint64  `json:"attends_waiting"`
}

// Session is one session. Sessions have no metrics of their own: these are the numbers of coord sessions list.
type Session struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Tenant  string    `json:"tenant"`
	Length  uint64    `json:"length"`
	Bytes   uint64    `json:"page_bytes"`
	Used    time.Time `json:"used"`
	Holders int       `json:"holders"`
}

// Job is one job.
type Job struct {
	ID          string   `json:"id"`
	Name        string   `json:"name"`
	State       string   `json:"state"`
	Phase       string   `json:"phase"`
	Error       string   `json:"error,omitempty"`
	Done        float64  `json:"done"`        // 0 to 1
	Arithmetics []string `json:"arithmetics"` // of its problems, each once
	Elsewhere   bool     `json:"elsewhere"`   // whether it is another coordinator's, which alone has its tensors
}

// Event is something that happened to the cluster.
type Event struct {
	Number uint64    `json:"number"` // one that goes on has a new one
	At     time.Time `json:"at"`
	Text   string    `json:"text"`
}

// Map is who holds which group of a session, layer by layer.
type Map struct {
	Session  string   `json:"session"`
	Name     string   `json:"name"`
	Tenant   string   `json:"tenant"`
	Error    string   `json:"error,omitempty"` // why there is no map
	Replicas int      `json:"replicas"`        // copies that each group is to have beside its owner's
	Holders  []Holder `json:"holders"`
	Layers   []Layer  `json:"layers"`
}

// Holder is a worker that holds some of a session.
type Holder struct {
	Worker string `json:"worker"`
	// Load is what the worker has done for each layer, of whatever session: the layer's index, steps, and nanoseconds of kernels.
	Load [][3]uint64 `json:"load"`
}

// Layer is one layer of a map.
type Layer struct {
	Heads      int    `json:"heads"` // query heads
	Arithmetic string `json:"arithmetic"`
	Owner      []int  `json:"owner"`             // by group, the index among the holders of the one that answers; -1 is nobody
	Copies     []int  `json:"copies"`            // by group, the holders beside it
	Stripes    int    `json:"stripes,omitempty"` // in which each group is held: owner and copies are by group and stripe then
}
