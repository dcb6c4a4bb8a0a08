package cli

import (
	"log/slog"
	"time"

	"github.com/lmittmann/tint"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// logger makes the program's logger, on stderr.
func (a *app) logger() *slog.Logger {
	var level slog.Level
	// The flag takes only names that slog knows.
	_ = level.UnmarshalText([]byte(a.global.logLevel))
	if a.global.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(a.Err, &slog.HandlerOptions{Level: level, ReplaceAttr: plain}))
	}
	return slog.New(tint.NewTextHandler(a.Err, &tint.Options{Level: level, TimeFormat: time.TimeOnly, NoColor: !terminal(a.Err), ReplaceAttr: plain}))
}

// plain leaves out an error that there is not, and names a job's state as the commands do.
func plain(_ []string, attr slog.Attr) slog.Attr {
	switch value := attr.Value.Any().(type) {
	case nil:
		return slog.Attr{}
	case headwaterv1.JobState:
		attr.Value = slog.StringValue(stateName(value))
	}
	return attr
}
