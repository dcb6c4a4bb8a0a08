package stillnet

import (
	"context"
	"errors"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
)

// Dial returns the options with which the connections of a client go over the network. A server is called by the address under
// which it serves.
func (n *Net) Dial(client string) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, _ grpc.UnaryInvoker, _ ...grpc.CallOption) error {
			s, err := n.open(ctx, client, cc.Target(), method, false)
			if err != nil {
				return err
			}
			return unary(s, req, reply)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, _ grpc.Streamer, _ ...grpc.CallOption) (grpc.ClientStream, error) {
			return n.open(ctx, client, cc.Target(), method, desc.ClientStreams)
		}),
	}
}

// Peek returns a connection to the server at an address whose messages are not held, for who looks at it while nothing runs.
func (n *Net) Peek(address string) grpc.ClientConnInterface { return peek{n, address} }

type peek struct {
	net     *Net
	address string
}

func (p peek) Invoke(ctx context.Context, method string, req, reply any, _ ...grpc.CallOption) error {
	s, err := p.NewStream(ctx, &grpc.StreamDesc{}, method)
	if err != nil {
		return err
	}
	return unary(s, req, reply)
}

func (p peek) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return p.net.open(ctx, "", p.address, method, desc.ClientStreams)
}

func unary(s grpc.ClientStream, req, reply any) error {
	err := s.SendMsg(req)
	if err == nil {
		err = s.CloseSend()
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = s.RecvMsg(reply)
	}
	return err
}

// open begins a call. Nobody's is not held.
func (n *Net) open(ctx context.Context, client, target, name string, lane bool) (*clientStream, error) {
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	address := target[strings.LastIndex(target, "/")+1:]
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &Call{
		net: n, from: client, to: address, method: name, kind: client + ">" + address + " " + name[strings.LastIndex(name, "/")+1:],
		lane: lane, ctx: ctx, mu: &n.mu, wake: make(chan struct{}, 1),
	}
	if d := n.nodes[address]; client == "" || d != nil && d.open {
		c.free = true
		if err := c.reach(); err != nil {
			return nil, err
		}
	}
	if !c.free {
		n.calls, n.fresh = append(n.calls, c), append(n.fresh, c)
	}
	s := &clientStream{c: c}
	s.stop = context.AfterFunc(ctx, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		c.answers = nil
		c.fail(status.FromContextError(context.Cause(ctx)).Err())
		if c.free && c.server != nil {
			c.server.end()
		}
	})
	return s, nil
}

// clientStream is the client's end of a call.
type clientStream struct {
	c    *Call
	stop func() bool
}

func (s *clientStream) Header() (metadata.MD, error) { return nil, nil }
func (s *clientStream) Trailer() metadata.MD         { return nil }
func (s *clientStream) Context() context.Context     { return s.c.ctx }

func (s *clientStream) SendMsg(m any) error {
	encoded, err := encode(m)
	if err != nil {
		return err
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return io.EOF
	}
	if c.free {
		c.serve()
		c.server.take(encoded)
		return nil
	}
	c.note('>', encoded)
	c.requests = append(c.requests, encoded)
	return nil
}

func (s *clientStream) CloseSend() error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requestsEnd = true; c.free && !c.ended {
		c.serve()
		c.server.takeEnd()
	}
	return nil
}

func (s *clientStream) RecvMsg(m any) error {
	c := s.c
	for {
		c.mu.Lock()
		if len(c.got) > 0 {
			encoded := c.got[0]
			c.got = c.got[1:]
			c.mu.Unlock()
			return decode(encoded, m)
		}
		ended, err := c.ended, c.err
		c.mu.Unlock()
		if ended {
			s.stop()
			if err == nil {
				return io.EOF
			}
			return err
		}
		<-c.wake
	}
}

// encode returns the bytes of a message, as gRPC sends it.
func encode(m any) ([]byte, error) {
	slices, err := rpc.MessageCodec{}.Marshal(m)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	defer slices.Free()
	return slices.Materialize(), nil
}

// decode makes m what bytes say.
func decode(encoded []byte, m any) error {
	if err := (rpc.MessageCodec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(encoded)}, m); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}
