package sessions

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
)

// plain opens a plain lane to the worker, which is served until the test ends.
func (p *place) plain(t testing.TB, id session.LaneID) net.Conn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lanes.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- session.ServePlain(rpc.As(ctx, rpc.Anyone), listener, p.m.Flight, p.m.Log, p.service.Lane)
	}()
	t.Cleanup(func() {
		cancel()
		if err := await.One(t, served, "the end of the server"); err != nil {
			t.Error(err)
		}
	})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil { // no test hangs
		t.Fatal(err)
	}
	if _, err := conn.Write(append([]byte("HWln\x01\x00\x00\x00"), id[:]...)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// tell writes steps together.
func tell(t testing.TB, conn net.Conn, moves ...*move) {
	t.Helper()
	var all []byte
	for i, m := range moves {
		b, err := proto.Marshal(&headwaterv1.LaneRequest{Id: uint64(i), Step: m.step, Payload: m.payload})
		if err != nil {
			t.Fatal(err)
		}
		all = append(binary.BigEndian.AppendUint32(append(all, 0), uint32(len(b))), b...)
	}
	if _, err := conn.Write(all); err != nil {
		t.Fatal(err)
	}
}

// told reads an answer.
func told(t testing.TB, conn net.Conn) *headwaterv1.LaneResponse {
	t.Helper()
	var header [5]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint32(header[1:]))
	if _, err := io.ReadFull(conn, b); err != nil {
		t.Fatal(err)
	}
	r := &headwaterv1.LaneResponse{}
	if err := proto.Unmarshal(b, r); err != nil || header[0] != 0 {
		t.Fatalf("a record of kind %d: %v", header[0], err)
	}
	return r
}

// TestStepsOfAPlainLaneThatCameTogetherAreDoneTogether sends steps alone, which one goroutine does, and then two at once: the
// first gets its thread back only when the second has one.
func TestStepsOfAPlainLaneThatCameTogetherAreDoneTogether(t *testing.T) {
	p := serveSessions(t, machine.Config{Budget: 1 << 24})
	d := p.lane(t, 2)
	defer d.cancel()
	one, two := newSequence(1, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32)), newSequence(2, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32))
	for _, s := range []*sequence{one, two} {
		s.create(t, p, d)
	}
	// What Acquired does is set before the lane is there: nothing but the socket orders the test and the lane's goroutines.
	var together atomic.Bool
	var kernels atomic.Int32
	both := make(chan struct{})
	p.m.Acquired = func(context.Context) {
		if !together.Load() {
			return
		}
		if kernels.Add(1) == 2 {
			close(both)
		}
		select {
		case <-both:
		case <-time.After(20 * time.Second):
			t.Error("the second step waits for the first")
		}
	}
	conn := p.plain(t, d.id)
	for i := range 10 {
		s := []*sequence{one, two}[i%2]
		m := s.draw(t, 0, 1, 1, false)
		tell(t, conn, m)
		r := told(t, conn)
		s.apply(m)
		s.check(t, m, r)
	}
	together.Store(true)
	moves := []*move{one.draw(t, 0, 1, 1, false), two.draw(t, 0, 1, 1, false)}
	tell(t, conn, moves...)
	for range moves {
		r := told(t, conn)
		s := []*sequence{one, two}[r.GetId()]
		s.apply(moves[r.GetId()])
		s.check(t, moves[r.GetId()], r)
	}
}

// TestAClientOfAPlainLaneIsGoneInTheMiddleOfAStep closes the connection while a step alone is done: it ends, and nothing of it is
// left.
func TestAClientOfAPlainLaneIsGoneInTheMiddleOfAStep(t *testing.T) {
	p := serveSessions(t, machine.Config{Budget: 1 << 24})
	d := p.lane(t, 2)
	defer d.cancel()
	s := newSequence(1, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32))
	s.create(t, p, d)
	began, gone := make(chan struct{}), make(chan struct{})
	p.m.Acquired = func(context.Context) { // set before the lane is there, which only the socket orders after the test
		close(began)
		select {
		case <-gone:
		case <-t.Context().Done(): // the test has failed
		}
	}
	conn := p.plain(t, d.id)
	m := s.draw(t, 0, 1, 1, false)
	tell(t, conn, m)
	await.One(t, began, "the step, at a thread")
	conn.Close()
	close(gone)
}
