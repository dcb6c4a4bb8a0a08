package fanout

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"headwater.example/internal/rpc"
)

// Conns are connections to holders, and the calls over them. Safe for concurrent use.
type Conns struct {
	*rpc.Conns
	Log *slog.Logger // of panics that are caught; nil is slog.Default
	// OnLeave, unless nil, is called when a session goes on without lost holders. Set it before calls are made.
	OnLeave func(session [16]byte, lost []string)
	// Locate, unless nil, says who holds a session now. Set it before calls are made.
	Locate func(ctx context.Context, session [16]byte) (*Holding, error)

	abandonTimeout time.Duration // for dropping a session that was made in vain
}

// NewConns returns an empty set. The options apply to its connections.
func NewConns(options ...grpc.DialOption) *Conns {
	return &Conns{Conns: rpc.NewConns(options...), abandonTimeout: 10 * time.Second}
}
