package observe

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"headwater.example/internal/certs"
	"headwater.example/internal/quota"
)

// Kind is a metric's type.
type Kind string

// The kinds.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
)

// Metric is one metric: what it is called and what it means. Its unit ends its name, as Prometheus wants it.
type Metric struct {
	Name  string
	Kind  Kind
	Help  string
	Label string   // the one label that it may have, or ""
	Of    []string // all values of the label; nil is what the program learns: its version, the names of workers and tenants
	Who   Role
	// Buckets are a histogram's upper bounds in seconds.
	Buckets []float64
}

// Role says which processes have a metric.
type Role uint8

// The roles. Both is every process that serves.
const (
	OfWorker Role = 1 << iota
	OfCoordinator
	Both = OfWorker | OfCoordinator
)

// Buckets of steps and their parts, 25 µs to 13 s, and of jobs, 0.1 s to an hour.
var (
	stepBuckets = prometheus.ExponentialBuckets(25e-6, 2, 20)
	jobBuckets  = prometheus.ExponentialBuckets(0.1, 2.2, 14)
)

// quotas are what tenants' limits bound.
func quotas() (all []string) {
	for _, kind := range quota.Kinds {
		all = append(all, string(kind))
	}
	return all
}

// refusals are why a peer is refused, by the names of package certs.
func refusals() []string {
	all := make([]string, len(certs.Reasons))
	for i, r := range certs.Reasons {
		all[i] = string(r)
	}
	return all
}

// Values of labels.
var (
	// Reasons are why a step is refused, by the names of docs/errors.md, and "other" for a step whose lane ended.
	Reasons = []string{
		"invalid", "unknown", "exists", "behind", "ahead", "different", "stale_epoch", "other_truncations", "freed", "over_budget",
		"not_finite", "lost", "busy", "other",
	}
	works      = []string{"session", "job"}
	codecs     = []string{"raw", "exact", "bf16", "f16", "int8"}
	directions = []string{"received", "answers"}
	// JobStates are the states of jobs, as coord names them.
	JobStates = []string{"uploading", "queued", "running", "succeeded", "failed", "cancelled"}
	jobEnds   = JobStates[3:]
)

