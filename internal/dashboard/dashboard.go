// Package dashboard is the pages that show a cluster live: which worker holds which layer and group of a session, what the workers
// do, how jobs get on, and what has happened.
//
// The way of a picture: while somebody looks, one loop asks the cluster once a second, for itself and for the map of each session
// that somebody looks at, and gives what it got to all who look, as server-sent events. The pages have no outside assets. They
// never show an old picture as a new one: if nothing comes any more they say since when.
package dashboard

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
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
	// CancelJob and DropSession end a job and a session.
	CancelJob(ctx context.Context, job string) error
	DropSession(ctx context.Context, session string) error
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
	open    bool // there are no logins
	mux     *http.ServeMux

	mu      sync.Mutex // guards what follows
	viewers map[*viewer]struct{}
	latest  map[view][]byte    // what was sent last, for who comes
	stop    context.CancelFunc // ends the loop, nil while it does not run
	poke    chan struct{}      // one element: somebody has come who sees what nobody else does
	loops   sync.WaitGroup
}

// viewer is one who looks.
type viewer struct {
	user    *User
	session string      // whose map it looks at; "" is the one that was used last
	events  chan []byte // one element: what it is to be sent next
}

// Access says whom a dashboard is for.
type Access struct {
	Logins Logins // who has a login; nil: who is on this machine
	Secure bool   // whether the dashboard is served by TLS
	Failed func() // is called for each login that failed, unless nil
	// Shown says which admin has shown a certificate with a request; nil where nobody shows any.
	Shown func(*http.Request) (name string, ok bool)
}

// New makes a dashboard. Close ends it.
func New(cluster Cluster, access Access, log *slog.Logger) *Dashboard {
	d := &Dashboard{cluster: cluster, log: log, open: access.Logins == nil && access.Shown == nil, mux: http.NewServeMux(), viewers: map[*viewer]struct{}{}, poke: make(chan struct{}, 1)}
	in := newDoors(access, log)
	d.mux.HandleFunc("GET /{$}", in.inside(page("index.html")))
	d.mux.HandleFunc("GET /login", page("login.html"))
	d.mux.HandleFunc("POST /login", in.login)
	d.mux.HandleFunc("POST /logout", in.changing(viewers, in.logout))
	d.mux.HandleFunc("GET /me", in.inside(in.me))
	for _, name := range []string{"style.css", "lib.js", "map.js", "attention.js", "app.js"} {
		d.mux.HandleFunc("GET /"+name, page(name))
	}
	d.mux.HandleFunc("GET /events", in.inside(d.events))
	d.mux.HandleFunc("GET /attention", in.inside(d.watchAttention))
	d.mux.HandleFunc("GET /job/problems", in.inside(d.jobProblems))
	d.mux.HandleFunc("GET /job/attention", in.inside(d.jobAttention))
	d.mux.HandleFunc("POST /job/cancel", in.changing(admins, d.end("job", d.cluster.CancelJob)))
	d.mux.HandleFunc("POST /session/drop", in.changing(admins, d.end("session", d.cluster.DropSession)))
	return d
}

// ServeHTTP implements http.Handler. What changes something comes from no other site's page.
func (d *Dashboard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	http.NewCrossOriginProtection().Handler(d.mux).ServeHTTP(w, r)
}

