package membership

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	// saidAgain is how long a warning of one kind is not repeated. Meanwhile it is a debug record.
	saidAgain = 5 * time.Minute
	// maxKinds bounds the kinds of warnings that are remembered.
	maxKinds = 256
)

// logWriter turns memberlist's lines ("[WARN] memberlist: text") into records. What memberlist calls an error is mostly a
// lost packet, which it copes with: such a line becomes a warning, once for its kind and a while. Some become debug
// records: patrol tells better that UDP is blocked and that another process is at an address; NotifyAlive tells whose
// announcement is not believed; and each return under an old name brings the refutation of a rumor.
type logWriter struct {
	log *slog.Logger
	now func() time.Time

	mu     sync.Mutex
	closed bool
	said   map[string]time.Time // by kind: when it was last said
}

// expected begin memberlist's lines that others tell better, or that are in order.
var expected = []string{
	"Conflicting address", "Refuting", "Was able to connect to", "Got ping for unexpected node", "ignoring alive message",
	"Failed fallback TCP ping", "failed to join",
}

// close ends the writing: memberlist's goroutines may outlive its Shutdown by a moment.
func (w *logWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
}

// Write takes one line. It never fails.
func (w *logWriter) Write(line []byte) (int, error) {
	text, warns := string(bytes.TrimSpace(line)), false
	if rest, ok := strings.CutPrefix(text, "["); ok {
		if name, message, ok := strings.Cut(rest, "] "); ok {
			text = strings.TrimPrefix(message, "memberlist: ")
			warns = name == "ERR" || name == "WARN"
			for _, usual := range expected {
				warns = warns && !strings.HasPrefix(text, usual)
			}
		}
	}
	if !warns {
		w.write(slog.LevelDebug, text, "by", "memberlist")
		return len(line), nil
	}
	w.warn(text, "by", "memberlist")
	return len(line), nil
}

// warn logs a warning, or a debug record if one of its kind was logged a short while ago. Texts that begin alike are of one
// kind.
func (w *logWriter) warn(text string, args ...any) {
	kind := text
	if end := strings.IndexAny(text, ":'\"(0123456789"); end > 0 {
		kind = text[:end]
	}
	level := slog.LevelWarn
	w.mu.Lock()
	now := w.now()
	if last, ok := w.said[kind]; ok && now.Sub(last) < saidAgain || len(w.said) >= maxKinds {
		level = slog.LevelDebug
	} else {
		if w.said == nil {
			w.said = map[string]time.Time{}
		}
		w.said[kind] = now
	}
	w.mu.Unlock()
	w.write(level, text, args...)
}

func (w *logWriter) write(level slog.Level, text string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.log.Log(context.Background(), level, text, args...)
	}
}
