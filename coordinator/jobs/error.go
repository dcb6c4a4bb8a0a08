package jobs

import (
	"context"
	"errors"
	"syscall"

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
	case errors.Is(err, syscall.ENOSPC):
		return status.New(codes.ResourceExhausted, err.Error())
	}
	return status.New(codes.Internal, err.Error())
}
