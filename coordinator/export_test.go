package coordinator

import "headwater.example/internal/rpc"

// FlightState counts what the coordinator has in flight.
func (c *Coordinator) FlightState() rpc.FlightState { return c.flight.State() }
