package jobs

import (
	"context"
	"errors"
	"fmt"
	"math"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	"headwater.example/tensor"
)

// invalid is a message that could never be right.
func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// misplaced is a message that the state of the stream does not allow.
func misplaced(format string, args ...any) error {
	return status.Errorf(codes.FailedPrecondition, format, args...)
}

// overflowError says that a rotation of finite values gave one that is not finite.
type overflowError struct {
	what  string
	index int
	value float32
}

func (e *overflowError) Error() string {
	return fmt.Sprintf("rotated %s: element %d is %v", e.what, e.index, e.value)
}

// toStatus gives err the code by which a coordinator decides what to do.
func toStatus(err error) error {
	var (
		budget   *kvcache.BudgetError
		row      *attention.RowError
		gradient *attention.GradientError
		narrow   *tensor.RangeError
		product  *attention.ProjectionError
		overflow *overflowError
		element  *elementError
		coded    interface{ GRPCStatus() *status.Status }
	)
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok || err == nil {
		return err
	}
	switch {
	case errors.As(err, &coded):
		return status.Error(coded.GRPCStatus().Code(), err.Error())
	case errors.As(err, &budget):
		return status.Error(codes.ResourceExhausted, err.Error())
	case errors.As(err, &row), errors.As(err, &gradient), errors.As(err, &narrow), errors.As(err, &product), errors.As(err, &overflow), errors.As(err, &element):
		return status.Error(codes.OutOfRange, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Internal, err.Error())
}

// decode decodes little-endian float32 into dst, which has room for exactly those. They must be finite; a bias may hold
// -Inf as well.
func decode(what string, dst []float32, p []byte, bias bool) error {
	if len(p) != 4*len(dst) {
		return invalid("%s: %d bytes are not %d float32 values", what, len(p), len(dst))
	}
	if i, v, ok := tensor.CheckFinite(p, tensor.F32, bias); !ok {
		return invalid("%s: element %d is %v", what, i, v)
	}
	return tensor.Widen(dst, p, tensor.F32)
}

// product multiplies sizes that are not negative; ok is false if the product exceeds int64.
func product(sizes ...int64) (p int64, ok bool) {
	p = 1
	for _, n := range sizes {
		if n != 0 && p > math.MaxInt64/n {
			return 0, false
		}
		p *= n
	}
	return p, true
}
