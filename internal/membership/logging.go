package membership

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
)

// logWriter turns memberlist's lines ("[WARN] memberlist: text") into records. What memberlist calls an error is mostly a
// lost packet, which it copes with: such a line becomes a warning. Two become debug records: one about a conflicting name,
// which NotifyConflict tells better, and the refutation of a rumor, which each return under an old name brings.
type logWriter struct {
	log    *slog.Logger
	closed atomic.Bool
}

// close ends the writing: memberlist's goroutines may outlive its Shutdown by a moment.
func (w *logWriter) close() { w.closed.Store(true) }

// Write takes one line. It never fails.
func (w *logWriter) Write(line []byte) (int, error) {
	if w.closed.Load() {
		return len(line), nil
	}
	text, level := string(bytes.TrimSpace(line)), slog.LevelDebug
	if rest, ok := strings.CutPrefix(text, "["); ok {
		if name, message, ok := strings.Cut(rest, "] "); ok {
			text = strings.TrimPrefix(message, "memberlist: ")
			usual := strings.HasPrefix(text, "Conflicting address") || strings.HasPrefix(text, "Refuting")
			if (name == "ERR" || name == "WARN") && !usual {
				level = slog.LevelWarn
			}
		}
	}
	w.log.Log(context.Background(), level, text, "by", "memberlist")
	return len(line), nil
}
