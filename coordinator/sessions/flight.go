package sessions

import (
	"cmp"
	"log/slog"

	"google.golang.org/grpc"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
)

const (
	// DefaultFlight bounds the bytes of messages in flight in each direction, and leastFlight is the least that FlightIn gives: the
	// answer of a step that several workers share is there three times.
	DefaultFlight = 256 << 20
	leastFlight   = 3 * rpc.MaxMessageBytes
	// flightCalls bounds the calls that are open.
	flightCalls = 4096
)

// FlightIn returns the limit of NewFlight in a process that may use so many bytes of memory: an eighth of it, between 96 and 256 MiB.
func FlightIn(memory int64) int64 { return min(max(memory/8, leastFlight), DefaultFlight) }

// NewFlight makes the budget for the messages in flight of a process that relays sessions: bytes in each direction, 0 is 256 MiB,
// over that many connections at most, and so many from one address; 0 is no bound.
func NewFlight(bytes int64, conns, perAddress int, log *slog.Logger) *rpc.Flight {
	return rpc.NewFlight(rpc.FlightConfig{Limit: cmp.Or(bytes, DefaultFlight), Streams: flightCalls, Conns: conns, PerAddress: perAddress, Logger: log})
}

// NewServer returns a server of the relay on a client's machine, whose messages in flight are counted.
func (d *Direct) NewServer(flight *rpc.Flight, options ...rpc.ServerOption) *grpc.Server {
	server := grpc.NewServer(flight.ServerOptions(options...)...)
	session.Register(rpc.Registrar(server), d)
	return server
}
