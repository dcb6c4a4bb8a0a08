package observe

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Work is a trade of a worker, an index of the label "work".
type Work int

// The trades.
const (
	Session Work = iota
	Job
)

// Codec is an index of the label "codec".
type Codec int

// CodecOf returns the codec of a name, "raw", "exact", "bf16", "f16" or "int8"; another is counted as raw.
func CodecOf(name string) Codec { return Codec(max(slices.Index(codecs, name), 0)) }

// Reason is an index of Reasons.
type Reason int

// ReasonOf returns the reason of a name of Reasons; another is "other".
func ReasonOf(name string) Reason {
	if i := slices.Index(Reasons, name); i >= 0 {
		return Reason(i)
	}
	return Reason(len(Reasons) - 1)
}

// Worker counts what a worker does. Its methods may be called by any goroutine, take no memory, and do nothing on nil.
type Worker struct {
	*Registry
	duration, queue prometheus.Histogram
	kernel          []prometheus.Observer
	read            []prometheus.Counter
	refusals        []prometheus.Counter
	tokens          []prometheus.Counter
	raw, wire       []prometheus.Counter
	layers          [maxLayers]layerLoad
}

// maxLayers bounds the layers that are counted apart.
const maxLayers = 1 << 10

type layerLoad struct{ steps, nanos atomic.Uint64 }

// NewWorker makes the metrics of a worker.
func NewWorker() *Worker {
	r := newRegistry()
	return &Worker{
		Registry: r, duration: r.histogram(&stepDuration), queue: r.histogram(&stepQueue), kernel: r.histograms(&kernelDuration),
		read: r.counters(&kernelRead), refusals: r.counters(&stepRefusals), tokens: r.counters(&stepTokens),
		raw: r.counters(&contextRaw), wire: r.counters(&contextWire),
	}
}

// Step counts a step that was answered after so long, of which it waited for queue.
func (w *Worker) Step(took, queue time.Duration, appended, attended int) {
	if w == nil {
		return
	}
	w.duration.Observe(took.Seconds())
	w.queue.Observe(queue.Seconds())
	w.tokens[0].Add(float64(appended))
	w.tokens[1].Add(float64(attended))
}

// Refused counts a step that was refused.
func (w *Worker) Refused(reason Reason) {
	if w != nil {
		w.refusals[reason].Inc()
	}
}

// Kernel counts a kernel that took so long over so many bytes of keys and values.
func (w *Worker) Kernel(work Work, took time.Duration, bytes int64) {
	if w == nil {
		return
	}
	w.kernel[work].Observe(took.Seconds())
	w.read[work].Add(float64(bytes))
}

// Layer counts a step's kernel for its layer.
func (w *Worker) Layer(layer uint32, took time.Duration) {
	if w == nil || layer >= maxLayers {
		return
	}
	w.layers[layer].steps.Add(1)
	w.layers[layer].nanos.Add(uint64(took))
}

// Load is what has been counted so far: the same numbers as the metrics.
type Load struct {
	ReadBytes, Steps uint64
	Queue            time.Duration
	Layers           []LayerLoad // that have had a step, ascending
}

// LayerLoad is a layer's part.
type LayerLoad struct {
	Layer  uint32
	Steps  uint64
	Kernel time.Duration
}

// Load returns what has been counted so far.
func (w *Worker) Load() (l Load) {
	for _, c := range w.read {
		l.ReadBytes += uint64(told(c).GetCounter().GetValue())
	}
	queue := told(w.queue).GetHistogram()
	l.Steps, l.Queue = queue.GetSampleCount(), time.Duration(queue.GetSampleSum()*1e9)
	for i := range w.layers {
		if n := w.layers[i].steps.Load(); n > 0 {
			l.Layers = append(l.Layers, LayerLoad{uint32(i), n, time.Duration(w.layers[i].nanos.Load())})
		}
	}
	return l
}

// told is a metric as it is served.
func told(m prometheus.Metric) *dto.Metric {
	var out dto.Metric
	_ = m.Write(&out) // Counters and histograms always write.
	return &out
}

// Context counts a context of raw bytes that goes out in so many.
func (w *Worker) Context(codec Codec, raw, wire int) {
	if w == nil {
		return
	}
	w.raw[codec].Add(float64(raw))
	w.wire[codec].Add(float64(wire))
}

// Coordinator counts what a coordinator does, as Worker does, and keeps events. One that Quiet made counts nothing.
type Coordinator struct {
	*Registry
	duration, wire    prometheus.Histogram
	refusals          []prometheus.Counter
	jobs              []prometheus.Observer
	jobWire           prometheus.Histogram
	workers, sessions prometheus.Counter
	logins            prometheus.Counter
	happened          map[EventKind]prometheus.Counter // of the kinds that a metric counts
	events            events
}

// Quiet makes what keeps a coordinator's events and counts nothing.
func Quiet() *Coordinator { return &Coordinator{} }

// Counts reports whether anything is counted.
func (c *Coordinator) Counts() bool { return c != nil && c.Registry != nil }

// NewCoordinator makes the metrics of a coordinator.
func NewCoordinator() *Coordinator {
	r := newRegistry()
	return &Coordinator{
		Registry: r, duration: r.histogram(&relayDuration), wire: r.histogram(&relayWire), refusals: r.counters(&relayRefusals),
		jobs: r.histograms(&jobDuration), jobWire: r.histogram(&jobWire),
		workers: r.counter(&workersLost), sessions: r.counter(&sessionsLost), logins: r.counter(&loginsFailed),
		happened: map[EventKind]prometheus.Counter{
			JobLost: r.counter(&jobLost), SessionsMoved: r.counter(&sessionsMoved), CopyFailed: r.counter(&copiesFailed),
		},
	}
}

// Step counts a relayed step that was answered after so long, of which the slowest worker waited and computed for worker.
func (c *Coordinator) Step(took, worker time.Duration) {
	if !c.Counts() {
		return
	}
	c.duration.Observe(took.Seconds())
	c.wire.Observe(max(took-worker, 0).Seconds())
}

// Refused counts a relayed step that was refused.
func (c *Coordinator) Refused(reason Reason) {
	if c.Counts() {
		c.refusals[reason].Inc()
	}
}

// JobEnded counts a job that ended in a state of JobStates after it had run for so long.
func (c *Coordinator) JobEnded(state string, took time.Duration) {
	if i := slices.Index(jobEnds, state); c.Counts() && i >= 0 {
		c.jobs[i].Observe(took.Seconds())
	}
}

// JobWire counts what an answer to a job's query spent on its way.
func (c *Coordinator) JobWire(took time.Duration) {
	if c.Counts() {
		c.jobWire.Observe(max(took, 0).Seconds())
	}
}
