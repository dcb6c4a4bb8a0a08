// Package dashboard is the page that shows a cluster live: which worker holds which layer and group of a session, what the workers
// do, and how jobs get on.
//
// The way of a picture: while somebody looks, one loop asks the source once a second and gives its snapshot to all who look, as
// server-sent events. The page is one file without outside assets. It never shows an old picture as a new one: if the connection
// ends it says since when.
package dashboard

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

//go:embed page.html
var page []byte

// Snapshot is a cluster at one moment. Its JSON is what the page reads.
type Snapshot struct {
	At          time.Time `json:"at"`
	Coordinator string    `json:"coordinator"`
	Version     string    `json:"version"`
	Error       string    `json:"error,omitempty"` // why nothing else is known
	Workers     []Worker  `json:"workers"`
	Sessions    []Session `json:"sessions"` // the first of them
	Jobs        []Job     `json:"jobs"`     // newest first
	Left        int       `json:"jobs_left_out"`
}

// Worker is one worker. Counters are since its start, and 0 of one that does not count.
type Worker struct {
	Name     string `json:"name"`
	Boot     string `json:"boot"`
	Error    string `json:"error,omitempty"`
	Budget   uint64 `json:"budget_bytes"`
	Used     uint64 `json:"used_bytes"` // without what is given up when room is needed
	Sessions uint64 `json:"sessions"`
	Queued   uint64 `json:"queued_steps"`
	Counts   bool   `json:"counts"`
	Bus      uint64 `json:"bus_bytes_per_second"`
	Read     uint64 `json:"read_bytes"`
	Steps    uint64 `json:"steps"`
}

// Session is one session and who holds it.
type Session struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Length  uint64    `json:"length"`
	Bytes   uint64    `json:"page_bytes"`
	Used    time.Time `json:"used"`
	Holders []Holder  `json:"holders"`
}

// Holder is what a worker holds of a session.
type Holder struct {
	Worker string     `json:"worker"`
	Layers [][]uint32 `json:"layers"` // each a layer's index and its groups
}

// Job is one job.
type Job struct {
	ID    string  `json:"id"`
	Name  string  `json:"name"`
	State string  `json:"state"`
	Phase string  `json:"phase"`
	Done  float64 `json:"done"` // 0 to 1
}

// Source tells what a cluster is now.
type Source func(context.Context) (*Snapshot, error)

const (
	// every is how often a snapshot is taken while somebody looks.
	every = time.Second
	// maxViewers bounds who look at once.
	maxViewers = 512
	// writeTimeout is how long a viewer may take to read a snapshot.
	writeTimeout = 10 * time.Second
)

// Dashboard serves the page and its events.
type Dashboard struct {
	source Source
	log    *slog.Logger

	mu      sync.Mutex // guards what follows
	viewers map[chan []byte]struct{}
	stop    context.CancelFunc // ends the loop, nil while it does not run
	loops   sync.WaitGroup
}

// New makes a dashboard. Close ends it.
func New(source Source, log *slog.Logger) *Dashboard {
	return &Dashboard{source: source, log: log, viewers: map[chan []byte]struct{}{}}
}

// Page serves the page.
func (d *Dashboard) Page(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(page) // Who has left needs no page.
}

// Events sends snapshots until the viewer leaves.
func (d *Dashboard) Events(w http.ResponseWriter, r *http.Request) {
	viewer, err := d.enter()
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer d.leave(viewer)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	control := http.NewResponseController(w)
	for {
		select {
		case <-r.Context().Done():
			return
		case event := <-viewer:
			if control.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
				return
			}
			if _, err := w.Write(event); err != nil {
				return
			}
			if control.Flush() != nil {
				return
			}
		}
	}
}

func (d *Dashboard) enter() (chan []byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.viewers) >= maxViewers {
		return nil, fmt.Errorf("%d look at the dashboard, the most that may", maxViewers)
	}
	viewer := make(chan []byte, 1)
	d.viewers[viewer] = struct{}{}
	if d.stop == nil {
		ctx, cancel := context.WithCancel(context.Background())
		d.stop = cancel
		d.loops.Go(func() { d.loop(ctx) })
	}
	return viewer, nil
}

func (d *Dashboard) leave(viewer chan []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.viewers, viewer)
	if len(d.viewers) == 0 {
		d.stop()
		d.stop = nil
	}
}

// Close waits for the loop, which ends with the last viewer.
func (d *Dashboard) Close() { d.loops.Wait() }

func (d *Dashboard) loop(ctx context.Context) {
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	for {
		event, err := d.event(ctx)
		if err != nil {
			d.log.Warn("the dashboard has no picture", "error", err)
		}
		if ctx.Err() != nil {
			return
		}
		d.mu.Lock()
		for viewer := range d.viewers {
			select {
			case <-viewer: // What was not read is old.
			default:
			}
			viewer <- event
		}
		d.mu.Unlock()
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}

// event is a snapshot as an event. Where there is none it says why.
func (d *Dashboard) event(ctx context.Context) ([]byte, error) {
	s, err := d.source(ctx)
	if err != nil {
		s = &Snapshot{At: time.Now(), Error: err.Error()}
	}
	text, encoding := json.Marshal(s)
	if encoding != nil {
		return nil, encoding
	}
	return bytes.Join([][]byte{[]byte("data: "), text, []byte("\n\n")}, nil), err
}
