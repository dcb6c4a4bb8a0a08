package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/mem"
)

// recordHeader is the bytes before each message of a plain stream: its kind, and how many bytes follow.
const recordHeader = 5

// recordOf returns the bytes before a message.
func recordOf(kind byte, n int) (header [recordHeader]byte) {
	header[0] = kind
	binary.BigEndian.PutUint32(header[1:], uint32(n))
	return header
}

// records reads what comes on a plain stream. One goroutine uses it at a time. It has a buffer only while something is there: a process
// may have thousands of streams that are silent.
type records struct {
	conn     net.Conn
	raw      syscall.RawConn // of conn; nil if it has none, and then a buffer is waited with
	patience time.Duration   // with the rest of a record, and each MiB of it

	ahead    interface{ more() bool } // under conn, what has come and was not read; nil if nothing is read ahead
	buffer   *plainBytes              // nil while nothing is there
	from, to int                      // of buffer: what has come and was not handed out
	taken    int                      // bytes from from on that were handed out as piece
	piece    [1]mem.Buffer

	ready  func(fd uintptr) bool // tries to fill the buffer
	failed error                 // of ready
}

type plainBytes [plainBuffer]byte

var plainBuffers = sync.Pool{New: func() any { return new(plainBytes) }}

func newRecords(conn net.Conn, patience time.Duration) *records {
	r := &records{conn: conn, patience: patience}
	if c, ok := conn.(syscall.Conn); ok {
		r.raw, _ = c.SyscallConn() // which a closed connection has not, and it is not read either
	}
	r.ahead, _ = conn.(interface{ more() bool })
	r.ready = r.tryRead
	return r
}

// slowError is how a record ends whose rest does not come.
type slowError struct{ within time.Duration }

func (e slowError) Error() string {
	return fmt.Sprintf("the rest of a record did not come within %v", e.within)
}

// wait waits for a record for as long as the connection's deadline allows.
func (r *records) wait() error {
	r.drop()
	if r.from < r.to {
		return nil
	}
	r.release()
	if r.raw == nil {
		return r.fill()
	}
	if err := r.raw.Read(r.ready); err != nil {
		return err
	}
	return r.failed
}

// tryRead reads what is there, and says whether that has come to an end.
func (r *records) tryRead(fd uintptr) bool {
	r.take()
	n, err := readNow(int(fd), r.buffer[:])
	switch {
	case errors.Is(err, unix.EAGAIN):
		r.release()
		return false
	case errors.Is(err, unix.EINTR):
		return r.tryRead(fd)
	case err != nil:
		r.failed = os.NewSyscallError("read", err)
	case n == 0:
		r.failed = io.EOF
	default:
		r.to, r.failed = n, nil
	}
	return true
}

// take has a buffer.
func (r *records) take() {
	if r.buffer == nil {
		r.buffer = plainBuffers.Get().(*plainBytes)
	}
}

// release gives the buffer back, in which nothing is left.
func (r *records) release() {
	if r.buffer != nil {
		plainBuffers.Put(r.buffer)
	}
	r.buffer, r.from, r.to = nil, 0, 0
	r.piece[0] = nil
}

// fill reads once, behind what is there.
func (r *records) fill() error {
	r.take()
	n, err := r.conn.Read(r.buffer[r.to:])
	r.to += n
	if n > 0 {
		return nil
	}
	return err
}

// peek returns the next n bytes, at most plainBuffer, and leaves them there.
func (r *records) peek(n int) ([]byte, error) {
	if r.from+n > plainBuffer {
		r.to = copy(r.buffer[:], r.buffer[r.from:r.to])
		r.from = 0
	}
	for r.to-r.from < n {
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
	return r.buffer[r.from : r.from+n], nil
}

// header reads the first bytes of a record that has begun, and returns how many follow.
func (r *records) header(header []byte) (int, error) {
	err := r.within(len(header), func() error {
		b, err := r.peek(len(header))
		r.from += copy(header, b)
		return err
	})
	return int(binary.BigEndian.Uint32(header[1:])), err
}

// Read returns the next n bytes of a record. Small pieces hold until the next call; large ones are to be freed.
func (r *records) Read(n int) (mem.BufferSlice, error) {
	r.drop()
	if n <= plainBuffer {
		err := r.within(n, func() error {
			b, err := r.peek(n)
			r.piece[0], r.taken = mem.SliceBuffer(b), len(b)
			return err
		})
		return r.piece[:], err
	}
	b := NewBuffer(n)
	err := r.ReadFull(b.Bytes())
	r.piece[0] = mem.NewBuffer(&b.bytes, (*owned)(b))
	return r.piece[:], err
}

// ReadFull fills dst with the next bytes of a record.
func (r *records) ReadFull(dst []byte) error {
	r.drop()
	return r.within(len(dst), func() error {
		there := 0
		if r.from < r.to {
			there = copy(dst, r.buffer[r.from:r.to])
			r.from += there
		}
		_, err := io.ReadFull(r.conn, dst[there:])
		return err
	})
}

// more says whether something has come after what was handed out.
func (r *records) more() bool { return r.to-r.from > r.taken || r.ahead != nil && r.ahead.more() }

// drop passes over what was handed out before.
func (r *records) drop() {
	r.from += r.taken
	r.taken = 0
}

// within reads n bytes, which come soon.
func (r *records) within(n int, read func() error) error {
	waits := r.to-r.from < n
	if waits {
		_ = r.conn.SetReadDeadline(time.Now().Add(r.patience)) // if it fails, so does the reading
	}
	err := read()
	if waits {
		_ = r.conn.SetReadDeadline(time.Time{})
	}
	if timedOut(err) {
		return slowError{r.patience}
	}
	return err
}

// timedOut says whether a connection's deadline is why it was not read.
func timedOut(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
