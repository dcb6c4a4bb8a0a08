package rpc

import (
	"bufio"
	"crypto/tls"
	"net"
	"sync"
)

// recordConn is the connection under one by TLS. If that carries a plain lane, it is read ahead, and the records of one write go
// together: else a step and its answer would take a call of the system for each record, and one more to read a record's length.
type recordConn struct {
	net.Conn
	ahead *bufio.Reader // nil while it carries no plain lane

	mu  sync.Mutex
	out *bufio.Writer // nil but during a write on the lane
}

// laneAhead is read ahead of TLS: two of its largest records.
const laneAhead = 34 << 10

// carry makes a connection by TLS that has shaken hands over c carry a plain lane.
func (c *recordConn) carry(conn *tls.Conn) net.Conn {
	c.ahead = bufio.NewReaderSize(c.Conn, laneAhead)
	return &laneTLS{conn, c}
}

// more says whether anything has come that was not read.
func (c *recordConn) more() bool { return c.ahead.Buffered() > 0 }

func (c *recordConn) Read(p []byte) (int, error) {
	if c.ahead == nil {
		return c.Conn.Read(p)
	}
	return c.ahead.Read(p)
}

func (c *recordConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out == nil {
		return c.Conn.Write(p)
	}
	return c.out.Write(p)
}

// gather lets what is written wait for flush.
func (c *recordConn) gather() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = plainWriters.Get().(*bufio.Writer)
	c.out.Reset(c.Conn)
}

func (c *recordConn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.out.Flush()
	c.out.Reset(nil)
	plainWriters.Put(c.out)
	c.out = nil
	return err
}

// laneTLS is a connection by TLS that carries a plain lane. One goroutine writes at a time.
type laneTLS struct {
	*tls.Conn
	under *recordConn
}

func (c *laneTLS) Write(p []byte) (int, error) {
	c.under.gather()
	n, err := c.Conn.Write(p)
	if flushed := c.under.flush(); flushed != nil {
		return 0, flushed
	}
	return n, err
}

// Close closes the connection without a last word, for which it would wait: an end that is meant has a record of its own.
func (c *laneTLS) Close() error { return c.under.Close() }
