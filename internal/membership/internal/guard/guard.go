// Package guard stands between the network and memberlist, and bounds what a peer can make this process allocate.
//
// Memberlist takes memory by counts that a peer names: the nodes of a state that is pushed, the length of a compressed
// message. The guard reads each message first, whole and within bounds, and hands it on only if every count in it is true.
// It takes memory as bytes come. What it refuses is closed or dropped. It does not decide what a message means.
package guard

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// maxStreams bounds the streams that peers have opened and that are not answered. More are closed.
	maxStreams = 24
	// streamTimeout is how long a message may take to come.
	streamTimeout = 3 * time.Second
	// bindTries is how often a free port is looked for that is free over TCP and over UDP.
	bindTries = 10
)

// Transport is memberlist's network, guarded. Make it with Listen.
type Transport struct {
	*memberlist.NetTransport
	secret  *Secret
	refused func(from net.Addr, err error)
	streams chan net.Conn
	packets chan *memberlist.Packet
	slots   chan struct{} // one element for each stream that is open
	done    chan struct{}
	tasks   sync.WaitGroup
}

// Listen binds gossip over TCP and UDP. With a secret all that is not encrypted with it is refused. Refused is told of what is
// refused, from several goroutines. Port 0 takes a free one.
func Listen(config *memberlist.NetTransportConfig, secret *Secret, refused func(from net.Addr, err error)) (*Transport, error) {
	var inner *memberlist.NetTransport
	var err error
	for range bindTries {
		inner, err = memberlist.NewNetTransport(config)
		if err == nil || config.BindPort != 0 || !strings.Contains(err.Error(), syscall.EADDRINUSE.Error()) { // it is not wrapped
			break
		}
	}
	if err != nil {
		return nil, err
	}
	t := &Transport{
		NetTransport: inner,
		secret:       secret,
		refused:      refused,
		streams:      make(chan net.Conn),
		packets:      make(chan *memberlist.Packet),
		slots:        make(chan struct{}, maxStreams),
		done:         make(chan struct{}),
	}
	t.tasks.Go(t.acceptStreams)
	t.tasks.Go(t.acceptPackets)
	return t, nil
}

// StreamCh returns the streams of which the first message has been read.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// PacketCh returns the packets that are well-formed.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// Shutdown closes the sockets and waits for what runs.
func (t *Transport) Shutdown() error {
	// The sockets' goroutines may wait to hand something over, so those that take it end after them.
	err := t.NetTransport.Shutdown()
	close(t.done)
	t.tasks.Wait()
	return err
}

// DialAddressTimeout connects to a peer. What it answers is guarded as what it sends.
func (t *Transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	conn, err := t.NetTransport.DialAddressTimeout(a, timeout)
	if err != nil {
		return nil, err
	}
	return &guarded{Conn: conn, secret: t.secret}, nil
}

// DialTimeout is DialAddressTimeout for an address without a name.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *Transport) acceptStreams() {
	for {
		select {
		case conn := <-t.NetTransport.StreamCh():
			select {
			case t.slots <- struct{}{}:
				t.tasks.Go(func() { t.check(conn) })
			default:
				t.refused(conn.RemoteAddr(), fmt.Errorf("%d streams are open, the most that are allowed", maxStreams))
				_ = conn.Close() // nobody is to know
			}
		case <-t.done:
			return
		}
	}
}

// check reads a stream's first message and hands the stream on.
func (t *Transport) check(conn net.Conn) {
	release := sync.OnceFunc(func() { <-t.slots })
	stopped := make(chan struct{})
	defer close(stopped)
	t.tasks.Go(func() { // a shutdown does not wait for a peer
		select {
		case <-t.done:
			_ = conn.Close() // which ends the read
		case <-stopped:
		}
	})
	err := conn.SetReadDeadline(time.Now().Add(streamTimeout))
	g := &guarded{Conn: conn, secret: t.secret, closed: release}
	if err == nil {
		err = g.read()
	}
	if err != nil {
		if !errors.Is(err, io.EOF) {
			t.refused(conn.RemoteAddr(), err)
		}
		_ = g.Close() // nobody is to know
		return
	}
	select {
	case t.streams <- g:
	case <-t.done:
		_ = g.Close() // as above
	}
}

func (t *Transport) acceptPackets() {
	for {
		select {
		case p := <-t.NetTransport.PacketCh():
			if err := packet(p.Buf, t.secret); err != nil {
				t.refused(p.From, err)
				continue
			}
			select {
			case t.packets <- p:
			case <-t.done:
				return
			}
		case <-t.done:
			return
		}
	}
}

// guarded is a stream that gives what has been read of it, and nothing after that.
type guarded struct {
	net.Conn
	secret  *Secret
	message *bytes.Reader // nil until it has been read
	closed  func()        // nil, or called by Close
}

// read reads the message.
func (g *guarded) read() error {
	b, err := stream(g.Conn, g.secret)
	g.message = bytes.NewReader(b)
	if err != nil {
		g.message.Reset(nil)
	}
	return err
}

// Read gives the message, and reads it first if that has not been done.
func (g *guarded) Read(p []byte) (int, error) {
	if g.message == nil {
		if err := g.read(); err != nil {
			return 0, err
		}
	}
	return g.message.Read(p)
}

// Close closes the stream.
func (g *guarded) Close() error {
	if g.closed != nil {
		g.closed()
	}
	return g.Conn.Close()
}
