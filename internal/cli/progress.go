package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/cheggaaa/pb/v3"

	"headwater.example/client"
)

// progress shows how far something is: a bar on a terminal, now and then a line elsewhere, nothing when quiet. It is used
// by one goroutine.
type progress struct {
	out      io.Writer
	terminal bool
	quiet    bool

	phase       string
	also        string // said after the numbers
	bytes       bool
	bar         *pb.ProgressBar
	done, total int64
	printed     time.Time
}

// lineEvery is how often a phase prints a line where there is no terminal.
const lineEvery = 5 * time.Second

// loading is the longest phase's name: bars begin below each other.
const loading = "loading workers"

const (
	barTemplate = `{{string . "phase"}} {{bar . }} {{counters . }} {{percent . }} {{rtime . "%s"}}`
	// alsoTemplate is of a phase that says by itself how long it takes.
	alsoTemplate = `{{string . "phase"}} {{bar . }} {{counters . }} {{percent . }}{{string . "also"}}`
)

func (a *app) progress(quiet bool) *progress {
	return &progress{out: a.Err, terminal: terminal(a.Err), quiet: quiet}
}

// show says how much of a phase is done, in bytes or in answers; total 0 is a phase without measure.
func (p *progress) show(phase string, done, total int64, bytes bool) {
	if p.quiet || phase == "" {
		return
	}
	phase = clean(phase)
	if phase != p.phase || total != p.total {
		p.end()
		p.phase, p.total, p.bytes, p.printed = phase, total, bytes, time.Now()
		if p.terminal {
			template := barTemplate
			if p.also != "" {
				template = alsoTemplate
			}
			p.bar = pb.New64(total).SetTemplateString(template).SetWriter(p.out).Set("phase", fmt.Sprintf("%-*s", len(loading), phase)).Set(pb.Bytes, bytes).Start()
		}
	}
	p.done = done
	switch {
	case p.bar != nil:
		p.bar.Set("also", p.also).SetCurrent(done)
	case !p.terminal && time.Since(p.printed) >= lineEvery:
		p.printed = time.Now()
		p.line()
	}
}

// end finishes the phase.
func (p *progress) end() {
	switch {
	case p.bar != nil:
		p.bar.Finish()
		p.bar = nil
	case p.phase != "" && !p.terminal:
		p.line()
	}
	p.phase = ""
}

func (p *progress) line() {
	switch {
	case p.total == 0:
		p.note("%s\n", p.phase)
	case p.bytes:
		p.note("%s: %s of %s%s\n", p.phase, sizeOf(p.done), sizeOf(p.total), p.also)
	default:
		p.note("%s: %d of %d\n", p.phase, p.done, p.total)
	}
}

// note prints a line of its own; that it can not be printed is no reason to stop what it tells of.
func (p *progress) note(format string, args ...any) { _ = write(p.out, format, args...) }

// job shows a job's progress as the coordinator tells it.
func (p *progress) job(job *client.Job) {
	at := job.Progress
	switch {
	case job.State == client.JobQueued:
		p.show("queued", 0, 0, false)
	case at.UnitsDone == 0 && at.LoadBytes == 0 || job.State == client.JobUploading:
	case at.UnitsDone == 0 && at.LoadBytes > 0:
		p.show(loading, int64(at.LoadedBytes), int64(at.LoadBytes), true)
	case at.Units > 0:
		if p.phase == loading {
			p.show(loading, int64(at.LoadedBytes), int64(at.LoadBytes), true)
		}
		p.show("attending", int64(at.UnitsDone), int64(at.Units), false)
	default:
		p.show(at.Phase, 0, 0, false)
	}
}
