package session

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
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