// The metrics that are counted where something happens.
var (
	stepDuration   = Metric{Name: "headwater_worker_step_duration_seconds", Kind: Histogram, Who: OfWorker, Buckets: stepBuckets, Help: "Time from a step's arrival at the worker until its answer was given to the transport."}
	stepQueue      = Metric{Name: "headwater_worker_step_queue_seconds", Kind: Histogram, Who: OfWorker, Buckets: stepBuckets, Help: "Time that a step waited at the worker, for its session and for a kernel thread."}
	kernelDuration = Metric{Name: "headwater_worker_kernel_duration_seconds", Kind: Histogram, Who: OfWorker, Buckets: stepBuckets, Label: "work", Of: works, Help: "Time that the kernel took: of a step for all groups that the worker holds, of a job for one block of one group."}
	kernelRead     = Metric{Name: "headwater_worker_kernel_read_bytes_total", Kind: Counter, Who: OfWorker, Label: "work", Of: works, Help: "Bytes of keys and values that queries saw, counted once for each step or block."}
	stepRefusals   = Metric{Name: "headwater_worker_refusals_total", Kind: Counter, Who: OfWorker, Label: "reason", Of: Reasons, Help: "Steps that the worker refused, by reason."}
	stepTokens     = Metric{Name: "headwater_worker_step_tokens_total", Kind: Counter, Who: OfWorker, Label: "kind", Of: []string{"append", "attend"}, Help: "Positions that steps appended to a layer, and tokens that attended."}
	contextRaw     = Metric{Name: "headwater_worker_context_raw_bytes_total", Kind: Counter, Who: OfWorker, Label: "codec", Of: codecs, Help: "Bytes of contexts and LSE that were sent, before they were coded."}
	contextWire    = Metric{Name: "headwater_worker_context_wire_bytes_total", Kind: Counter, Who: OfWorker, Label: "codec", Of: codecs, Help: "Bytes of contexts and LSE that were sent, as coded."}

	relayDuration = Metric{Name: "headwater_coordinator_step_duration_seconds", Kind: Histogram, Who: OfCoordinator, Buckets: stepBuckets, Help: "Time from a step's arrival at the coordinator until its answer was given to the transport."}
	relayWire     = Metric{Name: "headwater_coordinator_step_wire_seconds", Kind: Histogram, Who: OfCoordinator, Buckets: stepBuckets, Help: "The part of a relayed step's time in which no worker says that it waited or computed: the wire, coding and gathering."}
	relayRefusals = Metric{Name: "headwater_coordinator_refusals_total", Kind: Counter, Who: OfCoordinator, Label: "reason", Of: Reasons, Help: "Relayed steps that were refused, by reason, whoever refused them."}
	jobDuration   = Metric{Name: "headwater_coordinator_job_duration_seconds", Kind: Histogram, Who: OfCoordinator, Buckets: jobBuckets, Label: "state", Of: jobEnds, Help: "Time from a job's last start until its end, by how it ended."}
	jobWire       = Metric{Name: "headwater_coordinator_job_wire_seconds", Kind: Histogram, Who: OfCoordinator, Buckets: stepBuckets, Help: "Time from sending a job's query until its answer that was neither waiting nor computing at the worker."}
	jobLost       = Metric{Name: "headwater_coordinator_job_workers_lost_total", Kind: Counter, Who: OfCoordinator, Help: "Workers that were lost while they had a share of a job. Others took it over."}
	workersLost   = Metric{Name: "headwater_coordinator_workers_lost_total", Kind: Counter, Who: OfCoordinator, Help: "Workers that went away or were restarted while they held sessions that this coordinator remembers."}
	sessionsLost  = Metric{Name: "headwater_coordinator_sessions_lost_total", Kind: Counter, Who: OfCoordinator, Help: "Sessions that these workers held, as far as this coordinator remembers them; those that come back with their worker are counted as well."}
	sessionsMoved = Metric{Name: "headwater_coordinator_sessions_moved_total", Kind: Counter, Who: OfCoordinator, Help: "Failovers: sessions that went on without a lost worker, from the copies of others, once for each worker; of those that this coordinator relays."}
	copiesFailed  = Metric{Name: "headwater_coordinator_copies_failed_total", Kind: Counter, Who: OfCoordinator, Help: "Copies of sessions that could not be made at a worker. They are tried again."}
	loginsFailed  = Metric{Name: "headwater_coordinator_logins_failed_total", Kind: Counter, Who: OfCoordinator, Help: "Logins to the dashboard that failed, those in them that were refused because too many had failed."}
)