// end ends the job or session that a request names.
func (d *Dashboard) end(what string, do func(context.Context, string) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, user := r.URL.Query().Get("id"), &visiting(r).User
		err := d.allowed(r.Context(), user.lists, what, id)
		if err == nil {
			err = do(r.Context(), id)
		}
		by := "user " + user.Name
		if d.open {
			by = "anyone" // of this machine
		}
		d.log.Warn("a user of the dashboard ends a job or session", "audit", true, "by", by, "user", user.Name, "peer", r.RemoteAddr, what, id, "error", err)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// allowed refuses a session whose tenant is not allowed. Jobs have no tenants: they are for users who are no tenant's.
func (d *Dashboard) allowed(ctx context.Context, tenant func(string) bool, what, id string) error {
	if tenant(everyTenant) {
		return nil
	}
	if what == "job" {
		return errors.New("jobs have no tenant: they are shown to those who log in as none")
	}
	m, err := d.cluster.Map(ctx, id)
	if err == nil && !tenant(m.Tenant) {
		err = fmt.Errorf("session %s is another tenant's, or its data is shown to its tenant alone", id)
	}
	return err
}

// everyTenant is no tenant's name, which only users have a right to who are bound to none.
const everyTenant = "\x00"

// Close waits for the loop, which ends with the last viewer.
func (d *Dashboard) Close() { d.loops.Wait() }

// events sends pictures until the viewer leaves.
func (d *Dashboard) events(w http.ResponseWriter, r *http.Request) {
	v := &viewer{user: &visiting(r).User, session: r.URL.Query().Get("session"), events: make(chan []byte, 1)}
	if err := d.enter(v); err != nil {
		w.Header().Set(retryAfter, "10")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer d.leave(v)
	stream := newStream(w)
	if stream.send([]byte(": looking\n\n")) != nil {
		return
	}
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
		return fmt.Errorf("%d people look at the dashboard, the most that are allowed", maxViewers)
	}
	d.viewers[v] = struct{}{}
	if last := d.latest[v.view()]; last != nil {
		v.events <- last
	} else {
		select {
		case d.poke <- struct{}{}:
		default:
		}
	}
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
		d.stop, d.latest = nil, nil
	}
}

// view is what viewers see alike.
type view struct {
	session string
	bound   bool // to a tenant's sessions
	tenant  string
}

// view is what the viewer sees.
func (v *viewer) view() view {
	one := view{session: v.session}
	if !v.user.Every && v.user.Tenant != nil {
		one.bound, one.tenant = true, *v.user.Tenant
	}
	return one
}

// looking returns what the viewers see.
func (d *Dashboard) looking() map[view]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := map[view]bool{}
	for v := range d.viewers {
		all[v.view()] = true
	}
	return all
}

func (d *Dashboard) loop(ctx context.Context) {
	for {
		select {
		case <-d.poke: // All who have come until now are shown what comes next.
		default:
		}
		began := time.Now()
		if err := d.show(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("the dashboard has no picture", "error", err)
		}
		took := time.Since(began)
		rest := time.NewTimer(max(every-took, restTimes*took))
		select {
		case <-rest.C:
		case <-d.poke:
			rest.Stop()
		case <-ctx.Done():
			rest.Stop()
			return
		}
	}
}

// show sends all viewers the cluster as it is. Where it is not known it says why.
func (d *Dashboard) show(ctx context.Context) error {
	var err error
	s, failed := d.cluster.Picture(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if failed != nil {
		s = &Snapshot{At: time.Now(), Error: failed.Error()}
	}
	maps, latest := map[string]*Map{}, map[view][]byte{}
	for of := range d.looking() {
		if latest[of], err = d.draw(ctx, s, of, maps); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err() // The next loop has others.
	}
	d.latest = latest
	for v := range d.viewers {
		events := latest[v.view()]
		if events == nil {
			continue // It has come since, and has poked.
		}
		select {
		case <-v.events: // What was not read is old.
		default:
		}
		v.events <- events
	}
	return failed
}

// draw makes the events of a view, and draws its map if that has not been drawn for another.
func (d *Dashboard) draw(ctx context.Context, s *Snapshot, of view, maps map[string]*Map) ([]byte, error) {
	seen := *s
	if of.bound {
		seen.Jobs, seen.JobsLeft = []Job{}, 0
		seen.Sessions = slices.DeleteFunc(slices.Clone(s.Sessions), func(one Session) bool { return one.Tenant != of.tenant })
	}
	picture, err := event("", &seen)
	session := cmp.Or(of.session, lastUsed(seen.Sessions))
	if err != nil || session == "" || s.Error != "" {
		return picture, err
	}
	m, drawn := maps[session]
	if !drawn {
		m = &Map{Session: session, Error: fmt.Sprintf("%d maps are looked at, the most that may be", maxMaps)}
		if len(maps) < maxMaps {
			if m, err = d.cluster.Map(ctx, session); err != nil {
				m = &Map{Session: session, Error: err.Error()}
			}
		}
		maps[session] = m
	}
	if of.bound && m.Error == "" && m.Tenant != of.tenant {
		m = &Map{Session: session, Error: "This session is another tenant's."}
	}
	mapped, err := event("map", m)
	return append(picture, mapped...), err
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
