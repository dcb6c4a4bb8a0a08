package observe

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Registry is the metrics of one process, and those of the Go runtime and of the process itself.
type Registry struct {
	metrics *prometheus.Registry
}

// newRegistry makes a registry.
func newRegistry() *Registry {
	r := &Registry{metrics: prometheus.NewRegistry()}
	r.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Gatherer gives the metrics as they are now.
func (r *Registry) Gatherer() prometheus.Gatherer { return r.metrics }

// maxScrapes bounds the scrapes at once, scrapeTimeout how long one takes.
const (
	maxScrapes    = 16
	scrapeTimeout = 10 * time.Second
)

// handler serves the metrics as text.
func (r *Registry) handler() http.Handler {
	return promhttp.HandlerFor(r.metrics, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError, MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout})
}

// Emit tells a metric's value, and that of its label if it has one.
type Emit func(m *Metric, value float64, label ...string)

// Read registers metrics whose values read tells at each scrape. read may be called by several goroutines at once; it must not
// block on others.
func (r *Registry) Read(metrics []*Metric, read func(Emit)) {
	s := &sampler{read: read, descs: map[string]*prometheus.Desc{}}
	for _, m := range metrics {
		var labels []string
		if m.Label != "" {
			labels = []string{m.Label}
		}
		s.descs[m.Name] = prometheus.NewDesc(m.Name, m.Help, labels, nil)
	}
	r.metrics.MustRegister(s)
}

// sampler is a prometheus.Collector.
type sampler struct {
	read  func(Emit)
	descs map[string]*prometheus.Desc
}

// Describe implements prometheus.Collector.
func (s *sampler) Describe(out chan<- *prometheus.Desc) {
	for _, d := range s.descs {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (s *sampler) Collect(out chan<- prometheus.Metric) {
	s.read(func(m *Metric, value float64, label ...string) {
		kind := prometheus.GaugeValue
		if m.Kind == Counter {
			kind = prometheus.CounterValue
		}
		out <- prometheus.MustNewConstMetric(s.descs[m.Name], kind, value, label...)
	})
}

func (r *Registry) histogram(m *Metric) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: m.Name, Help: m.Help, Buckets: m.Buckets})
	r.metrics.MustRegister(h)
	return h
}

// histograms returns one for each value of the label.
func (r *Registry) histograms(m *Metric) []prometheus.Observer {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: m.Name, Help: m.Help, Buckets: m.Buckets}, []string{m.Label})
	r.metrics.MustRegister(v)
	all := make([]prometheus.Observer, len(m.Of))
	for i, label := range m.Of {
		all[i] = v.WithLabelValues(label)
	}
	return all
}

func (r *Registry) counter(m *Metric) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: m.Name, Help: m.Help})
	r.metrics.MustRegister(c)
	return c
}

// counters returns one for each value of the label, so that all are there from the start, and to count is no look-up.
func (r *Registry) counters(m *Metric) []prometheus.Counter {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.Name, Help: m.Help}, []string{m.Label})
	r.metrics.MustRegister(v)
	all := make([]prometheus.Counter, len(m.Of))
	for i, label := range m.Of {
		all[i] = v.WithLabelValues(label)
	}
	return all
}
