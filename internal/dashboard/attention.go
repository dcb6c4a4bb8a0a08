package dashboard

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
)

// Attention is where one query token looks: each query head of a group, over the same keys and values.
type Attention struct {
	Position  int64 `json:"position"`   // of the query
	FirstHead int   `json:"first_head"` // of the group
	Start     int64 `json:"start"`      // first position that has a weight here
	// By head: the weights of the positions from Start on, of all before these together, and of the head's sink, in ten-thousandths.
	Weights [][]uint16 `json:"weights"`
	Before  []uint16   `json:"before"`
	Sink    []uint16   `json:"sink,omitempty"`
	Token   string     `json:"token"`  // at Position, "" if it is not known
	Tokens  []string   `json:"tokens"` // from Start on, as far as they are known
}

// Parts makes a weight of 0 to 1 an integer of ten-thousandths.
func Parts(weight float64) uint16 { return uint16(min(max(weight, 0), 1)*10_000 + 0.5) }

// Problem is one attention of a job.
type Problem struct {
	Prefix    string `json:"prefix"`
	Layer     int    `json:"layer"`
	Groups    int    `json:"groups"`
	Heads     int    `json:"heads"`
	From      int64  `json:"from"` // position of the first query
	Queries   int    `json:"queries"`
	Positions int    `json:"positions"` // that queries may see
}

// Look says what attention is asked for.
type Look struct {
	Session      string // or
	Job, Problem string
	Layer, Group int
	Query        int64 // position of a job's query
	Positions    int   // weights are wanted for at most so many, the newest
}

// readLook reads what a request asks for. What is not there is 0.
func readLook(r *http.Request) (Look, error) {
	q := r.URL.Query()
	l := Look{Session: q.Get("session"), Job: q.Get("job"), Problem: q.Get("problem")}
	for name, to := range map[string]*int{"layer": &l.Layer, "group": &l.Group, "positions": &l.Positions} {
		n, err := strconv.ParseUint("0"+q.Get(name), 10, 31)
		if err != nil {
			return l, err
		}
		*to = int(n)
	}
	var err error
	if q.Has("query") {
		l.Query, err = strconv.ParseInt(q.Get("query"), 10, 64)
	}
	return l, err
}

// watchAttention sends where the queries of a session look, until the viewer leaves.
func (d *Dashboard) watchAttention(w http.ResponseWriter, r *http.Request) {
	look, err := readLook(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := d.allowed(r.Context(), visiting(r).reads, "session", look.Session); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	stream := newStream(w)
	if stream.send([]byte(": watching\n\n")) != nil {
		return
	}
	err = d.cluster.WatchAttention(r.Context(), look, func(a *Attention) error {
		sent, err := event("", a)
		if err == nil {
			err = stream.send(sent)
		}
		return err
	})
	if err == nil || r.Context().Err() != nil {
		return
	}
	if failed, err := event("failed", map[string]string{"error": err.Error()}); err == nil {
		_ = stream.send(failed) // Who has left needs no reason.
	}
}

// jobAttention answers with where a query of a job looks.
func (d *Dashboard) jobAttention(w http.ResponseWriter, r *http.Request) {
	look, err := readLook(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer(w, r, func(ctx context.Context) (any, error) {
		if err := d.allowed(ctx, visiting(r).reads, "job", look.Job); err != nil {
			return nil, err
		}
		return d.cluster.JobAttention(ctx, look)
	})
}

// jobProblems answers with the problems of a job.
func (d *Dashboard) jobProblems(w http.ResponseWriter, r *http.Request) {
	job := r.URL.Query().Get("job")
	answer(w, r, func(ctx context.Context) (any, error) {
		if err := d.allowed(ctx, visiting(r).reads, "job", job); err != nil {
			return nil, err
		}
		return d.cluster.JobProblems(ctx, job)
	})
}

// answer answers with a value as JSON.
func answer(w http.ResponseWriter, r *http.Request, of func(context.Context) (any, error)) {
	value, err := of(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_ = json.NewEncoder(w).Encode(value) // Who has left needs no answer.
}
