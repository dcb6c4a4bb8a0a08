package client

import (
	"time"

	"headwater.example/attention"
	"headwater.example/internal/layerproto"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Status is a cluster as its coordinator sees it.
type Status struct {
	Name     string // the coordinator's
	Version  string // of its program
	Protocol string // MAJOR.MINOR
	Started  time.Time
	Panics   uint64         // that the coordinator has caught since then, each of which ended one call
	Workers  []WorkerStatus // by name
	Jobs     map[JobState]uint64
	Tenants  []TenantStatus // that have limits, by name: of a tenant's own call its own
	// Auto is what attention.Auto would be taken for now in what all workers were to hold that may be given more; attention.Auto if the
	// coordinator does not say.
	Auto attention.Arithmetic
}

// TenantStatus is what a tenant may have and has.
type TenantStatus struct {
	Tenant string
	Limit  TenantAmounts // 0 is no limit
	Used   TenantAmounts // of the whole cluster, about a second ago; of jobs those of this coordinator
}

// TenantAmounts are a tenant's limits, or what it has.
type TenantAmounts struct {
	Sessions       float64
	Bytes          uint64 // of pages
	StepsPerSecond float64
	Jobs           uint64 // that have not ended
}

func newAmounts(m *headwaterv1.TenantAmounts) TenantAmounts {
	return TenantAmounts{m.GetSessions(), m.GetBytes(), m.GetStepsPerSecond(), m.GetJobs()}
}

// WorkerStatus is one worker. If it does not answer, Error says why, and only Name and Address may be set besides.
type WorkerStatus struct {
	Name        string
	Address     string // of its gRPC service, host:port
	Error       string // why it does not answer; "" if it does
	Boot        []byte // UUID of this start of the process
	Version     string // of its program
	Weight      uint32 // in plans
	Zone        string // what fails together with it; "" is not known
	BudgetBytes uint64 // for keys, values and queries
	UsedBytes   uint64 // of these
	SpareBytes  uint64 // the part of UsedBytes that is given up when room is needed
	Threads     uint32 // for kernels
	Kernel      string
	Processor   string      // what it calls itself
	Features    []string    // of the processor, of those that kernels use, by the names of Linux
	MatrixUnit  *bool       // whether the kernel has one for arithmetic in tiles, which is slower without; nil if the worker does not say
	Load        *WorkerLoad // nil if it does not count what it does
	Draining    bool        // whether it gets no sessions and no jobs, and what it has is moved away
	Answers     *AnswerTimes
	// WeightShare is the share of its weight that it has for new sessions, from 0.5 to 1: less if it answers slower than others, unless
	// its weight was given to it. 0 where nothing is measured.
	WeightShare float64
}

// AnswerTimes are how long a worker takes to answer attends of at most 64 tokens that the coordinator asks of it. They are nil of one
// that was asked nothing.
type AnswerTimes struct {
	Count    uint64        // answers of the last 10 to 20 seconds
	P50, P95 time.Duration // within which half and 19 of 20 of them came; 0 if there are none
	Waiting  uint64        // attends that have no answer yet
	Beside   float64       // its time / that of the middle one of the workers that the same call asked, half of the time; 0 if there are none
	Compared uint64        // calls of which that is known
}

// Attends are attends of direct sessions with copies, those of each worker counted apart.
type Attends struct {
	Asked  uint64 // all
	Hedged uint64 // the part of them that was asked of another worker as well, since the first was late
	Won    uint64 // the part of these whose answer came from the other worker first
}

// Attends returns what this client has asked of workers itself; what a coordinator asks, its metrics count.
func (c *Client) Attends() Attends {
	h := c.conns.Hedges()
	return Attends{h.Attends, h.Asked, h.Won}
}

func newAnswers(m *headwaterv1.AnswerTimes) *AnswerTimes {
	if m == nil {
		return nil
	}
	return &AnswerTimes{m.GetCount(), time.Duration(m.GetP50Nanos()), time.Duration(m.GetP95Nanos()), m.GetWaiting(), m.GetBeside(), m.GetCompared()}
}

// WorkerLoad is what a worker has done since it started.
type WorkerLoad struct {
	BusBytesPerSecond uint64        // at which its kernel threads read memory, as measured when it started; 0 if it could not be
	ReadBytes         uint64        // of keys and values that queries saw
	Steps             uint64        // of sessions
	Queue             time.Duration // that these steps waited, in all
	Layers            []LayerLoad   // ascending
}

// LayerLoad is what a worker has done for the shards of one layer, of whatever session.
type LayerLoad struct {
	Layer  int
	Steps  uint64
	Kernel time.Duration // in all
}

func newLoad(m *headwaterv1.WorkerLoad) *WorkerLoad {
	if m == nil {
		return nil
	}
	l := &WorkerLoad{BusBytesPerSecond: m.GetBusBytesPerSecond(), ReadBytes: m.GetReadBytes(), Steps: m.GetSteps(), Queue: time.Duration(m.GetQueueNanos())}
	for _, one := range m.GetLayers() {
		l.Layers = append(l.Layers, LayerLoad{int(one.GetLayer()), one.GetSteps(), time.Duration(one.GetKernelNanos())})
	}
	return l
}

// matrixUnit is what a worker says of its kernel.
func matrixUnit(d *headwaterv1.DescribeResponse) *bool {
	if d == nil || d.MatrixUnit == nil {
		return nil
	}
	has := d.GetMatrixUnit()
	return &has
}

func newStatus(m *headwaterv1.StatusResponse) *Status {
	s := &Status{
		Name: m.GetName(), Version: m.GetVersion(), Protocol: m.GetProtocol(), Started: instant(m.GetStarted()), Panics: m.GetPanics(),
		Jobs: map[JobState]uint64{}, Auto: attention.Auto,
	}
	if a := m.GetAutoArithmetic(); a != headwaterv1.Arithmetic_ARITHMETIC_UNSPECIFIED {
		s.Auto = layerproto.ReadArithmetic(a)
	}
	for _, w := range m.GetWorkers() {
		d := w.GetWorker()
		s.Workers = append(s.Workers, WorkerStatus{
			Name: d.GetName(), Address: w.GetAddress(), Error: w.GetError(), Boot: d.GetBoot(), Version: d.GetVersion(), Weight: d.GetWeight(), Zone: d.GetZone(),
			BudgetBytes: d.GetBudgetBytes(), UsedBytes: d.GetUsedBytes(), SpareBytes: d.GetSpareBytes(), Threads: d.GetThreads(), Kernel: d.GetKernel(), Processor: d.GetProcessor(), Features: d.GetProcessorFeatures(), MatrixUnit: matrixUnit(d),
			Load: newLoad(d.GetLoad()), Draining: d.GetDraining(), Answers: newAnswers(w.GetAnswers()), WeightShare: w.GetWeightShare(),
		})
	}
	for _, c := range m.GetJobs() {
		s.Jobs[jobState(c.GetState())] += c.GetCount()
	}
	for _, t := range m.GetTenants() {
		s.Tenants = append(s.Tenants, TenantStatus{t.GetTenant(), newAmounts(t.GetLimit()), newAmounts(t.GetUsed())})
	}
	return s
}

// SessionState is the cluster's state of a session.
type SessionState struct {
	ID            SessionID
	Name          string // for people
	Tenant        string
	Model         []byte        // fingerprint; nil in a list of all sessions
	TTL           time.Duration // 0: the workers' limit, and in a list of all sessions
	Epoch         uint64        // how often a client has taken it up
	Truncations   uint64        // how often positions were taken back
	Pinned        bool
	Created, Used time.Time
	PageBytes     uint64 // of the pages that it refers to
	OwnBytes      uint64 // the part of these that no other session and no prefix shares
	Layers        []LayerState
	Holders       []Holder
	// Arithmetics are those of the layers, and Stripes in how many each group is held, 1 is whole; empty if the state was asked for without
	// the config.
	Arithmetics []attention.Arithmetic
	Stripes     []int
	// OtherSides is what workers have of another side of the session, if it went on twice; of a session that was found by its id.
	OtherSides []OtherSide
}

// OtherSide is what a worker has of a session that went on at others without it, and that itself went on since. It is not the session any
// more, and stays until its TTL, or until DropSide.
type OtherSide struct {
	Worker, Address string
	Epoch           uint64
	Positions       uint64 // of its longest layer
	PageBytes       uint64
}

// LayerState is the state of one layer.
type LayerState struct {
	Layer  int
	Length uint64   // positions
	First  uint64   // first position that is there; those before have left the layer's window
	Hashes []uint64 // chained, by group; nil in a list of all sessions
}

// Holder is a worker that holds some of a session's groups.
type Holder struct {
	Name, Address string
	Boot          []byte // UUID
	PageBytes     uint64 // of the session's pages here
	OwnBytes      uint64
	Layers        []HeldLayer
}

// HeldLayer has the groups of a layer that a worker holds, ascending. Of a layer in stripes it has, in their place, each stripe that it
// holds: its group, and its number.
type HeldLayer struct {
	Layer   int
	Groups  []uint32
	Stripes [][2]uint32
}

func newSession(m *headwaterv1.SessionState) SessionState {
	s := SessionState{
		Name: m.GetName(), Tenant: m.GetTenant(), Model: m.GetConfig().GetModel(), TTL: m.GetConfig().GetTtl().AsDuration(),
		Epoch: m.GetEpoch().GetCounter(), Truncations: m.GetTruncations(), Pinned: m.GetPinned(), Created: instant(m.GetCreated()), Used: instant(m.GetUsed()),
		PageBytes: m.GetPageBytes(), OwnBytes: m.GetOwnBytes(),
	}
	copy(s.ID[:], m.GetSession())
	for _, l := range m.GetLayers() {
		s.Layers = append(s.Layers, LayerState{int(l.GetLayer()), l.GetLength(), l.GetFirst(), l.GetHashes()})
	}
	for _, l := range m.GetConfig().GetLayers() {
		s.Stripes = append(s.Stripes, max(int(l.GetStripes()), 1))
	}
	s.Arithmetics = readArithmetics(m.GetConfig())
	for _, h := range m.GetHolders() {
		one := Holder{Name: h.GetName(), Address: h.GetAddress(), Boot: h.GetBoot(), PageBytes: h.GetPageBytes(), OwnBytes: h.GetOwnBytes()}
		for _, l := range h.GetLayers() {
			held := HeldLayer{Layer: int(l.GetLayer()), Groups: l.GetGroups()}
			for _, shard := range l.GetShards() {
				n := uint32(1) // of a list of all sessions, which has no config, it is not known
				if held.Layer < len(s.Stripes) {
					n = uint32(s.Stripes[held.Layer])
				}
				held.Stripes = append(held.Stripes, [2]uint32{shard / n, shard % n})
			}
			one.Layers = append(one.Layers, held)
		}
		s.Holders = append(s.Holders, one)
	}
	for _, o := range m.GetOtherSides() {
		s.OtherSides = append(s.OtherSides, OtherSide{o.GetWorker(), o.GetAddress(), o.GetEpoch(), o.GetPositions(), o.GetPageBytes()})
	}
	return s
}

// readArithmetics are those of a session's layers.
func readArithmetics(config *headwaterv1.SessionConfig) (all []attention.Arithmetic) {
	for _, l := range config.GetLayers() {
		all = append(all, layerproto.ReadArithmetic(l.GetArithmetic()))
	}
	return all
}

// SessionList has the sessions of a cluster.
type SessionList struct {
	Sessions []SessionState // by id
	Caches   []Cache
	Silent   []SilentWorker // by name
}

// SilentWorker is a worker that did not answer. What it holds is not listed.
type SilentWorker struct {
	Worker  string // its name
	Address string
	Error   string // why it does not answer, in one line
}

// Cache is a worker's cache of keys and values. A field that the worker does not report is nil.
type Cache struct {
	Worker           string      // its name
	Sessions         uint64      // held
	UsedBytes        uint64      // of pages in use by sessions and prefixes
	FreeBytes        uint64      // of pages that are mapped and free
	BudgetBytes      uint64      // for memory
	RoomBytes        *uint64     // that pages and their rows can take before anything is dropped
	RowBytes         *uint64     // that rows take beside the pages
	SessionBytes     *uint64     // that sessions themselves take
	Pages            []PageState // by their size, ascending
	PrefixBytes      uint64      // of pages that only prefixes hold
	PrefixAsked      uint64      // positions asked for in prefixes since the start
	PrefixHits       uint64      // of these, positions that were there
	PrefixSavedBytes uint64      // of keys and values that need not be sent for them
	Evicted          uint64      // sessions dropped for want of room or use
	QueuedSteps      uint64      // that wait
	QueuedTokens     uint64      // query tokens of these
	Lanes            uint64      // that are open
}

// PageState is a worker's pages of one size.
type PageState struct {
	PageBytes uint64 // of one page
	Used      uint64 // pages in use
	Free      uint64 // pages of this size that can be taken before anything is dropped; sizes share that room
}

func newCaches(messages []*headwaterv1.CacheState) []Cache {
	caches := make([]Cache, len(messages))
	for i, m := range messages {
		c := Cache{
			Worker: m.GetWorker(), Sessions: m.GetSessions(), UsedBytes: m.GetUsedBytes(), FreeBytes: m.GetFreeBytes(), BudgetBytes: m.GetBudgetBytes(),
			RoomBytes: m.RoomBytes, RowBytes: m.RowBytes, SessionBytes: m.SessionBytes, PrefixBytes: m.GetPrefixBytes(), PrefixAsked: m.GetPrefixAsked(),
			PrefixHits: m.GetPrefixHits(), PrefixSavedBytes: m.GetPrefixSavedBytes(), Evicted: m.GetEvicted(), QueuedSteps: m.GetQueuedSteps(),
			QueuedTokens: m.GetQueuedTokens(), Lanes: m.GetLanes(),
		}
		for _, p := range m.GetPages() {
			c.Pages = append(c.Pages, PageState{p.GetPageBytes(), p.GetUsed(), p.GetFree()})
		}
		caches[i] = c
	}
	return caches
}
