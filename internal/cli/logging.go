package cli

import (
	"log/slog"
	"time"

	"github.com/lmittmann/tint"
)

// logger makes the program's logger, on stderr.
func (a *app) logger() *slog.Logger {
	var level slog.Level
	// The flag takes only names that slog knows.
	_ = level.UnmarshalText([]byte(a.global.logLevel))
	if a.global.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(a.Err, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(tint.NewTextHandler(a.Err, &tint.Options{Level: level, TimeFormat: time.TimeOnly, NoColor: !terminal(a.Err)}))
}
