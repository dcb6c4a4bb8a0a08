package readiness

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"headwater.example/internal/session/fanout"
)

// Service is the name under which a health server says whether its process is ready.
const Service = "ready"

// patience is how long one look may take.
const patience = 5 * time.Second

// Readiness keeps what a health server says of Service. One goroutine uses it.
//
// A process is ready for the first time when it has attended rightly and Whole has no objection. From then on it stays ready while
// it refuses or is slow, as one that is busy does; and it is not ready while it attends wrongly or its port does not answer.
type Readiness struct {
	Health *health.Server
	Attend func(context.Context) error // through the own port
	Whole  func(context.Context) error // why the process is not to be ready yet; nil is nothing
	Log    *slog.Logger

	been, is bool
	said     string // why it is not
}

// Look finds out whether the process is ready, and returns it.
func (r *Readiness) Look(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := r.Attend(ctx)
	unfit := errors.Is(err, ErrWrong) || fanout.Unreached(err)
	if r.been && err != nil && !unfit {
		return r.is // busy
	}
	if err == nil && !r.been && r.Whole != nil {
		err = r.Whole(ctx)
	}
	if r.is = err == nil; r.is {
		if !r.been || r.said != "" {
			r.Log.Info("ready")
		}
		r.been, r.said = true, ""
		r.Health.SetServingStatus(Service, healthv1.HealthCheckResponse_SERVING)
		return true
	}
	if why := err.Error(); why != r.said && ctx.Err() == nil {
		r.said = why
		level := slog.LevelInfo
		if unfit {
			level = slog.LevelWarn
		}
		r.Log.Log(ctx, level, "not ready", "error", err)
	}
	r.Health.SetServingStatus(Service, healthv1.HealthCheckResponse_NOT_SERVING)
	return false
}
