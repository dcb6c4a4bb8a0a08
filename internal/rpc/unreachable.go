package rpc

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/certs"
)

// The google.rpc.ErrorInfo of a call about a job whose coordinator does not answer.
const (
	infoDomain      = "headwater.example"
	infoUnreachable = "COORDINATOR_UNREACHABLE"
	infoCoordinator = string(certs.Coordinator)
	infoHeard       = "heard"
)

// Unreachable is the status of a call about a job whose coordinator can't be asked: UNAVAILABLE, which names it and says when it was last
// heard of, the zero time being never.
func Unreachable(coordinator, why string, heard time.Time) error {
	last, info := "", map[string]string{infoCoordinator: coordinator}
	if !heard.IsZero() {
		info[infoHeard] = heard.UTC().Format(time.RFC3339)
		last = fmt.Sprintf("; it was last heard of at %s", info[infoHeard])
	}
	s := status.Newf(codes.Unavailable, "coordinator %s has the job and can't be reached: %s%s", coordinator, why, last)
	if detailed, err := s.WithDetails(&errdetails.ErrorInfo{Reason: infoUnreachable, Domain: infoDomain, Metadata: info}); err == nil {
		s = detailed
	}
	return s.Err()
}

// UnreachableIn returns the name of the coordinator that Unreachable has made a status for; "" for any other one.
func UnreachableIn(s *status.Status) string {
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetReason() == infoUnreachable && info.GetDomain() == infoDomain {
			return info.GetMetadata()[infoCoordinator]
		}
	}
	return ""
}
