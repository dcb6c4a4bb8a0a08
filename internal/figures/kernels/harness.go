package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"time"

	"headwater.example/attention"
	"headwater.example/internal/figures/limits"
)

// limit names what a round is held against.
type limit string

const (
	read1   limit = "read_1"   // bytes a second, one core
	read2   limit = "read_2"   // bytes a second, two cores
	write1  limit = "write_1"  // bytes a second, one core, past the caches
	peak    limit = "fma"      // flops a second, one core, the widest instruction set
	peak2   limit = "fma_avx2" // flops a second, one core, 256 bits
	matrix  limit = "matrix"   // flops a second, one core, the kernel's matrix unit if it has one, or else fma
	asChild       = "HEADWATER_FIGURES_CHILD"
)

// work is one thing to measure, over and over.
type work struct {
	row
	// pass does it once; prepare, where there is one, goes before each pass and is not measured.
	pass    func(ctx context.Context) error
	prepare func() error
	// value is the row's figure; nil for those that are only in tables.
	value func(w *work, r *round) float64
}

// round is what one round measured.
type round struct {
	limits  map[limit]float64
	seconds map[string]float64 // a pass of each work, by its name
}

// row is one work and what was measured of it.
type row struct {
	// Name of the figure, or of the table's row.
	Name string `json:"name"`
	// Test says what was done, DType how keys and values are stored.
	Test     string `json:"test"`
	DType    string `json:"dtype"`
	Heads    int    `json:"n_heads,omitempty"`
	Groups   int    `json:"n_kv_heads,omitempty"`
	HeadDim  int    `json:"head_dim,omitempty"`
	Threads  int    `json:"threads"`
	Kernel   string `json:"kernel"`
	Intended string `json:"intended_kernel,omitempty"` // that which was asked for, if one was
	// Bytes of K and V (or of x, w and y) and Flops of a pass; Set, what the passes go through.
	Bytes float64 `json:"bytes"`
	Flops float64 `json:"flops"`
	Set   int64   `json:"set_bytes"`
	// Cached: the bytes come from the core's own caches, and the bus is no limit.
	Cached bool `json:"cached,omitempty"`
	// Matrix: the flops are of arithmetic in tiles, and held against the matrix unit if there is one.
	Matrix bool `json:"matrix,omitempty"`
	// Writes: the bytes are written.
	Writes bool `json:"writes,omitempty"`
	// Figure: Value, the median of the samples', is a figure.
	Figure  bool     `json:"figure"`
	Value   float64  `json:"value"`
	Samples []sample `json:"samples"`
}

// sample is a row's part of one round. Share is of the bound: the least time that bus and FMA units allow / the time.
type sample struct {
	Limits  map[limit]float64 `json:"limits"`
	Seconds float64           `json:"seconds"`
	Value   float64           `json:"value,omitempty"`
	Share   float64           `json:"share"`
	Bus     float64           `json:"bus_seconds"`
	FMA     float64           `json:"fma_seconds"`
}

// stage is what is measured together, in each round one after the other, with its memory.
type stage struct {
	names  []string // of its works, so that a stage can be left out unbuilt
	limits []limit
	build  func(h *harness) (works []work, free func(), err error)
}

// report is what is kept of a run.
type report struct {
	Taken     time.Time `json:"taken"`
	Processor string    `json:"processor"`
	Cache     int64     `json:"last_level_cache_bytes"`
	Kernel    string    `json:"kernel"`
	Rounds    int       `json:"rounds"`
	Quick     bool      `json:"quick,omitempty"`
	Rows      []row     `json:"rows"`
}

type harness struct {
	report
	size   sizes
	spend  time.Duration // on one measurement
	log    io.Writer
	buffer *limits.Buffer
	isas   []limits.ISA
	tell   func(r row)
	pools  map[int]*attention.Pool // by their threads
}

// mostMemory bounds a working set, whatever the cache.
const mostMemory = 6 << 30

