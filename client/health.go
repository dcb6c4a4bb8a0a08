package client

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Serving tells whether the coordinator takes calls: one that is stopping answers and does not. What answers and is no
// coordinator is an error.
func (c *Client) Serving(ctx context.Context) (bool, error) {
	resp, err := unary(ctx, c, "ask for the health", healthv1.NewHealthClient(c.conn).Check,
		&healthv1.HealthCheckRequest{Service: headwaterv1.CoordinatorService_ServiceDesc.ServiceName})
	var answer *Error
	if errors.As(err, &answer) && answer.Code == codes.NotFound {
		err = c.notCoordinator(ctx, answer)
	}
	return resp.GetStatus() == healthv1.HealthCheckResponse_SERVING, err
}

// notCoordinator makes the error of a call that was made to what serves none such say what serves there, if it is known.
func (c *Client) notCoordinator(ctx context.Context, e *Error) *Error {
	e.Code = codes.Unimplemented
	if e.Message = "what listens at " + c.address + " is no coordinator"; c.isWorker(ctx) {
		e.Message = fmt.Sprintf("%s is a worker's address, not the coordinator's: a coordinator listens on port %d unless it is told otherwise", c.address, DefaultPort)
	}
	return e
}

// isWorker tells whether it is known that a worker listens at the address. A worker serves sessions as a coordinator does, but
// only its own part of them.
func (c *Client) isWorker(ctx context.Context) bool {
	resp, err := healthv1.NewHealthClient(c.conn).Check(ctx, &healthv1.HealthCheckRequest{Service: headwaterv1.WorkerService_ServiceDesc.ServiceName})
	return err == nil && resp.GetStatus() != healthv1.HealthCheckResponse_SERVICE_UNKNOWN
}

// RefuseWorker is the error of speaking to a worker about sessions, of which it would tell of parts only; nil for all else.
func (c *Client) RefuseWorker(ctx context.Context) error {
	if !c.isWorker(ctx) {
		return nil
	}
	return c.notCoordinator(ctx, &Error{Address: c.address, Doing: "ask about sessions", Answered: true})
}

// servesNone tells whether an error is that of a server without the coordinator's service.
func servesNone(e *Error) bool {
	return e.Code == codes.Unimplemented && strings.Contains(e.Message, "unknown service "+headwaterv1.CoordinatorService_ServiceDesc.ServiceName)
}
