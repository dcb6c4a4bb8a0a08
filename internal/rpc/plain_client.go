package rpc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// ClientStream is the client's end of a stream of SelfCoded messages, of gRPC or plain. One goroutine receives while another sends.
type ClientStream interface {
	SendMsg(m any) error
	RecvMsg(m any) error
	CloseSend() error
}

// plainClient is the client's end of a plain stream.
type plainClient struct {
	conn   net.Conn
	in     *records
	every  time.Duration // when nothing comes, until quiet is asked
	quiet  func() error
	header [recordHeader]byte // of what is received

	// What is sent.
	first  [recordHeader]byte
	pieces [][]byte
	all    net.Buffers
	raw    syscall.RawConn // of conn; nil if it has none
	try    func(fd uintptr) bool
	failed error // of try
}

// OpenPlain makes the client's end of a plain stream of a connection that was greeted, which is closed when ctx ends. If nothing has
// come for as long as a silent connection of gRPC is waited for before it is probed, quiet is asked, and its error ends the stream.
func OpenPlain(ctx context.Context, conn net.Conn, quiet func() error) ClientStream {
	return newPlainClient(ctx, conn, quiet)
}

func newPlainClient(ctx context.Context, conn net.Conn, quiet func() error) *plainClient {
	widen(conn)
	c := &plainClient{conn: conn, in: newRecords(conn, keepaliveTime+keepaliveTimeout), every: keepaliveTime, quiet: quiet}
	if s, ok := conn.(syscall.Conn); ok {
		c.raw, _ = s.SyscallConn() // which a closed connection has not, and it is not written either
	}
	c.try = c.tryWrite
	context.AfterFunc(ctx, func() { _ = conn.Close() }) // it is closed either way
	return c
}

// SendMsg sends a SelfCoded message.
func (c *plainClient) SendMsg(m any) error {
	message, err := m.(SelfCoded).MarshalMessage()
	if err != nil {
		return err
	}
	defer message.Free()
	c.first = recordOf(0, message.Len())
	if c.raw == nil {
		return c.sendTogether(message)
	}
	c.pieces = append(c.pieces[:0], c.first[:])
	for _, b := range message {
		c.pieces = append(c.pieces, b.ReadOnlyData())
	}
	c.all = c.pieces
	if err = c.begin(message.Len()); err == nil && len(c.all) > 0 {
		_, err = c.all.WriteTo(c.conn)
	}
	clear(c.pieces)
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	return nil
}

// sendTogether sends a message as one, where each write is one of a layer between, as TLS is.
func (c *plainClient) sendTogether(message mem.BufferSlice) error {
	out := plainWriters.Get().(*bufio.Writer)
	out.Reset(c.conn)
	_, err := out.Write(c.first[:])
	for _, b := range message {
		if err == nil {
			_, err = out.Write(b.ReadOnlyData())
		}
	}
	if err == nil {
		err = out.Flush()
	}
	out.Reset(nil)
	plainWriters.Put(out)
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	return nil
}

// begin writes a message, or as much of it as the socket takes now, if it is short, and leaves the rest in all.
func (c *plainClient) begin(n int) error {
	if c.raw == nil || n > plainBuffer {
		return nil
	}
	if err := c.raw.Write(c.try); err != nil {
		return err
	}
	return c.failed
}

// tryWrite writes what the socket takes now. It is called once: conn waits for a socket that takes nothing.
func (c *plainClient) tryWrite(fd uintptr) bool {
	n, err := writeNow(int(fd), c.all)
	if c.failed = nil; err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
		c.failed = os.NewSyscallError("write", err)
		return true
	}
	for n > 0 {
		took := min(n, len(c.all[0]))
		if c.all[0] = c.all[0][took:]; len(c.all[0]) == 0 {
			c.all = c.all[1:]
		}
		n -= took
	}
	return true
}

// RecvMsg receives a SelfCoded message.
func (c *plainClient) RecvMsg(m any) error {
	n, err := c.next()
	switch {
	case err != nil:
		return closed(err)
	case c.header[0] == PlainEnd && n <= plainBuffer:
		return c.ended(n)
	case c.header[0] != 0:
		return status.Errorf(codes.Internal, "a record of kind %d and %d bytes", c.header[0], n)
	case n > MaxMessageBytes:
		return status.Errorf(codes.ResourceExhausted, "a message has %d bytes, and at most %d are allowed", n, MaxMessageBytes)
	}
	in := Incoming{transport: c.in, left: n}
	err = m.(SelfCoded).UnmarshalMessage(&in)
	in.free()
	if in.err != nil {
		return closed(in.err)
	}
	return err
}

// next waits for a record, and returns how many bytes follow its header.
func (c *plainClient) next() (int, error) {
	for {
		if !c.in.more() {
			_ = c.conn.SetReadDeadline(time.Now().Add(c.every)) // if it fails, so does the reading
		}
		err := c.in.wait()
		if timedOut(err) {
			if err := c.quiet(); err != nil {
				return 0, err
			}
			continue
		}
		if err != nil {
			return 0, err
		}
		return c.in.header(c.header[:])
	}
}

// ended reads why the server has ended the stream.
func (c *plainClient) ended(n int) error {
	said := &statuspb.Status{}
	pieces, err := c.in.Read(n)
	if err == nil {
		err = proto.Unmarshal(pieces[0].ReadOnlyData(), said)
	}
	if err != nil {
		return closed(fmt.Errorf("the end of a plain stream: %w", err))
	}
	return status.ErrorProto(said)
}

// closed gives the error of a connection that was closed its status.
func closed(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Errorf(codes.Unavailable, "the connection was closed: %v", err)
}

// CloseSend closes the connection: a plain stream has no half that ends.
func (c *plainClient) CloseSend() error { return c.conn.Close() }
