package sessions

import (
	"cmp"
	"log/slog"

	"google.golang.org/grpc"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
)

const (
	// defaultFlight bounds the bytes of messages in flight in each direction.
	defaultFlight = 256 << 20
	// flightCalls bounds the calls that are open.
	flightCalls = 4096
)

// NewFlight makes the budget for the messages in flight of a process that relays sessions: bytes in each direction, 0 is 256 MiB,
// over that many connections at most, 0 is no bound.
func NewFlight(bytes int64, conns int, log *slog.Logger) *rpc.Flight {
	return rpc.NewFlight(rpc.FlightConfig{Limit: cmp.Or(bytes, defaultFlight), Streams: flightCalls, Conns: conns, Logger: log})
}

// NewServer returns a server of the relay on a client's machine, whose messages in flight are counted.
func (d *Direct) NewServer(flight *rpc.Flight, options ...rpc.ServerOption) *grpc.Server {
	server := grpc.NewServer(flight.ServerOptions(options...)...)
	session.Register(rpc.Registrar(server), d)
	return server
}