// The metrics that are read at a scrape, from what coord status shows.
var (
	Build          = Metric{Name: "headwater_build_info", Kind: Gauge, Who: Both, Label: "version", Help: "1, with the program's version."}
	Panics         = Metric{Name: "headwater_panics_total", Kind: Counter, Who: Both, Help: "Panics that were caught, each of which ended one call."}
	FlightBytes    = Metric{Name: "headwater_flight_bytes", Kind: Gauge, Who: Both, Label: "direction", Of: directions, Help: "Bytes of messages in flight: received and not yet done with, and answers not yet written."}
	FlightReserved = Metric{Name: "headwater_flight_reserved_bytes", Kind: Gauge, Who: Both, Help: "The part of the bytes in flight that is taken from the memory budget."}
	FlightWaiting  = Metric{Name: "headwater_flight_waiting", Kind: Gauge, Who: Both, Help: "Messages and answers that wait for room in flight."}
	OpenCalls      = Metric{Name: "headwater_open_calls", Kind: Gauge, Who: Both, Help: "Calls that are open, lanes and job streams in them."}
	OpenConns      = Metric{Name: "headwater_open_connections", Kind: Gauge, Who: Both, Help: "Connections of clients and coordinators."}

	PeersRefused       = Metric{Name: "headwater_peers_refused_total", Kind: Counter, Who: Both, Label: "reason", Of: refusals(), Help: "What was refused of peers: connections, calls, and messages of gossip, by reason."}
	CertificateExpires = Metric{Name: "headwater_certificate_expires_timestamp_seconds", Kind: Gauge, Who: Both, Help: "When the process's certificate expires, in seconds since 1970; 0 without one."}

	QuotaRefusals  = Metric{Name: "headwater_coordinator_quota_refusals_total", Kind: Counter, Who: OfCoordinator, Label: "quota", Of: quotas(), Help: "Calls and steps that were refused for a tenant's limit, by what it bounds: by all workers since they started, and jobs by this coordinator."}
	TenantRefusals = Metric{Name: "headwater_coordinator_tenant_refusals_total", Kind: Counter, Who: OfCoordinator, Label: "tenant", Help: "The same by tenant, for the first 100 that have limits; without a name, of all others together."}
	TenantSessions = Metric{Name: "headwater_coordinator_tenant_sessions", Kind: Gauge, Who: OfCoordinator, Label: "tenant", Help: "Sessions in the cluster of the tenants that have limits, as above."}
	TenantBytes    = Metric{Name: "headwater_coordinator_tenant_bytes", Kind: Gauge, Who: OfCoordinator, Label: "tenant", Help: "Bytes of pages in the cluster of the tenants that have limits, as above."}

	MemoryBudget = Metric{Name: "headwater_worker_memory_budget_bytes", Kind: Gauge, Who: OfWorker, Help: "Memory budget for keys, values and queries."}
	MemoryUsed   = Metric{Name: "headwater_worker_memory_used_bytes", Kind: Gauge, Who: OfWorker, Help: "The part of the budget that is in use."}
	MemorySpare  = Metric{Name: "headwater_worker_memory_spare_bytes", Kind: Gauge, Who: OfWorker, Help: "The part of what is in use that is given up when room is needed."}
	Threads      = Metric{Name: "headwater_worker_threads", Kind: Gauge, Who: OfWorker, Help: "Threads that kernels may use at once."}
	Bus          = Metric{Name: "headwater_worker_bus_bytes_per_second", Kind: Gauge, Who: OfWorker, Help: "Bytes a second at which these threads read memory, measured when the worker started; 0 if it could not be measured."}
	Sessions     = Metric{Name: "headwater_worker_sessions", Kind: Gauge, Who: OfWorker, Help: "Sessions of which the worker holds a part."}
	Lanes        = Metric{Name: "headwater_worker_lanes", Kind: Gauge, Who: OfWorker, Help: "Lanes that are open."}
	QueuedSteps  = Metric{Name: "headwater_worker_queued_steps", Kind: Gauge, Who: OfWorker, Help: "Steps that have arrived and not begun to attend."}
	QueuedTokens = Metric{Name: "headwater_worker_queued_tokens", Kind: Gauge, Who: OfWorker, Help: "Query tokens of the queued steps."}
	Pages        = Metric{Name: "headwater_worker_pages", Kind: Gauge, Who: OfWorker, Help: "Pages of sessions and prefixes that are in use, of all sizes."}
	CacheUsed    = Metric{Name: "headwater_worker_cache_used_bytes", Kind: Gauge, Who: OfWorker, Help: "Bytes of the pages that are in use."}
	CacheFree    = Metric{Name: "headwater_worker_cache_free_bytes", Kind: Gauge, Who: OfWorker, Help: "Bytes of pages that are mapped and free."}
	CacheRoom    = Metric{Name: "headwater_worker_cache_room_bytes", Kind: Gauge, Who: OfWorker, Help: "Bytes that pages can still take before anything is dropped."}
	CacheRows    = Metric{Name: "headwater_worker_cache_row_bytes", Kind: Gauge, Who: OfWorker, Help: "Bytes of the rows that pages stand in."}
	CacheHeap    = Metric{Name: "headwater_worker_cache_session_bytes", Kind: Gauge, Who: OfWorker, Help: "Bytes of sessions beside their pages and rows."}
	PrefixBytes  = Metric{Name: "headwater_worker_prefix_bytes", Kind: Gauge, Who: OfWorker, Help: "Bytes of pages that prefixes alone keep."}
	PrefixAsked  = Metric{Name: "headwater_worker_prefix_asked_positions_total", Kind: Counter, Who: OfWorker, Help: "Positions that new sessions asked for in prefixes."}
	PrefixHits   = Metric{Name: "headwater_worker_prefix_hit_positions_total", Kind: Counter, Who: OfWorker, Help: "Positions asked for in prefixes that were there."}
	PrefixSaved  = Metric{Name: "headwater_worker_prefix_saved_bytes_total", Kind: Counter, Who: OfWorker, Help: "Bytes of keys and values that need not be sent because a prefix had them."}
	Evicted      = Metric{Name: "headwater_worker_sessions_evicted_total", Kind: Counter, Who: OfWorker, Help: "Sessions that were dropped for want of room or use."}

	RelayLanes   = Metric{Name: "headwater_coordinator_lanes", Kind: Gauge, Who: OfCoordinator, Help: "Lanes of clients that are open."}
	RelayKnown   = Metric{Name: "headwater_coordinator_sessions_known", Kind: Gauge, Who: OfCoordinator, Help: "Sessions whose holders this coordinator remembers; others it finds by asking."}
	Workers      = Metric{Name: "headwater_coordinator_workers", Kind: Gauge, Who: OfCoordinator, Help: "Workers that membership shows."}
	WorkersLeft  = Metric{Name: "headwater_coordinator_workers_left_out", Kind: Gauge, Who: OfCoordinator, Help: "Workers that announce themselves and are no members; coord status says why."}
	CopiesLacked = Metric{Name: "headwater_coordinator_copies_lacking", Kind: Gauge, Who: OfCoordinator, Help: "Copies of shards that sessions are to have and lack: under-replicated shards."}
	CopiesDone   = Metric{Name: "headwater_coordinator_copies_made_total", Kind: Counter, Who: OfCoordinator, Help: "Copies of sessions that were made at a worker, after a loss or to move them."}
	CopiedBytes  = Metric{Name: "headwater_coordinator_copied_bytes_total", Kind: Counter, Who: OfCoordinator, Help: "Bytes of keys and values that were copied between workers."}
	Attends      = Metric{Name: "headwater_coordinator_attends_total", Kind: Counter, Who: OfCoordinator, Help: "Attends of relayed sessions with copies, those of each worker counted apart."}
	Hedged       = Metric{Name: "headwater_coordinator_attends_hedged_total", Kind: Counter, Who: OfCoordinator, Help: "The part of these that was asked of another worker as well, since the first was late."}
	HedgesWon    = Metric{Name: "headwater_coordinator_hedges_won_total", Kind: Counter, Who: OfCoordinator, Help: "Attends that were asked of another worker as well and whose answer came from there first."}
	AnswerP50    = Metric{Name: "headwater_coordinator_answer_p50_seconds", Kind: Gauge, Who: OfCoordinator, Label: "worker", Help: "Time within which a worker answered half of the attends of at most 64 tokens, over the last 10 to 20 seconds; 0 without any."}
	AnswerP95    = Metric{Name: "headwater_coordinator_answer_p95_seconds", Kind: Gauge, Who: OfCoordinator, Label: "worker", Help: "The same for 19 of 20 attends. After three times as long an answer is late."}
	Unanswered   = Metric{Name: "headwater_coordinator_attends_waiting", Kind: Gauge, Who: OfCoordinator, Label: "worker", Help: "Attends that a worker has not answered."}
	JobsOfStates = Metric{Name: "headwater_coordinator_jobs", Kind: Gauge, Who: OfCoordinator, Label: "state", Of: JobStates, Help: "Jobs that are kept, by state."}
)

// All is every metric of Headwater, by name.
func All() []Metric {
	all := []Metric{
		stepDuration, stepQueue, kernelDuration, kernelRead, stepRefusals, stepTokens, contextRaw, contextWire,
		relayDuration, relayWire, relayRefusals, jobDuration, jobWire, jobLost, workersLost, sessionsLost, sessionsMoved, copiesFailed, loginsFailed,
		Build, Panics, FlightBytes, FlightReserved, FlightWaiting, OpenCalls, OpenConns, PeersRefused, CertificateExpires,
		MemoryBudget, MemoryUsed, MemorySpare, Threads, Bus, Sessions, Lanes, QueuedSteps, QueuedTokens, Pages,
		CacheUsed, CacheFree, CacheRoom, CacheRows, CacheHeap, PrefixBytes, PrefixAsked, PrefixHits, PrefixSaved, Evicted,
		QuotaRefusals, TenantRefusals, TenantSessions, TenantBytes,
		RelayLanes, RelayKnown, Workers, WorkersLeft, CopiesLacked, CopiesDone, CopiedBytes, JobsOfStates,
		Attends, Hedged, HedgesWon, AnswerP50, AnswerP95, Unanswered,
	}
	slices.SortFunc(all, func(a, b Metric) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return all
}
