package session

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"headwater.example/internal/address"
	"headwater.example/internal/rpc"
)

// sweepAfter is how old a socket is that nobody listens on before it is removed: a process that has just bound one may not listen yet.
const sweepAfter = time.Minute

// ListenLocal listens for plain lanes of this machine's clients, on a Unix socket that is named by the boot of the worker that
// serves them. Clients find it by the boot that a session's holder tells, so nothing has to announce it (docs/wire.md). Its
// folder is this user's alone. Sockets that killed workers have left there are removed.
func ListenLocal(ctx context.Context, boot [16]byte) (net.Listener, error) {
	folder := localFolder()
	for attempt := 1; ; attempt++ {
		if err := makeOwnFolder(folder); err != nil {
			return nil, fmt.Errorf("the folder of lanes on this machine: %w", err)
		}
		sweep(ctx, folder)
		listener, err := address.Address{Path: localSocket(boot[:])}.Listen(ctx)
		if err == nil {
			return inFolder{listener, folder}, nil
		}
		if attempt == listenAttempts || !errors.Is(err, fs.ErrNotExist) { // the last worker before has just removed the folder
			_ = os.Remove(folder) // others are in it otherwise
			return nil, err
		}
	}
}

const listenAttempts = 3

// inFolder is a listener that removes its folder if it is the last one.
type inFolder struct {
	net.Listener
	folder string
}

func (l inFolder) Close() error {
	err := l.Listener.Close()
	_ = os.Remove(l.folder) // others are in it otherwise
	return err
}

// localFolder has the sockets of all workers of this user.
func localFolder() string {
	return filepath.Join(os.TempDir(), "headwater-lanes-"+strconv.Itoa(os.Getuid()))
}

// localSocket is where the worker of a boot listens.
func localSocket(boot []byte) string {
	return filepath.Join(localFolder(), fmt.Sprintf("%x.sock", boot))
}

// ErrNotLocal says that a worker has no socket on this machine.
var ErrNotLocal = errors.New("the worker has no socket for lanes on this machine")

// OpenLocal opens a plain lane to the worker of a boot, or fails with ErrNotLocal. It lives as one of Open. If no answer has come for as
// long as a silent connection may be, quiet is asked, and its error ends the lane.
func OpenLocal(ctx context.Context, boot []byte, id LaneID, quiet func() error) (*Stream, error) {
	path := localSocket(boot)
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeSocket || isOwnFolder(localFolder()) != nil {
		return nil, ErrNotLocal
	}
	within, cancel := context.WithTimeout(ctx, plainPatience)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(within, "unix", path)
	if err != nil {
		return nil, errors.Join(ErrNotLocal, err)
	}
	return openPlain(ctx, within, conn, id, nil, quiet, ErrNotLocal)
}

// openPlain greets the server of a connection as a lane, within a time. If it answers otherwise than a plain lane is answered, the error
// is or.
func openPlain(ctx, within context.Context, conn net.Conn, id LaneID, header []byte, quiet func() error, or error) (*Stream, error) {
	interrupted := context.AfterFunc(within, func() { _ = conn.SetDeadline(time.Now()) })
	err := greetServer(conn, id, header)
	if !interrupted() && err == nil {
		err = context.Cause(within)
	}
	switch {
	case err == nil:
		return &Stream{rpc.OpenPlain(ctx, conn, quiet)}, nil
	case ctx.Err() != nil:
		err = ctx.Err()
	case within.Err() != nil:
		err = rpc.Mute()
	default:
		err = errors.Join(or, err)
	}
	_ = conn.Close() // it is of no use
	return nil, err
}

// OpenSecured opens a plain lane within TLS to a worker of a boot, or fails with rpc.ErrNoLane: then it is spoken to by gRPC. It lives as
// one of OpenLocal.
func OpenSecured(ctx context.Context, conns *rpc.Conns, to rpc.Peer, boot []byte, id LaneID, quiet func() error) (*Stream, error) {
	header, err := rpc.LaneHeader(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := conns.DialLane(ctx, to, boot)
	if err != nil {
		return nil, err
	}
	within, cancel := context.WithTimeout(ctx, plainPatience)
	defer cancel()
	return openPlain(ctx, within, conn, id, header, quiet, rpc.ErrNoLane)
}

// makeOwnFolder makes a folder that nobody else may use, or checks that it is one.
func makeOwnFolder(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return isOwnFolder(path)
}

// isOwnFolder checks that a folder is one that nobody else may use: whoever listens there else may be anybody.
func isOwnFolder(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 || !ok || int(owner.Uid) != os.Getuid() {
		return fmt.Errorf("%s is not a folder that this user alone may use", path)
	}
	return nil
}

// sweep removes the sockets on which nobody listens any more.
func sweep(ctx context.Context, folder string) {
	paths, _ := filepath.Glob(filepath.Join(folder, "*.sock")) // the pattern is right
	for _, path := range paths {
		info, err := os.Lstat(path)
		if err != nil || time.Since(info.ModTime()) < sweepAfter {
			continue
		}
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			_ = conn.Close() // somebody listens
		} else if errors.Is(err, syscall.ECONNREFUSED) {
			_ = os.Remove(path) // the next start tries again
		}
	}
}
