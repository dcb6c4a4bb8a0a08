package rpc

import (
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// retryAfter is how long who is refused for want of room, or of a place, is told to wait.
const retryAfter = time.Second

// Full is the status of what is refused because others have the room or the places that it wants: RESOURCE_EXHAUSTED, which says when to
// try again.
func Full(format string, args ...any) error {
	return Later(status.Newf(codes.ResourceExhausted, format, args...)).Err()
}

// Later adds to a status when to try again, as google.rpc.RetryInfo.
func Later(s *status.Status) *status.Status {
	if detailed, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)}); err == nil {
		return detailed
	}
	return s
}
