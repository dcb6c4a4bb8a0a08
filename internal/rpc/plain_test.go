package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/internal/testkit/await"
)

// cutConn takes a part of the first that is written, as if the peer had not read it in time, and all that comes later.
type cutConn struct {
	net.Conn
	part int
	cut  bool
}

func (c *cutConn) Write(p []byte) (int, error) {
	if c.cut {
		return c.Conn.Write(p)
	}
	c.cut = true
	n, err := c.Conn.Write(p[:c.part])
	return n, errors.Join(os.ErrDeadlineExceeded, err)
}

// TestNothingFollowsARecordThatIsCut: who reads on a plain stream of which a write failed in its middle is told no end of the call: it
// would be read as the rest of the record.
func TestNothingFollowsARecordThatIsCut(t *testing.T) {
	for _, bytes := range []int{100, plainBuffer, 3 * plainBuffer} {
		near, far := net.Pipe()
		served := make(chan error, 1)
		go func() {
			served <- NewFlight(FlightConfig{}).ServePlain(context.Background(), &cutConn{Conn: far, part: 50}, func(net.Conn) (metadata.MD, error) { return nil, nil }, func(s grpc.ServerStream) error {
				for range 2 { // the second finds that nothing can be written
					m := NewBuffer(bytes)
					if err := s.SendMsg(&encoded{memory: m, bytes: m.Bytes()}); status.Code(err) != codes.Canceled {
						t.Errorf("%d bytes were sent with %v", bytes, err)
					}
				}
				return status.Error(codes.Internal, "why it ends")
			})
		}()
		said, err := io.ReadAll(near)
		if err != nil || len(said) != 50 {
			t.Errorf("of a record of %d bytes that was cut after 50, %d were read: %v", bytes, len(said), err)
		}
		if err := await.One(t, served, "the end of the call"); status.Code(err) != codes.Internal {
			t.Errorf("the call has ended with %v", err)
		}
	}
}
