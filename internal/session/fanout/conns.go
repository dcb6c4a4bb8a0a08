package fanout

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"log/slog"
	randv2 "math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"

	"headwater.example/internal/rpc"
)

// Conns are connections to holders, and the calls over them. Safe for concurrent use.
type Conns struct {
	*rpc.Conns
	Log *slog.Logger // of panics that are caught; nil is slog.Default
	// OnLeave, unless nil, is called when a session goes on without lost holders. Set it before calls are made.
	OnLeave func(session [16]byte, lost []string)
	// OnCopy, unless nil, is called before so many bytes of a session are copied, and may wait; not for long if the session stands
	// still meanwhile. Set it before calls are made.
	OnCopy func(ctx context.Context, bytes int, still bool) error
	// OnAbandon, unless nil, is called when a copy is given up and its target can not be told to drop what it was filled with, under an id
	// of its own that this call has made. Set it before calls are made.
	OnAbandon func(filled [16]byte, target *Holder, call uint64)
	// Locate, unless nil, says who holds a session now. Set it before calls are made.
	Locate func(ctx context.Context, session [16]byte) (*Holding, error)

	// HedgeShare is the most of all attends that are asked of another holder as well, since the first one is late: 0.05 is one of
	// twenty, 0 none. Set it before calls are made.
	HedgeShare float64

	began    time.Time // the beginning of its clock
	paces    paces
	hedges   hedges
	compared atomic.Uint64 // calls that may be compared

	random         io.Reader          // of ids, nil is the system's
	abandonTimeout time.Duration      // for dropping a session that was made in vain
	missed         singleflight.Group // of Missed, by session
}

// NewConns returns an empty set. Security and options apply to its connections.
func NewConns(security *rpc.Security, options ...grpc.DialOption) *Conns {
	c := &Conns{Conns: rpc.NewConns(security, options...), HedgeShare: DefaultHedgeShare, began: time.Now(), abandonTimeout: 10 * time.Second}
	for _, o := range options {
		if r, ok := o.(randomOption); ok {
			c.random = r.random
		}
	}
	return c
}

type randomOption struct {
	grpc.EmptyDialOption
	random io.Reader
}

// WithRandom is an option for NewConns, for tests that are to be repeatable: ids are drawn from random, which never fails and is safe
// for concurrent use, instead of the system.
func WithRandom(random io.Reader) grpc.DialOption { return randomOption{random: random} }

// NewID returns a random id of an append, a truncation or a call. It is not 0.
func (c *Conns) NewID() uint64 {
	for {
		id := randv2.Uint64()
		if c.random != nil {
			var b [8]byte
			_, _ = io.ReadFull(c.random, b[:]) // never fails
			id = binary.LittleEndian.Uint64(b[:])
		}
		if id != 0 {
			return id
		}
	}
}

// NewName returns a random id of a session or a lane.
func (c *Conns) NewName() (id [16]byte) {
	if c.random == nil {
		_, _ = rand.Read(id[:]) // never fails
		return id
	}
	_, _ = io.ReadFull(c.random, id[:]) // never fails
	return id
}