func newHarness(quick bool, rounds int, log io.Writer) (*harness, error) {
	h := &harness{
		report: report{
			Taken: time.Now(), Processor: processor(), Cache: lastLevelCache(), Kernel: attention.KernelName(),
			Rounds: rounds, Quick: quick,
		},
		size: fullSizes, spend: 100 * time.Millisecond, log: log, isas: limits.ISAs(), tell: func(row) {}, pools: make(map[int]*attention.Pool),
	}
	if len(h.isas) == 0 {
		return nil, errors.New("no loops that find the limits of this processor")
	}
	h.size.set = min(8*h.Cache, mostMemory)
	buffer := max(min(h.size.set, 1<<30), 2*h.Cache)
	if quick {
		h.size, h.spend, buffer = quickSizes, 0, 1
	}
	if have, ok := availableMemory(); ok && !quick && have < h.size.set+h.size.set/4+buffer {
		return nil, fmt.Errorf("a working set of %d MiB and %d MiB to find the limits do not fit %d MiB of memory",
			h.size.set>>20, buffer>>20, have>>20)
	}
	if h.size.set < 8*h.Cache && !quick {
		fmt.Fprintf(log, "figures: the working set is cut to %d MiB, less than 8 times a cache of %d MiB\n", h.size.set>>20, h.Cache>>20)
	}
	var err error
	h.buffer, err = limits.NewBuffer(buffer)
	return h, err
}

func (h *harness) close() {
	_ = h.buffer.Close()
	for _, p := range h.pools {
		p.Close()
	}
}

func (h *harness) pool(threads int) *attention.Pool {
	p := h.pools[threads]
	if p == nil {
		p = attention.NewPool(threads)
		h.pools[threads] = p
	}
	return p
}

// stages measures those that have a row that matches, in turn.
func (h *harness) stages(ctx context.Context, all []stage, only *regexp.Regexp) (rows []row, err error) {
	for _, s := range all {
		if !slices.ContainsFunc(s.names, only.MatchString) {
			continue
		}
		some, err := h.stage(ctx, s)
		if err != nil {
			return nil, err
		}
		rows = append(rows, some...)
	}
	return rows, nil
}

func (h *harness) stage(ctx context.Context, s stage) ([]row, error) {
	works, free, err := s.build(h)
	if err != nil {
		return nil, err
	}
	defer free()
	for range h.Rounds {
		r := round{limits: make(map[limit]float64), seconds: make(map[string]float64)}
		if err := h.findLimits(s.limits, r.limits); err != nil {
			return nil, err
		}
		for i := range works {
			if r.seconds[works[i].Name], err = h.time(ctx, &works[i]); err != nil {
				return nil, fmt.Errorf("%s: %w", works[i].Name, err)
			}
		}
		if err := h.findLimits(s.limits, r.limits); err != nil {
			return nil, err
		}
		for l := range r.limits {
			r.limits[l] /= 2
		}
		for i := range works {
			works[i].add(&r)
		}
	}
	rows := make([]row, len(works))
	for i := range works {
		w := &works[i]
		w.Kernel, w.Figure = h.Kernel, w.value != nil
		w.Value = w.median(func(s sample) float64 { return s.Value })
		rows[i] = w.row
		h.tell(w.row)
	}
	return rows, nil
}

// findLimits adds to each limit what it is now.
func (h *harness) findLimits(which []limit, sum map[limit]float64) error {
	for _, l := range which {
		var x float64
		var err error
		switch l {
		case read1:
			x, err = h.read(1)
		case read2:
			x, err = h.read(2)
		case write1:
			x, err = h.buffer.Write(h.isas[0], 1, h.spend)
		case peak:
			x, err = limits.FMA(h.isas[0], h.spend/4)
		case matrix:
			if attention.HasMatrixUnit() {
				x, err = limits.Matrix(h.spend / 4)
			} else {
				x, err = limits.FMA(h.isas[0], h.spend/4)
			}
		case peak2:
			x, err = limits.FMA(limits.AVX2, h.spend/4)
		}
		if err != nil {
			return err
		}
		sum[l] += x
	}
	return nil
}

