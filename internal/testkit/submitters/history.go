package submitters

import (
	"fmt"
	"io"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"

	"headwater.example/client"
)

// job is a submission and what was said of it.
type job struct {
	file *file
	key  string // "" is none

	id        string // once it is acknowledged
	unsure    bool   // of a call no outcome came: it may be there
	cancelled bool   // that was asked for, at least
	ended     client.JobState
	going     bool // it is being deleted, at least
	gone      bool // it was deleted
}

// history is what was said to the clients, and what was done to the files of jobs.
type history struct {
	mu   sync.Mutex // guards all, and the jobs
	jobs []*job
	// leftOut are the jobs whose record was changed on the disk, broken those whose file or result was, by id.
	leftOut, broken map[string]bool
}

// note changes what is known under the lock.
func (h *history) note(do func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	do()
}

func (h *history) begin(j *job)       { h.note(func() { h.jobs = append(h.jobs, j) }) }
func (h *history) unknown(j *job)     { h.note(func() { j.unsure = true }) }
func (h *history) cancelling(j *job)  { h.note(func() { j.cancelled = true }) }
func (h *history) deleting(j *job)    { h.note(func() { j.going = true }) }
func (h *history) kept(j *job)        { h.note(func() { j.going = false }) }
func (h *history) deleted(j *job)     { h.note(func() { j.gone = true }) }
func (h *history) leaveOut(id string) { h.mark(&h.leftOut, id) }
func (h *history) damage(id string)   { h.mark(&h.broken, id) }

func (h *history) acknowledge(j *job, id string) { h.note(func() { j.id = id }) }

func (h *history) mark(set *map[string]bool, id string) {
	h.note(func() {
		if *set == nil {
			*set = map[string]bool{}
		}
		(*set)[id] = true
	})
}

// mayBeMissing says whether a job may be one that the coordinator does not know.
func (h *history) mayBeMissing(j *job) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return j.going || h.leftOut[j.id]
}

// check holds a job to what was said of it before.
func (h *history) check(j *job, got *client.Job) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	wrong := func(why string) error {
		return fmt.Errorf("job %s (key %q) is %s: %s; it was %q before; %s", j.id, j.key, got.State, why, j.ended, got.Error)
	}
	switch {
	case got.ID != j.id || got.Key != j.key:
		return wrong(fmt.Sprintf("it has the id %s and the key %q", got.ID, got.Key))
	case got.Over() && got.Ended.Before(got.Started):
		return wrong(fmt.Sprintf("it began at %v and ended at %v", got.Started, got.Ended))
	case j.gone:
		return wrong("it was deleted")
	case got.State == client.JobUploading:
		return wrong("it was acknowledged")
	case j.ended != "" && got.State != j.ended && !(got.State == client.JobFailed && h.broken[j.id]):
		return wrong("it had ended")
	case got.State == client.JobCancelled && !j.cancelled:
		return wrong("nobody has cancelled it")
	case got.State == client.JobFailed && (!h.broken[j.id] || got.ErrorCode != codes.DataLoss):
		return wrong(fmt.Sprintf("nothing of it was changed on the disk, or it fails for another reason: %v", got.ErrorCode))
	case got.State == client.JobSucceeded && got.ResultSHA256 != j.file.result:
		return wrong(fmt.Sprintf("its result has the hash %s, and had %s", got.ResultSHA256, j.file.result))
	}
	if got.Over() {
		j.ended = got.State
	}
	return nil
}

// failed returns the error of a result that could not be had, unless it was changed on the disk.
func (h *history) failed(j *job, err error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken[j.id] {
		return nil
	}
	return fmt.Errorf("job %s (key %q) has succeeded, and nothing of it was changed on the disk: %w", j.id, j.key, err)
}

// log keeps what the processes have said since the coordinator was started last, and passes it on.
type log struct {
	to io.Writer

	mu   sync.Mutex // guards text
	text strings.Builder
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	if l.to != nil {
		return l.to.Write(p)
	}
	return len(p), nil
}

func (l *log) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Reset()
}

// lines are those that contain a text.
func (l *log) lines(text string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, text) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}
