package jobs

import (
	"context"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// TestAPanicOfATaskEndsItsRunAlone: with INTERNAL, counted, and with all memory given back; the next run goes well.
func TestAPanicOfATaskEndsItsRunAlone(t *testing.T) {
	p := newPlace(t, 64<<20, 2)
	before := rpc.Panics()
	var left atomic.Int64
	left.Store(1)
	p.m.Acquired = func(context.Context) {
		if left.Add(-1) >= 0 {
			panic("secret")
		}
	}
	j := smallJob(t, headwaterv1.StorageType_STORAGE_TYPE_F32)
	messages := append([]*headwaterv1.RunRequest{openOf(j.problem)}, j.load(t, 0, []uint32{0}, 50)...)
	messages = append(messages, j.query(0, 0, []uint32{0}, 0, int(j.problem.Tokens), 100)...)
	if _, err := converse(t.Context(), serve(t, p), messages); status.Code(err) != codes.Internal {
		t.Errorf("the run ended with %v", err)
	}
	if n := rpc.Panics() - before; n != 1 {
		t.Errorf("%d panics are counted", n)
	}
	if used := p.m.Budget.Used(); used != 0 {
		t.Errorf("%d bytes are in use", used)
	}
	if _, err := play(t, p, false, messages...); err != nil {
		t.Errorf("the next run: %v", err)
	}
}
