package session

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
	"headwater.example/internal/testkit/await"
)

// TestASocketOfThisMachine listens in a folder that this user alone may use, and removes what killed workers have left there.
func TestASocketOfThisMachine(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	folder := filepath.Join(dir, "headwater-lanes-"+strconv.Itoa(os.Getuid()))
	one, err := ListenLocal(t.Context(), [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "01000000000000000000000000000000.sock")
	for file, mode := range map[string]os.FileMode{folder: 0o700, path: 0o600} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != mode {
			t.Fatalf("%s: %v, %v", file, info, err)
		}
	}
	left := func(name string, age time.Duration) string {
		l, err := net.Listen("unix", filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-age)
		if err := os.Chtimes(l.Addr().String(), when, when); err != nil {
			t.Fatal(err)
		}
		return l.Addr().String()
	}
	old, fresh := left("old.sock", time.Hour), left("fresh.sock", 0)
	hour := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, hour, hour); err != nil {
		t.Fatal(err)
	}
	two, err := ListenLocal(t.Context(), [16]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]bool{old: false, fresh: true, path: true} {
		if _, err := os.Stat(file); (err == nil) != want {
			t.Errorf("%s: %v", file, err)
		}
	}
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a closed listener left its socket")
	}
	if err := os.Remove(fresh); err != nil {
		t.Fatal(err)
	}
	if err := two.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(folder); err == nil {
		t.Error("the last listener left its folder")
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(folder, 0o770); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	if _, err := ListenLocal(t.Context(), [16]byte{3}); err == nil {
		t.Error("it listens where others may write")
	}
}

// TestALaneOfThisMachine goes to and fro by a worker's socket, in messages of all sizes, and ends as the worker says. Where somebody else
// may have put the socket, and where there is none, it is not opened.
func TestALaneOfThisMachine(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	boot := [16]byte{9}
	open := func() (*Stream, error) {
		return OpenLocal(t.Context(), boot[:], testLane, func() error { return nil })
	}
	if _, err := open(); !errors.Is(err, ErrNotLocal) {
		t.Fatalf("got %v", err)
	}
	listener, err := ListenLocal(t.Context(), boot)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- ServePlain(ctx, listener, rpc.NewFlight(rpc.FlightConfig{Limit: 1 << 30}), slog.New(slog.DiscardHandler), func(s *ServerStream) error {
			if s.ID() != testLane {
				t.Errorf("lane %v", s.ID())
			}
			var in Request
			var out Response
			for {
				if err := s.Recv(&in); err != nil {
					return err
				}
				if in.Step.Layer == 7 {
					in.Payload.Free()
					return status.Error(codes.FailedPrecondition, "no more")
				}
				out.Reset()
				out.ID, out.Result.Length, out.Payload, in.Payload = in.ID, in.Step.Length, in.Payload, nil
				if err := s.Send(&out); err != nil {
					return err
				}
			}
		})
	}()
	defer func() {
		cancel()
		if err := await.One(t, served, "the end of the server"); err != nil {
			t.Error(err)
		}
	}()
	s, err := open()
	if err != nil {
		t.Fatal(err)
	}
	var in Response
	for i, n := range []int{0, 1, 100, 16 << 10, 65_500, 65_600, 1 << 20, 3<<20 + 1, rpc.MaxMessageBytes - 100} {
		out := Request{ID: uint64(i + 1), Step: Step{Length: uint64(n)}, Payload: rpc.NewBuffer(n)}
		want := make([]byte, n)
		for j := range want {
			want[j] = byte(j * (i + 3) >> 3)
		}
		copy(out.Payload.Bytes(), want)
		sent := make(chan error, 1)
		go func() { sent <- s.Send(&out) }()
		if err := s.Recv(&in); err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if err := await.One(t, sent, "the end of sending"); err != nil || in.ID != uint64(i+1) || in.Result.Length != uint64(n) || !bytes.Equal(in.Payload.Bytes(), want) {
			t.Fatalf("%d bytes: %v, answer %d with %d", n, err, in.ID, len(in.Payload.Bytes()))
		}
		in.Payload.Free()
		in.Payload = nil
	}
	if err := s.Send(&Request{ID: 99, Step: Step{Layer: 7}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Recv(&in); status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "no more" {
		t.Errorf("got %v", err)
	}
	if err := os.Chmod(localFolder(), 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := open(); !errors.Is(err, ErrNotLocal) {
		t.Errorf("opened in a folder of others: %v", err)
	}
	if err := os.Chmod(localFolder(), 0o700); err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := OpenLocal(ended, boot[:], testLane, nil); err == nil {
		t.Error("opened for a context that has ended")
	}
}

// TestAMuteSocket: a worker that accepts and says nothing hangs, and is not one without a socket.
func TestAMuteSocket(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	listener, err := ListenLocal(t.Context(), [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	boot := [16]byte{1}
	if _, err := OpenLocal(t.Context(), boot[:], testLane, nil); !rpc.IsMute(err) || errors.Is(err, ErrNotLocal) {
		t.Errorf("got %v", err)
	}
}

// FuzzPlainAnswers reads whatever a server may send.
func FuzzPlainAnswers(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 8, 1})
	f.Add([]byte{rpc.PlainEnd, 0, 0, 0, 2, 8, 5})
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{0, 0, 1, 0x86, 0xa0, 0x1a, 0x90, 0x4e})
	f.Fuzz(func(t *testing.T, b []byte) {
		here, there := net.Pipe()
		go func() {
			_, _ = there.Write(b) // the reader may have seen enough
			_ = there.Close()
		}()
		s := &Stream{rpc.OpenPlain(t.Context(), here, func() error { return nil })}
		var in Response
		for answers := 0; ; answers++ {
			err := s.Recv(&in)
			in.Payload.Free()
			in.Payload = nil
			if err != nil {
				break
			}
			if answers > len(b) {
				t.Fatal("more answers than bytes")
			}
		}
		if err := s.CloseSend(); err != nil {
			t.Error(err)
		}
	})
}
