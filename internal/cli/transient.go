package cli

import (
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// transient shows what is being done in one line of a terminal, which it takes away again; nothing elsewhere, or when quiet.
// It is used by one goroutine.
type transient struct {
	out     io.Writer // nil: nothing is shown
	width   int
	shown   bool
	printed time.Time
}

const (
	// redrawEvery bounds how often the line changes, so that showing it takes no time from what is measured.
	redrawEvery = 100 * time.Millisecond
	eraseLine   = "\r\x1b[2K"
)

func (a *app) transient(quiet bool) *transient {
	if quiet || !terminal(a.Err) || os.Getenv("TERM") == "dumb" {
		return &transient{}
	}
	t := &transient{out: a.Err, width: 80}
	if f, ok := a.Err.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			t.width = width
		}
	}
	return t
}

// show replaces the line.
func (t *transient) show(text string) {
	if t.out == nil || t.shown && time.Since(t.printed) < redrawEvery {
		return
	}
	t.shown, t.printed = true, time.Now()
	_, _ = io.WriteString(t.out, eraseLine+shorten(text, t.width-1)) // what can not be shown is no reason to stop
}

// end takes the line away.
func (t *transient) end() {
	if t.shown {
		t.shown = false
		_, _ = io.WriteString(t.out, eraseLine)
	}
}
