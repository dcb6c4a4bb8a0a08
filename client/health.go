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

// Serving reports whether the coordinator takes calls; one that is stopping answers but does not. If something else
// answers, that is an error.
func (c *Client) Serving(ctx context.Context) (bool, error) {
	resp, err := unary(ctx, c, "ask for the health", healthv1.NewHealthClient(c.conn).Check,
		&healthv1.HealthCheckRequest{Service: headwaterv1.CoordinatorService_ServiceDesc.ServiceName})
	var answer *Error
	if errors.As(err, &answer) && answer.Code == codes.NotFound {
		err = c.notCoordinator(ctx, answer)
	}
	return resp.GetStatus() == healthv1.HealthCheckResponse_SERVING, err
}

// notCoordinator makes the error of a call to something that is no coordinator say what it is, if that is known.
func (c *Client) notCoordinator(ctx context.Context, e *Error) *Error {
	e.Code = codes.Unimplemented
	if e.Message = "what listens at " + c.address + " is no coordinator"; c.isWorker(ctx) {
		e.Message = fmt.Sprintf("%s is a worker's address, not the coordinator's: a coordinator listens on port %d unless it is told otherwise", c.address, DefaultPort)
	}
	return e
}

// isWorker reports whether a worker is known to listen at the address. A worker serves sessions as a coordinator does,
// but only its own part of them.
func (c *Client) isWorker(ctx context.Context) bool {
	resp, err := healthv1.NewHealthClient(c.conn).Check(ctx, &healthv1.HealthCheckRequest{Service: headwaterv1.WorkerService_ServiceDesc.ServiceName})
	return err == nil && resp.GetStatus() != healthv1.HealthCheckResponse_SERVICE_UNKNOWN
}

// RefuseWorker returns an error if the address is a worker's, which would show only parts of sessions, and otherwise
// nil.
func (c *Client) RefuseWorker(ctx context.Context) error {
	if !c.isWorker(ctx) {
		return nil
	}
	return c.notCoordinator(ctx, &Error{Address: c.address, Doing: "ask about sessions", Answered: true})
}

// servesNone reports whether an error comes from a server that is no coordinator. A coordinator of an older version may lack the
// service of the cluster, so the lack of that one says it of a worker alone.
func (c *Client) servesNone(ctx context.Context, e *Error) bool {
	lacks := func(service string) bool { return strings.Contains(e.Message, "unknown service "+service) }
	return e.Code == codes.Unimplemented && (lacks(headwaterv1.CoordinatorService_ServiceDesc.ServiceName) ||
		lacks(headwaterv1.ClusterService_ServiceDesc.ServiceName) && c.isWorker(ctx))
}
