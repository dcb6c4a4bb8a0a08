package stillnet

import (
	"context"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
)

// serve begins to serve a call, if it was not begun. The caller holds the lock.
func (c *Call) serve() {
	if c.server != nil {
		return
	}
	s := &serverStream{c: c, wake: make(chan struct{}, 1)}
	c.server = s
	outgoing, _ := metadata.FromOutgoingContext(c.ctx)
	s.ctx, s.end = context.WithCancel(rpc.As(metadata.NewIncomingContext(c.node.ctx, outgoing), rpc.Anyone)) // as without certificates
	c.node.serving.Go(func() {
		defer s.end()
		m := c.node.methods[c.method]
		var err error
		if m.stream != nil {
			err = m.stream.Handler(m.service, s)
		} else {
			var reply any
			if reply, err = m.unary.Handler(m.service, s.ctx, s.RecvMsg, nil); err == nil {
				err = s.SendMsg(reply)
			}
		}
		if err != nil { // as it is read at the other end
			err = status.FromProto(status.Convert(err).Proto()).Err()
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.node.dead {
			return // its client learns of that
		}
		c.answersEnd, c.result = true, err
		if c.free {
			c.fail(err)
		}
	})
}

// serverStream is the server's end of a call.
type serverStream struct {
	c    *Call
	ctx  context.Context
	end  context.CancelFunc
	wake chan struct{}

	// The lock of the net guards these.
	got   [][]byte // delivered, and not read yet
	atEnd bool     // no more come
}

func (s *serverStream) take(m []byte) {
	s.got = append(s.got, m)
	s.notify()
}

func (s *serverStream) takeEnd() {
	s.atEnd = true
	s.notify()
}

func (s *serverStream) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *serverStream) SetHeader(metadata.MD) error  { return nil }
func (s *serverStream) SendHeader(metadata.MD) error { return nil }
func (s *serverStream) SetTrailer(metadata.MD)       {}
func (s *serverStream) Context() context.Context     { return s.ctx }

func (s *serverStream) SendMsg(m any) error {
	encoded, err := encode(m)
	if err != nil {
		return err
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.ctx.Err() != nil {
		return status.FromContextError(s.ctx.Err()).Err()
	}
	switch {
	case c.free:
		c.hand([][]byte{encoded})
	case !c.ended:
		c.answers = append(c.answers, encoded)
	}
	return nil
}

func (s *serverStream) RecvMsg(m any) error {
	for {
		s.c.mu.Lock()
		if len(s.got) > 0 {
			encoded := s.got[0]
			s.got = s.got[1:]
			s.c.mu.Unlock()
			return decode(encoded, m)
		}
		atEnd := s.atEnd
		s.c.mu.Unlock()
		if atEnd {
			return io.EOF
		}
		select {
		case <-s.wake:
		case <-s.ctx.Done():
			return status.Error(codes.Canceled, "the call has ended")
		}
	}
}
