package rpc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// PlainEnd is the first byte of the record that ends a plain stream: a google.rpc.Status follows. That of a message is 0.
	PlainEnd = 0x80
	// plainBuffer is read and written at once: a step of one token and its answer fit.
	plainBuffer = 64 << 10
	// socketBytes is what a socket takes while the other end does not read, where the system allows it: else who writes the answer of a
	// step in stripes would wait in its middle for the other end to wake up.
	socketBytes = 512 << 10
	// plainEndTimeout bounds the sending of the last record.
	plainEndTimeout = time.Second
)

// ServePlain serves one call on a plain connection: records without HTTP/2, each with the five bytes before it that gRPC has. The
// flight counts the connection, the call and its messages as it does those of gRPC. greet reads and writes what comes before
// the records, and returns the metadata of a call that came by Lanes, which is held to all that a call of gRPC is. The call's context ends with ctx and when the client closes the connection. An answer is written once nothing else
// that was received is unanswered, or when many bytes of answers wait. The rest of a record that has begun, and each MiB of it,
// comes within the flight's patience. An error of handle is sent as the last record. ServePlain closes the connection, and
// returns the error of greet or handle.
func (f *Flight) ServePlain(ctx context.Context, conn net.Conn, greet func(net.Conn) (metadata.MD, error), handle func(grpc.ServerStream) error) error {
	var counted *serverConn
	under := conn // which may be read past the counting
	lane, secured := conn.(*laneConn)
	if secured { // and counted, or a stranger's
		counted = lane.counted
	} else {
		widen(conn)
		var err error
		if counted, err = f.admit(conn); err != nil {
			return errors.Join(err, conn.Close())
		}
		conn = counted
	}
	header, err := greet(conn)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	if secured {
		ctx, err = lane.guard(ctx, header)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := &plainStream{
		conn: conn, ctx: ctx, cancel: cancel, in: newRecords(under, f.cfg.Patience),
	}
	var share *Share
	if err == nil {
		share, err = f.open(counted, CallerOf(ctx).Tenant, cancel)
	}
	if err == nil {
		s := &countedStream{ServerStream: p, ctx: context.WithValue(ctx, shareKey{}, share), share: share, transport: p}
		err = Guard(f.cfg.Logger, "a plain call", func() error { return handle(s) })
		if errors.Is(context.Cause(ctx), errUnread) {
			err = errUnread
		}
		share.end()
	}
	p.end(err)
	return errors.Join(err, conn.Close())
}

// widen lets a socket take socketBytes, or as much as the system allows.
func widen(conn net.Conn) {
	if c, ok := conn.(interface{ SetWriteBuffer(bytes int) error }); ok {
		_ = c.SetWriteBuffer(socketBytes) // else what is written waits more often
	}
}

// plainStream is the transport of one call on a connection. One goroutine receives while others send.
type plainStream struct {
	conn   net.Conn
	ctx    context.Context
	cancel context.CancelCauseFunc

	in   *records
	left int // of the message that comes

	mu    sync.Mutex    // guards what follows
	out   *bufio.Writer // nil while nothing waits to be written
	owed  int           // messages that were received and have no answer
	ended bool
	lost  error // why nothing can be written any more
}

// ReadMessageHeader implements transportStream. It waits for a message as long as the client likes, but not for its rest.
func (p *plainStream) ReadMessageHeader(header []byte) (err error) {
	if err := p.in.wait(); err != nil {
		p.cancel(errClosed)
		return errClosed
	}
	if p.left, err = p.in.header(header); err != nil {
		return p.cut(err)
	}
	if p.left == 0 {
		p.received()
	}
	return nil
}

// errClosed is how a call ends whose client has closed the connection.
var errClosed = status.Error(codes.Canceled, "the client has closed the connection")

// Read implements transportStream.
func (p *plainStream) Read(n int) (mem.BufferSlice, error) {
	piece, err := p.in.Read(n)
	if err != nil {
		return piece, p.cut(err)
	}
	if p.left -= n; p.left == 0 {
		p.received()
	}
	return piece, nil
}

// ReadFull implements straightReader.
func (p *plainStream) ReadFull(dst []byte) error {
	if err := p.in.ReadFull(dst); err != nil {
		return p.cut(err)
	}
	if p.left -= len(dst); p.left == 0 {
		p.received()
	}
	return nil
}

// more says whether something has come after the message that was received last. Only who receives asks.
func (p *plainStream) more() bool { return p.in.more() }

// cut ends the call within a record.
func (p *plainStream) cut(err error) error {
	if errors.As(err, new(slowError)) {
		err = status.Error(codes.DeadlineExceeded, err.Error())
	} else {
		err = status.Error(codes.Canceled, "the client has closed the connection within a record")
	}
	p.cancel(err)
	return err
}

// received notes that a message was received whole.
func (p *plainStream) received() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.owed++
}

