// Package dashboard is the pages that show a cluster live: which worker holds which layer and group of a session, what the workers
// do, how jobs get on, and what has happened.
//
// The way of a picture: while somebody looks, one loop asks the cluster once a second, for itself and for the map of each session
// that somebody looks at, and gives what it got to all who look, as server-sent events. The pages have no outside assets. They
// never show an old picture as a new one: if nothing comes any more they say since when.
package dashboard

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// Cluster tells what a cluster is now. Its methods may be called concurrently.
type Cluster interface {
	// Picture is the whole of it but for maps.
	Picture(ctx context.Context) (*Snapshot, error)
	// Map is who holds a session of an id in hexadecimal.
	Map(ctx context.Context, session string) (*Map, error)
	// WatchAttention calls send with where the queries of a session's group look, until send fails, ctx ends or the session does.
	WatchAttention(ctx context.Context, look Look, send func(*Attention) error) error
	// JobProblems are the problems of a job that has not ended, JobAttention is where one query of such a job looks.
	JobProblems(ctx context.Context, job string) ([]Problem, error)
	JobAttention(ctx context.Context, look Look) (*Attention, error)
}

const (
	// every is how often a picture is taken while somebody looks, or each restTimes as long as one takes, if that is more.
	every     = time.Second
	restTimes = 4
	// maxViewers bounds who look at once, maxMaps the sessions whose maps they look at.
	maxViewers = 512
	maxMaps    = 32
	// writeTimeout is how long a viewer may take to read a picture.
	writeTimeout = 10 * time.Second
)

// Dashboard serves the pages and their events.
type Dashboard struct {
	cluster Cluster
	log     *slog.Logger
	mux     *http.ServeMux

	mu      sync.Mutex // guards what follows
	viewers map[*viewer]struct{}
	stop    context.CancelFunc // ends the loop, nil while it does not run
	loops   sync.WaitGroup
}

// viewer is one who looks.
type viewer struct {
	session string      // whose map it looks at; "" is the one that was used last
	events  chan []byte // one element: what it is to be sent next
}

// New makes a dashboard. Close ends it.
func New(cluster Cluster, log *slog.Logger) *Dashboard {
	d := &Dashboard{cluster: cluster, log: log, mux: http.NewServeMux(), viewers: map[*viewer]struct{}{}}
	d.mux.HandleFunc("GET /{$}", page("index.html"))
	for _, name := range []string{"style.css", "lib.js", "map.js", "attention.js", "app.js"} {
		d.mux.HandleFunc("GET /"+name, page(name))
	}
	d.mux.HandleFunc("GET /events", d.events)
	d.mux.HandleFunc("GET /attention", d.watchAttention)
	d.mux.HandleFunc("GET /job/problems", d.jobProblems)
	d.mux.HandleFunc("GET /job/attention", d.jobAttention)
	return d
}

// ServeHTTP implements http.Handler.
func (d *Dashboard) ServeHTTP(w http.ResponseWriter, r *http.Request) { d.mux.ServeHTTP(w, r) }

// Close waits for the loop, which ends with the last viewer.
func (d *Dashboard) Close() { d.loops.Wait() }

// events sends pictures until the viewer leaves.
func (d *Dashboard) events(w http.ResponseWriter, r *http.Request) {
	v := &viewer{session: r.URL.Query().Get("session"), events: make(chan []byte, 1)}
	if err := d.enter(v); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer d.leave(v)
	stream := newStream(w)
	for {
		select {
		case <-r.Context().Done():
			return
		case event := <-v.events:
			if stream.send(event) != nil {
				return
			}
		}
	}
}

// stream is the server's end of server-sent events.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func newStream(w http.ResponseWriter) stream {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	return stream{w, http.NewResponseController(w)}
}

// send writes whole events.
func (s stream) send(events []byte) error {
	if err := s.control.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if _, err := s.w.Write(events); err != nil {
		return err
	}
	return s.control.Flush()
}

// event is a value as an event of a kind; "" is a message.
func event(kind string, value any) ([]byte, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if kind != "" {
		fmt.Fprintf(&b, "event: %s\n", kind)
	}
	fmt.Fprintf(&b, "data: %s\n\n", text)
	return b.Bytes(), nil
}

func (d *Dashboard) enter(v *viewer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.viewers) >= maxViewers {
		return fmt.Errorf("%d look at the dashboard, the most that may", maxViewers)
	}
	d.viewers[v] = struct{}{}
	if d.stop == nil {
		ctx, cancel := context.WithCancel(context.Background())
		d.stop = cancel
		d.loops.Go(func() { d.loop(ctx) })
	}
	return nil
}

func (d *Dashboard) leave(v *viewer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.viewers, v)
	if len(d.viewers) == 0 {
		d.stop()
		d.stop = nil
	}
}

// looking returns the viewers, by the session that they look at.
func (d *Dashboard) looking() map[string][]*viewer {
	d.mu.Lock()
	defer d.mu.Unlock()
	by := map[string][]*viewer{}
	for v := range d.viewers {
		by[v.session] = append(by[v.session], v)
	}
	return by
}

func (d *Dashboard) loop(ctx context.Context) {
	for {
		began := time.Now()
		if err := d.show(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("the dashboard has no picture", "error", err)
		}
		rest := time.NewTimer(max(every-time.Since(began), restTimes*time.Since(began)))
		select {
		case <-rest.C:
		case <-ctx.Done():
			rest.Stop()
			return
		}
	}
}

// show sends all viewers the cluster as it is. Where it is not known it says why.
func (d *Dashboard) show(ctx context.Context) error {
	s, failed := d.cluster.Picture(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if failed != nil {
		s = &Snapshot{At: time.Now(), Error: failed.Error()}
	}
	picture, err := event("", s)
	if err != nil {
		return err
	}
	maps := 0
	for session, viewers := range d.looking() {
		if session == "" {
			session = lastUsed(s.Sessions)
		}
		events := picture
		if session != "" && failed == nil {
			m := &Map{Session: session, Error: fmt.Sprintf("%d maps are looked at, the most that may be", maxMaps)}
			if maps++; maps <= maxMaps {
				if m, err = d.cluster.Map(ctx, session); err != nil {
					m = &Map{Session: session, Error: err.Error()}
				}
			}
			drawn, err := event("map", m)
			if err != nil {
				return err
			}
			events = bytes.Join([][]byte{picture, drawn}, nil)
		}
		for _, v := range viewers {
			select {
			case <-v.events: // What was not read is old.
			default:
			}
			v.events <- events
		}
	}
	return failed
}

// lastUsed is the session that was used last, "" if there is none.
func lastUsed(all []Session) (id string) {
	var at time.Time
	for _, s := range all {
		if id == "" || s.Used.After(at) {
			id, at = s.ID, s.Used
		}
	}
	return id
}
