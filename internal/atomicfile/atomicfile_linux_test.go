package atomicfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// holds fails unless dir holds exactly these files.
func holds(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()] = string(b)
	}
	for name, content := range want {
		if got[name] != content {
			t.Errorf("%s holds %q, want %q", name, got[name], content)
		}
	}
	if len(got) != len(want) {
		t.Errorf("directory holds %v, want %v", got, want)
	}
}

// recorder makes the real calls, notes them, and fails at the one named.
type recorder struct {
	calls []string
	fail  string
	err   error
}

func (r *recorder) note(step string) error {
	r.calls = append(r.calls, step)
	if step == r.fail {
		return r.err
	}
	return nil
}

func (r *recorder) system(t *testing.T, target string) calls {
	do := func(step string, real func() error) error {
		if err := r.note(step); err != nil {
			return err
		}
		return real()
	}
	return calls{
		preallocate: func(f *os.File, size int64) error {
			return do("preallocate", func() error { return preallocate(f, size) })
		},
		sync: func(f *os.File) error { return do("sync", f.Sync) },
		rename: func(from, to string) error {
			if to != target || filepath.Dir(from) != filepath.Dir(target) || !IsTemporary(from) {
				t.Errorf("rename %s to %s", from, to)
			}
			return do("rename", func() error { return os.Rename(from, to) })
		},
		syncDir: func(dir string) error {
			if dir != filepath.Dir(target) {
				t.Errorf("flush of directory %s", dir)
			}
			return do("syncDir", func() error { return syncDir(dir) })
		},
	}
}

func TestCommitFlushesThenRenamesThenFlushesTheDirectory(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "context")
	var r recorder
	f, err := create(path, 4, 0o666, r.system(t, path))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{2, 0} {
		if _, err := f.WriteAt([]byte("abcd")[at:at+2], at); err != nil {
			t.Fatal(err)
		}
	}
	var p [4]byte
	if _, err := f.ReadAt(p[:], 0); err != nil || string(p[:]) != "abcd" {
		t.Fatalf("read %q %v", p, err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"preallocate", "sync", "rename", "syncDir"}; !slices.Equal(r.calls, want) {
		t.Fatalf("calls %v, want %v", r.calls, want)
	}
	if err := f.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Fatalf("second commit: %v", err)
	}
	if _, err := f.Write([]byte("x")); err == nil {
		t.Fatal("write after commit")
	}
	holds(t, dir, map[string]string{"context": "abcd"})
}

func TestFailureLeavesWhatWasThere(t *testing.T) {
	for _, step := range []string{"preallocate", "sync", "rename", "syncDir"} {
		dir := t.TempDir()
		path := filepath.Join(dir, "context")
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		r := recorder{fail: step, err: unix.ENOSPC}
		f, err := create(path, 3, 0o666, r.system(t, path))
		if err == nil {
			if _, err := f.Write([]byte("new")); err != nil {
				t.Fatal(err)
			}
			err = f.Commit()
		}
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", step, err)
		}
		want := "old"
		if step == "syncDir" {
			want = "new" // it has been renamed, and the error says so
		}
		holds(t, dir, map[string]string{"context": want})
	}
}

func TestFlushSaysWhatTheDiskRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "context")
	r := recorder{}
	f, err := create(path, 0, 0o666, r.system(t, path))
	if err != nil {
		t.Fatal(err)
	}
	// More than Write lets gather.
	piece := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for i := range 2*behind/len(piece) + 1 {
		piece[0] = byte(i)
		if n, err := f.Write(piece); n != len(piece) || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := f.Flush(); err != nil || !slices.Equal(r.calls, []string{"sync"}) {
		t.Fatal(err, r.calls)
	}
	r.fail, r.err = "sync", unix.EIO
	if err := f.Flush(); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), path) {
		t.Errorf("flush: %v", err)
	}
	r.fail = ""
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || len(got) != (2*behind/len(piece)+1)*len(piece) {
		t.Fatal(len(got), err)
	}
	for i := 0; i < len(got); i += len(piece) {
		if piece[0] = byte(i / len(piece)); !bytes.Equal(got[i:i+len(piece)], piece) {
			t.Fatalf("piece %d is another", i/len(piece))
		}
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int64{0, 10} {
		f, err := Create(filepath.Join(dir, "context"), size)
		if err != nil {
			t.Fatal(err)
		}
		if !IsTemporary(f.Name()) {
			t.Errorf("%s is not known as temporary", f.Name())
		}
		if _, err := f.Write([]byte("half")); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := f.Abort(); err != nil {
				t.Fatal(err)
			}
		}
		holds(t, dir, nil)
	}
}

