package jobs

import (
	"context"
	"errors"
	"log/slog"
	"syscall"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/attention"
	"headwater.example/internal/jobfile"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// statusOf gives an error the gRPC code that its meaning has.
func statusOf(err error) *status.Status {
	var (
		jobError *jobfile.Error
		format   *tensor.FormatError
		geometry *shard.GeometryError
		row      *attention.RowError
	)
	var coded interface{ GRPCStatus() *status.Status }
	switch {
	case errors.As(err, &coded):
		if s := coded.GRPCStatus(); s.Message() != "" {
			return s
		}
	case errors.As(err, &jobError), errors.As(err, &format), errors.As(err, &geometry), errors.As(err, &row):
		return status.New(codes.InvalidArgument, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.New(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, errCancelled):
		return status.New(codes.Canceled, err.Error())
	case diskFull(err):
		return diskFullStatus(err)
	}
	return status.New(codes.Internal, err.Error())
}

// contentFault says whether a code blames what a job holds: to run it again changes nothing. Every other code is the state
// of a machine or of the cluster, which passes.
func contentFault(code codes.Code) bool {
	return code == codes.InvalidArgument || code == codes.OutOfRange
}

// reasonDiskFull tells a full disk of the coordinator from workers without room, which have the same code.
const reasonDiskFull = "DISK_FULL"

func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func diskFullStatus(err error) *status.Status {
	s := status.Newf(codes.ResourceExhausted, "the coordinator's disk is full; it may be tried again once there is room: %v", err)
	if detailed, err := s.WithDetails(&errdetails.ErrorInfo{Reason: reasonDiskFull, Domain: "headwater.example"}); err == nil {
		return detailed
	}
	return s
}

// level is how loud the end of a job or of a submission is told: what its sender asked for, or did wrong, is no news about
// the machines.
func level(err error) slog.Level {
	if err == nil {
		return slog.LevelInfo
	}
	switch code := statusOf(err).Code(); {
	case contentFault(code), code == codes.Canceled, code == codes.AlreadyExists:
		return slog.LevelInfo
	case code == codes.Internal, code == codes.DataLoss:
		return slog.LevelError
	}
	return slog.LevelWarn
}
