package cli

import (
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/lmittmann/tint"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// bytesKey ends the names of attributes that are numbers of bytes.
const bytesKey = "_bytes"

// logger makes the program's logger, on stderr. Each line has its date. Colours are for terminals that want them.
func (a *app) logger() *slog.Logger {
	var level slog.Level
	// The flag takes only names that slog knows.
	_ = level.UnmarshalText([]byte(a.global.logLevel))
	if a.global.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(a.Err, &slog.HandlerOptions{Level: level, ReplaceAttr: attrForPrograms}))
	}
	return slog.New(tint.NewTextHandler(a.Err, &tint.Options{Level: level, TimeFormat: time.DateTime, NoColor: !colours(a.Err), ReplaceAttr: attrForPeople}))
}

// colours tells whether a stream is a terminal that wants colours: NO_COLOR is not set, and TERM is not dumb.
func colours(stream any) bool {
	return terminal(stream) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// attrForPrograms makes attributes for programs: durations are seconds, and the name says so.
func attrForPrograms(groups []string, attr slog.Attr) slog.Attr {
	if attr.Value.Kind() == slog.KindDuration {
		return slog.Float64(attr.Key+"_seconds", attr.Value.Duration().Seconds())
	}
	return plain(groups, attr)
}

// attrForPeople makes attributes for people: bytes are MiB and GiB.
func attrForPeople(groups []string, attr slog.Attr) slog.Attr {
	if name, ok := strings.CutSuffix(attr.Key, bytesKey); ok && attr.Value.Kind() == slog.KindInt64 {
		return slog.String(name, sizeOf(attr.Value.Int64()))
	}
	return plain(groups, attr)
}

// plain leaves out an error that there is not, and names a job's state as the commands do.
func plain(_ []string, attr slog.Attr) slog.Attr {
	switch value := attr.Value.Any().(type) {
	case nil:
		return slog.Attr{}
	case headwaterv1.JobState:
		attr.Value = slog.StringValue(strings.ToLower(strings.TrimPrefix(value.String(), "JOB_STATE_")))
	}
	return attr
}