// read is the best that any instruction set does.
func (h *harness) read(threads int) (best float64, err error) {
	for _, isa := range h.isas {
		x, err := h.buffer.Read(isa, threads, h.spend/time.Duration(len(h.isas)))
		if err != nil {
			return 0, err
		}
		best = max(best, x)
	}
	return best, nil
}

// time returns the median seconds of passes, at least one.
func (h *harness) time(ctx context.Context, w *work) (float64, error) {
	var took []float64
	for total := 0.0; len(took) == 0 || total < h.spend.Seconds(); {
		if w.prepare != nil {
			if err := w.prepare(); err != nil {
				return 0, err
			}
		}
		began := time.Now()
		if err := w.pass(ctx); err != nil {
			return 0, err
		}
		d := time.Since(began).Seconds()
		took = append(took, d)
		total += d
	}
	return median(took), nil
}

func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	n := len(all)
	if n == 0 {
		return 0
	}
	return (all[(n-1)/2] + all[n/2]) / 2
}

func (r *row) median(of func(sample) float64) float64 {
	var all []float64
	for _, s := range r.Samples {
		all = append(all, of(s))
	}
	return median(all)
}

// add keeps the work's part of a round.
func (w *work) add(r *round) {
	s := sample{Limits: r.limits, Seconds: r.seconds[w.Name]}
	s.Bus, s.FMA = w.bounds(r)
	s.Share = max(s.Bus, s.FMA) / s.Seconds
	if w.value != nil {
		s.Value = w.value(w, r)
	}
	w.Samples = append(w.Samples, s)
}

// bounds returns the least seconds that the bus and the FMA units allow a pass; 0 for that which is no bound.
func (w *work) bounds(r *round) (bus, fma float64) {
	switch {
	case w.Cached:
	case w.Writes:
		bus = w.Bytes / r.limits[write1]
	case w.Threads == 2:
		bus = w.Bytes / r.limits[read2]
	default:
		bus = w.Bytes / r.limits[read1]
	}
	flops := r.limits[peak]
	if w.Intended == string(limits.AVX2) {
		flops = r.limits[peak2]
	}
	if w.Matrix {
		flops = r.limits[matrix]
	}
	if w.Flops > 0 {
		fma = w.Flops / float64(w.Threads) / flops
	}
	return bus, fma
}

// The figures, each a share of a limit.
func ofBus(w *work, r *round) float64 {
	bus, _ := w.bounds(r)
	return bus / r.seconds[w.Name]
}

func ofFMA(w *work, r *round) float64 {
	_, fma := w.bounds(r)
	return fma / r.seconds[w.Name]
}

func ofLower(w *work, r *round) float64 {
	return max(ofBus(w, r), ofFMA(w, r))
}

// others measures the rows of kernels that this process does not run, each in a child process of the same binary.
func (h *harness) others(ctx context.Context, c *command) (rows []row, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for _, kernel := range []string{string(limits.AVX2)} {
		if !slices.Contains(h.isas, limits.ISA(kernel)) {
			continue // the machine is of another architecture
		}
		if !slices.ContainsFunc(childStages(kernel), func(s stage) bool { return slices.ContainsFunc(s.names, c.only.MatchString) }) {
			continue
		}
		args := []string{"-child", kernel, "-rounds", strconv.Itoa(h.Rounds), "-run", c.only.String()}
		if h.Quick {
			args = append(args, "-quick")
		}
		child := exec.CommandContext(ctx, self, args...)
		child.Env = append(os.Environ(), attention.KernelVariable+"="+kernel, asChild+"=1")
		var text, said bytes.Buffer
		child.Stdout, child.Stderr = &text, &said
		if err := child.Run(); err != nil {
			return nil, fmt.Errorf("measure kernel %s: %w: %s", kernel, err, bytes.TrimSpace(said.Bytes()))
		}
		var some []row
		if err := json.Unmarshal(text.Bytes(), &some); err != nil {
			return nil, fmt.Errorf("measure kernel %s: %w", kernel, err)
		}
		for _, r := range some {
			h.tell(r)
		}
		rows = append(rows, some...)
	}
	return rows, nil
}
