package session

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"headwater.example/internal/rpc"
)

// The greetings of a plain lane, as docs/wire.md lays them out.
const (
	plainMagic    = "HWln"
	plainVersion  = 1
	plainHello    = 24 // bytes: magic, version, how many bytes of metadata follow, the lane's id
	plainAnswer   = 8  // bytes: magic, version, 2 of 0
	plainPatience = 5 * time.Second
	acceptPause   = 50 * time.Millisecond
)

// ServePlain serves lanes on plain connections until ctx ends, when it closes the listener. It returns once all lanes have
// ended. The flight counts connections and what they carry; lane is what serves a lane of gRPC as well.
func ServePlain(ctx context.Context, listener net.Listener, flight *rpc.Flight, log *slog.Logger, lane func(*ServerStream) error) error {
	var lanes sync.WaitGroup
	defer lanes.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	end := func() { _ = listener.Close() } // a listener that can not be closed has ended
	defer end()                            // which waits until it is closed
	defer context.AfterFunc(ctx, end)()
	for {
		conn, err := listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close() // nobody serves it
			}
			return nil
		case err != nil && errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept a plain lane: %w", err)
		case err != nil: // as when the process has no descriptor left
			log.Warn("a plain lane was not accepted", "error", err)
			pause(ctx, acceptPause)
		default:
			lanes.Go(func() {
				if err := servePlain(ctx, conn, flight, lane); err != nil {
					log.Info("plain lane ended", "error", err)
				}
			})
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// servePlain serves one connection.
func servePlain(ctx context.Context, conn net.Conn, flight *rpc.Flight, lane func(*ServerStream) error) error {
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })() // a greeting is waited for no longer
	var id LaneID
	secured := rpc.ByTLS(conn)
	return flight.ServePlain(ctx, conn, func(conn net.Conn) (header metadata.MD, err error) {
		id, header, err = greet(conn, secured)
		return header, err
	}, func(s grpc.ServerStream) error { return lane(&ServerStream{s, id}) })
}

// greet reads a client's greeting, and answers it. Whatever else has come is answered with what this side speaks. Within TLS metadata
// follows it, from which the server learns what it learns of a call of gRPC.
func greet(conn net.Conn, secured bool) (LaneID, metadata.MD, error) {
	if err := conn.SetDeadline(time.Now().Add(plainPatience)); err != nil {
		return LaneID{}, nil, err
	}
	var hello [plainHello]byte
	if _, err := io.ReadFull(conn, hello[:]); err != nil {
		return LaneID{}, nil, fmt.Errorf("the greeting of a plain lane: %w", err)
	}
	id, more, unreadable := readHello(hello)
	if !secured && more > 0 && unreadable == nil {
		unreadable = errMetadata
	}
	var header metadata.MD
	if secured && unreadable == nil {
		b := make([]byte, more)
		if _, err := io.ReadFull(conn, b); err != nil {
			return LaneID{}, nil, fmt.Errorf("the metadata of a plain lane: %w", err)
		}
		header, unreadable = rpc.ReadLaneHeader(b)
	}
	var answer [plainAnswer]byte
	copy(answer[:], plainMagic)
	binary.LittleEndian.PutUint16(answer[4:], plainVersion)
	_, err := conn.Write(answer[:])
	if err := errors.Join(unreadable, err); err != nil {
		return LaneID{}, nil, err
	}
	return id, header, conn.SetDeadline(time.Time{})
}

// errMetadata refuses metadata outside of TLS, where nobody would look at it.
var errMetadata = errors.New("a plain lane on a local socket has metadata, and none is taken there")

// greetServer greets as a lane, with metadata within TLS, and reads what the server speaks.
func greetServer(conn net.Conn, id LaneID, header []byte) error {
	var hello [plainHello]byte
	copy(hello[:], plainMagic)
	binary.LittleEndian.PutUint16(hello[4:], plainVersion)
	binary.LittleEndian.PutUint16(hello[6:], uint16(len(header)))
	copy(hello[8:], id[:])
	if _, err := conn.Write(append(hello[:], header...)); err != nil {
		return err
	}
	var answer [plainAnswer]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	if version := binary.LittleEndian.Uint16(answer[4:]); string(answer[:4]) != plainMagic || version != plainVersion {
		return fmt.Errorf("the server speaks version %d of plain lanes, and this side %d", version, plainVersion)
	}
	return nil
}

// readHello reads the lane's id of a greeting, and how many bytes of metadata follow.
func readHello(b [plainHello]byte) (id LaneID, header int, err error) {
	version := binary.LittleEndian.Uint16(b[4:])
	switch {
	case string(b[:4]) != plainMagic:
		return id, 0, fmt.Errorf("a plain lane begins with %q, not %q", b[:4], plainMagic)
	case version != plainVersion:
		return id, 0, fmt.Errorf("the plain lane has version %d, and this side speaks %d", version, plainVersion)
	}
	return LaneID(b[8:]), int(binary.LittleEndian.Uint16(b[6:])), nil
}
