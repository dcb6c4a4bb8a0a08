package rpc

import (
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// RetryAfter is how long who is refused for want of room, or of a place, is told to wait.
const RetryAfter = time.Second

// Full is the status of what is refused because others have the room or the places that it wants: RESOURCE_EXHAUSTED, which says when to
// try again.
func Full(format string, args ...any) error {
	return Later(status.Newf(codes.ResourceExhausted, format, args...), RetryAfter).Err()
}

// Later adds to a status after how long the same call may succeed, as google.rpc.RetryInfo.
func Later(s *status.Status, after time.Duration) *status.Status {
	if detailed, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)}); err == nil {
		return detailed
	}
	return s
}

// RetryAfterIn returns what Later has added to a status, 0 if nothing.
func RetryAfterIn(s *status.Status) time.Duration {
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return max(info.GetRetryDelay().AsDuration(), 0)
		}
	}
	return 0
}
