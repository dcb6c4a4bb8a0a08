package rpc

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

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

// records reads what comes on a plain stream. One goroutine uses it at a time.
type records struct {
	conn     net.Conn
	in       *bufio.Reader
	patience time.Duration // with the rest of a record, and each MiB of it

	taken int           // bytes at the front of in that were handed out as piece
	piece [1]mem.Buffer // of the last Read
}

func newRecords(conn net.Conn, patience time.Duration) records {
	return records{conn: conn, in: bufio.NewReaderSize(conn, plainBuffer), patience: patience}
}

// slowError is how a record ends whose rest does not come.
type slowError struct{ within time.Duration }

func (e slowError) Error() string {
	return fmt.Sprintf("the rest of a record did not come within %v", e.within)
}

// wait waits for a record for as long as the connection's deadline allows.
func (r *records) wait() error {
	r.drop()
	_, err := r.in.Peek(1)
	return err
}

// header reads the first bytes of a record that has begun, and returns how many follow.
func (r *records) header(header []byte) (int, error) {
	err := r.within(len(header), func() error {
		_, err := io.ReadFull(r.in, header)
		return err
	})
	return int(binary.BigEndian.Uint32(header[1:])), err
}

// Read returns the next n bytes of a record. Small pieces hold until the next call; large ones are to be freed.
func (r *records) Read(n int) (mem.BufferSlice, error) {
	r.drop()
	if n <= plainBuffer {
		err := r.within(n, func() error {
			b, err := r.in.Peek(n)
			r.piece[0], r.taken = mem.SliceBuffer(b), len(b)
			return err
		})
		return r.piece[:], err
	}
	b := NewBuffer(n)
	err := r.within(n, func() error {
		_, err := io.ReadFull(r.in, b.Bytes())
		return err
	})
	r.piece[0] = mem.NewBuffer(&b.bytes, (*owned)(b))
	return r.piece[:], err
}

// more says whether something has come after what was handed out.
func (r *records) more() bool { return r.in.Buffered() > r.taken }

// drop passes over what was handed out before.
func (r *records) drop() {
	_, _ = r.in.Discard(r.taken) // which is there
	r.taken = 0
}

// within reads n bytes, which come soon.
func (r *records) within(n int, read func() error) error {
	waits := r.in.Buffered() < n
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
