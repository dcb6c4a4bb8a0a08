package rpc

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"headwater.example/internal/testkit/await"
)

// sockets are the two ends of a connection on this machine.
func sockets(t *testing.T) (here, there net.Conn) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if here, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if there, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close(); there.Close() })
	return here, there
}

// readRecord reads a record whose bytes are its length's low byte.
func readRecord(t *testing.T, r *records) error {
	if err := r.wait(); err != nil {
		return err
	}
	var header [recordHeader]byte
	n, err := r.header(header[:])
	if err != nil {
		return err
	}
	for left := n; left > 0; {
		piece, err := r.Read(min(left, 3*plainBuffer))
		if err != nil {
			return err
		}
		for _, b := range piece.Materialize() {
			if b != byte(n) {
				t.Errorf("a record of %d bytes has a %d", n, b)
				return nil
			}
		}
		left -= piece.Len()
		piece.Free()
	}
	return nil
}

func sendRecord(t *testing.T, conn net.Conn, n int) {
	header := recordOf(0, n)
	all := append(header[:], make([]byte, n)...)
	for i := range n {
		all[recordHeader+i] = byte(n)
	}
	if _, err := conn.Write(all); err != nil {
		t.Error(err)
	}
}

// TestRecordsOfAllLengths come as they were sent, over a socket and over a connection that has none.
func TestRecordsOfAllLengths(t *testing.T) {
	lengths := []int{0, 1, 5, 4096, plainBuffer - recordHeader, plainBuffer - 1, plainBuffer, plainBuffer + 1, 3*plainBuffer + 7, 10}
	for name, ends := range map[string]func() (net.Conn, net.Conn){
		"socket": func() (net.Conn, net.Conn) { return sockets(t) },
		"pipe":   net.Pipe,
	} {
		t.Run(name, func(t *testing.T) {
			here, there := ends()
			r := newRecords(here, time.Minute)
			go func() {
				for range 3 {
					for _, n := range lengths {
						sendRecord(t, there, n)
					}
				}
				_ = there.Close() // the reader sees it
			}()
			for range 3 * len(lengths) {
				if err := readRecord(t, r); err != nil {
					t.Fatal(err)
				}
			}
			if err := r.wait(); !errors.Is(err, io.EOF) {
				t.Errorf("at the end: %v", err)
			}
		})
	}
}

// TestASilentStreamHasNoBuffer: a process may have thousands of them.
func TestASilentStreamHasNoBuffer(t *testing.T) {
	const streams = 256
	heap := func() int64 {
		for range 2 { // pools keep what they hold for one collection
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	var peers []net.Conn
	ended := make(chan error, streams)
	before := heap()
	for range streams {
		here, there := sockets(t)
		peers = append(peers, there)
		go func() {
			r, err := newRecords(here, time.Minute), error(nil)
			for err == nil {
				err = readRecord(t, r)
			}
			ended <- err
		}()
		sendRecord(t, there, 4096)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		more := heap() - before
		if more < streams*plainBuffer/8 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d streams that wait have %d KiB each", streams, more/streams>>10)
		}
	}
	for _, p := range peers {
		_ = p.Close() // the reader sees it
	}
	for range streams {
		if err := await.One(t, ended, "the end of a stream"); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	}
}