func TestUnknownSizeIsWrittenInOrder(t *testing.T) {
	dir := t.TempDir()
	f, err := Create(filepath.Join(dir, strings.Repeat("n", 255)), 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := f.Write([]byte("ab")); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	holds(t, dir, map[string]string{strings.Repeat("n", 255): "ababab"})
}

func TestAnotherLengthThanAnnouncedIsRefused(t *testing.T) {
	dir := t.TempDir()
	f, err := Create(filepath.Join(dir, "context"), 4)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("abcde")); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err == nil || !strings.Contains(err.Error(), "5 bytes were written, 4 were announced") {
		t.Fatal(err)
	}
	holds(t, dir, nil)
}

func TestSpaceIsTakenAtOnce(t *testing.T) {
	f, err := Create(filepath.Join(t.TempDir(), "context"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Abort()
	var stat unix.Stat_t
	if err := unix.Stat(f.Name(), &stat); err != nil {
		t.Fatal(err)
	}
	if stat.Size != 1<<20 || stat.Blocks*512 < 1<<20 {
		t.Fatalf("size %d, %d blocks", stat.Size, stat.Blocks)
	}
}

func TestFullDiskIsSaidAtCreate(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err == nil {
		t.Cleanup(func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		})
		f, err := Create(filepath.Join(dir, "context"), 2<<20)
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("%v %v", f, err)
		}
		holds(t, dir, nil)
	} else {
		t.Logf("no file system of its own for a full disk (%v): only the size beyond any disk", err)
	}
	_, err := Create(filepath.Join(dir, "context"), 1<<60)
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EFBIG) {
		t.Fatal(err)
	}
	holds(t, dir, nil)
}

func TestFileSystemWithoutPreallocationIsAskedForItsRoom(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := extend(f, 1<<62); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err := extend(f, 100); err != nil {
		t.Fatal(err)
	}
	if stat, err := f.Stat(); err != nil || stat.Size() != 100 {
		t.Fatal(stat, err)
	}
}

func TestTargetsThatCanNotBeReplaced(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "directory"):          "not a regular file",
		filepath.Join(dir, "missing", "context"): "no such file or directory",
		"/dev/null":                              "not a regular file",
		"/proc/context":                          "create /proc/context: ",
		"":                                       "no name of a file",
		dir + "/new/":                            "no name of a file",
	} {
		f, err := Create(path, 3)
		if err == nil {
			f.Abort()
			t.Errorf("%q was created", path)
		} else if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), marker) {
			t.Errorf("%q: %v, want %q", path, err, want)
		}
	}
	if _, err := Create(filepath.Join(dir, "x"), -1); err == nil {
		t.Error("negative size was taken")
	}
}

func TestSymbolicLinkKeepsItsPlace(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	target, link := filepath.Join(elsewhere, "target"), filepath.Join(dir, "link")
	if err := os.WriteFile(target, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	f, err := Create(link, 3)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(link); err != nil || to != target {
		t.Fatalf("link leads to %q %v", to, err)
	}
	holds(t, elsewhere, map[string]string{"target": "new"})
}

// TestTheTargetOfADanglingLinkIsMade, over several links and from another folder.
func TestTheTargetOfADanglingLinkIsMade(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	for link, to := range map[string]string{
		filepath.Join(dir, "first"): filepath.Join(elsewhere, "second"), filepath.Join(elsewhere, "second"): "third",
	} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Create(filepath.Join(dir, "first"), 3)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(filepath.Join(dir, "first")); err != nil || to != filepath.Join(elsewhere, "second") {
		t.Errorf("the first link leads to %q %v", to, err)
	}
	holds(t, elsewhere, map[string]string{"second": "new", "third": "new"}) // second is a link to third
	if err := os.Symlink(filepath.Join(dir, "none", "file"), filepath.Join(dir, "nowhere")); err != nil {
		t.Fatal(err)
	}
	if f, err := Create(filepath.Join(dir, "nowhere"), 3); err == nil {
		f.Abort()
		t.Error("a file in no folder was made")
	}
}

func TestOrdinaryNamesAreNotTemporary(t *testing.T) {
	for _, name := range []string{"context", ".context", "context.headwater-1", ".context.headwater-", ".context.headwater-A B", ""} {
		if IsTemporary(name) {
			t.Errorf("%q", name)
		}
	}
}

func TestRelativePathsAndRewrites(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	var want bytes.Buffer
	for range 2 {
		want.WriteString("x")
		f, err := Create("context", int64(want.Len()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(want.Bytes()); err != nil {
			t.Fatal(err)
		}
		if err := f.Commit(); err != nil {
			t.Fatal(err)
		}
		holds(t, dir, map[string]string{"context": want.String()})
	}
}