// SendMsg writes a message, which answers one of the messages received.
func (p *plainStream) SendMsg(m any) error {
	f, ok := m.(SelfCoded)
	if !ok {
		return status.Errorf(codes.Internal, "a %T does not encode itself", m)
	}
	message, err := f.MarshalMessage()
	if err != nil {
		return err
	}
	defer message.Free()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return errEnded
	}
	p.owed--
	if err := p.write(0, message); err != nil {
		return err
	}
	if p.owed > 0 {
		return nil
	}
	return p.flush()
}

// plainWriters are those that no stream needs.
var plainWriters = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, plainBuffer) }}

// write writes a record. The lock is held.
func (p *plainStream) write(kind byte, message mem.BufferSlice) error {
	if p.lost != nil {
		return p.lost
	}
	if p.out == nil {
		p.out = plainWriters.Get().(*bufio.Writer)
		p.out.Reset(p.conn)
	}
	header := recordOf(kind, message.Len())
	_, err := p.out.Write(header[:])
	for _, piece := range message {
		if err == nil {
			_, err = p.out.Write(piece.ReadOnlyData())
		}
	}
	if err != nil {
		return p.failed(err)
	}
	return nil
}

// flush writes all that waits. The lock is held.
func (p *plainStream) flush() error {
	if p.lost != nil || p.out == nil {
		return p.lost
	}
	if err := p.out.Flush(); err != nil {
		return p.failed(err)
	}
	p.giveWriter()
	return nil
}

// giveWriter gives the writer back. The lock is held.
func (p *plainStream) giveWriter() {
	p.out.Reset(nil)
	plainWriters.Put(p.out)
	p.out = nil
}

// failed ends the call. Nothing can be written any more: a record may be cut, and what came after would be read as its rest.
func (p *plainStream) failed(err error) error {
	p.giveWriter()
	p.lost = status.Error(codes.Canceled, fmt.Sprintf("the client is not there any more: %v", err))
	p.cancel(p.lost)
	return p.lost
}

// end sends why the call has ended, if it is an error, and lets nothing be sent any more.
func (p *plainStream) end(err error) {
	// A sender that waits for the client gives up.
	_ = p.conn.SetWriteDeadline(time.Now().Add(plainEndTimeout))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	if err == nil {
		_ = p.flush() // the client has gone otherwise
		return
	}
	said, err := proto.Marshal(status.Convert(err).Proto())
	if err != nil || len(said) > plainBuffer {
		return
	}
	if p.write(PlainEnd, mem.BufferSlice{mem.SliceBuffer(said)}) == nil {
		_ = p.flush() // the client has gone otherwise
	}
}

// Context is that of the call.
func (p *plainStream) Context() context.Context { return p.ctx }

// RecvMsg is never called: countedStream receives.
func (p *plainStream) RecvMsg(any) error {
	return status.Error(codes.Internal, "a plain stream receives by its transport")
}

// SetHeader, SendHeader and SetTrailer do nothing: a plain stream has no metadata.
func (p *plainStream) SetHeader(metadata.MD) error { return nil }

// SendHeader does nothing.
func (p *plainStream) SendHeader(metadata.MD) error { return nil }

// SetTrailer does nothing.
func (p *plainStream) SetTrailer(metadata.MD) {}
