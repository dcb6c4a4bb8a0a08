package observe

import "headwater.example/internal/rpc"

// ReadProcess registers what every process that serves has: its version, its panics, and what it has in flight.
func (r *Registry) ReadProcess(version string, flight *rpc.Flight) {
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
}
