package observe

import (
	"headwater.example/internal/certs"
	"headwater.example/internal/rpc"
)

// ReadProcess registers what every process that serves has: its version, its panics, what it has in flight, and whom it refuses.
func (r *Registry) ReadProcess(version string, flight *rpc.Flight, security *rpc.Security) {
	r.Read([]*Metric{&Build, &Panics, &FlightBytes, &FlightReserved, &FlightWaiting, &OpenCalls, &OpenConns}, func(emit Emit) {
		state := flight.State()
		emit(&Build, 1, version)
		emit(&Panics, float64(rpc.Panics()))
		emit(&FlightBytes, float64(state.Received), directions[0])
		emit(&FlightBytes, float64(state.Answers), directions[1])
		emit(&FlightReserved, float64(state.Reserved))
		emit(&FlightWaiting, float64(state.Waiting))
		emit(&OpenCalls, float64(state.Calls))
		emit(&OpenConns, float64(state.Conns))
	})
	r.Read([]*Metric{&PeersRefused, &CertificateExpires}, func(emit Emit) {
		refused := security.Refused()
		for _, reason := range certs.Reasons {
			emit(&PeersRefused, float64(refused[reason]+flight.Refused(reason)), string(reason))
		}
		expires := float64(0)
		if at := security.Expires(); !at.IsZero() {
			expires = float64(at.Unix())
		}
		emit(&CertificateExpires, expires)
	})
}
