package sessions

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
)

// TestAPanicOfAStepEndsItsLaneAlone: with INTERNAL, logged and counted. Steps that wait behind it are given up, another lane goes
// on, and the session is as it was before the step.
func TestAPanicOfAStepEndsItsLaneAlone(t *testing.T) {
	var log bytes.Buffer
	p := serveSessions(t, machine.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	before := rpc.Panics()
	d, other := p.lane(t, 1), p.lane(t, 2)
	s, bystander := newSequence(1, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32)), newSequence(2, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32))
	s.create(t, p, d)
	bystander.create(t, p, other)
	m := s.draw(t, 0, 70, 1, false)
	r := d.ask(t, m.step, m.payload)
	s.apply(m)
	s.check(t, m, r)

	var left atomic.Int64
	left.Store(1)
	p.m.Acquired = func(context.Context) {
		if left.Add(-1) >= 0 {
			panic("secret")
		}
	}
	lost := s.draw(t, 0, 5, 5, false)
	d.send(t, lost.step, lost.payload)
	behind := s.fork(t, 1, 70)
	behind.apply(lost)
	for range 3 {
		next := behind.draw(t, 0, 1, 1, false)
		_ = d.stream.Send(&headwaterv1.LaneRequest{Id: 9, Step: next.step, Payload: next.payload}) // The lane may have ended.
		behind.apply(next)
	}
	err := error(nil)
	for err == nil {
		var answer *headwaterv1.LaneResponse
		if answer, err = d.stream.Recv(); err == nil && answer.GetResult().GetError() == nil {
			t.Fatal("a step is answered that builds on one that was not done")
		}
	}
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("the lane ended with %v", err)
	}
	if n := rpc.Panics() - before; n != 1 {
		t.Errorf("%d panics are counted", n)
	}

	m = bystander.draw(t, 0, 3, 3, false)
	r = other.ask(t, m.step, m.payload)
	bystander.apply(m)
	bystander.check(t, m, r)
	other.end(t)
	again := p.lane(t, 1)
	r = again.ask(t, lost.step, lost.payload)
	s.apply(lost)
	s.check(t, lost, r)
	again.end(t)
	for _, want := range []string{"secret", "panic_test.go"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not have %q:\n%s", want, log.String())
		}
	}
}
