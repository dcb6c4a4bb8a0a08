package submitters

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"headwater.example/client"
	"headwater.example/internal/atomicfile"
	"headwater.example/internal/testkit/jump"
)

// disturb lets one bad thing happen after the other, until ctx ends.
func (r *run) disturb(ctx context.Context) error {
	random := rand.New(rand.NewPCG(r.config.Seed, 2))
	for ctx.Err() == nil {
		wait(ctx, time.Duration(100+random.IntN(600))*time.Millisecond)
		full, kill, tear := random.IntN(2) == 0, random.IntN(2) == 0, random.IntN(3) > 0
		length := time.Duration(random.IntN(1500)) * time.Millisecond
		if err := r.jump(random); err != nil {
			return err
		}
		if err := r.fault(ctx, random, full && r.config.Disk != nil, kill, tear, length); err != nil {
			return err
		}
	}
	return nil
}

// jump sets the coordinator's clock, and that of the next one, forth or back by up to an hour.
func (r *run) jump(random *rand.Rand) error {
	if r.config.Clocks == nil {
		return nil
	}
	r.tally.jumps.Add(1)
	now, next := jump.Somewhere(random), jump.Somewhere(random)
	return errors.Join(r.config.Clocks.Set(r.cluster.Process(-1), now), r.config.Clocks.SetNew(next))
}

// fault fills the disk, kills the coordinator and changes a file, as it is told; or else stops the coordinator for a while.
func (r *run) fault(ctx context.Context, random *rand.Rand, full, kill, tear bool, length time.Duration) (err error) {
	if full {
		r.tally.fills.Add(1)
		free, err := fill(r.data, random.Int64N(3)*random.Int64N(100_000))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, free()) }()
		wait(ctx, length)
	}
	switch {
	case kill:
		return r.kill(ctx, random, tear, length/3)
	case full:
		return nil
	}
	r.tally.stops.Add(1)
	id := r.cluster.Process(-1)
	if err := syscall.Kill(id, syscall.SIGSTOP); err != nil {
		return err
	}
	wait(ctx, length)
	return syscall.Kill(id, syscall.SIGCONT)
}

// fill leaves a disk a number of bytes at most. The function that it returns frees the disk.
func fill(folder string, spare int64) (free func() error, _ error) {
	path := filepath.Join(folder, "ballast")
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	var written int64
	for size := 1 << 20; size > 0; {
		n, err := f.Write(make([]byte, size))
		written += int64(n)
		if errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	err = errors.Join(f.Truncate(max(written-spare, 0)), f.Close())
	return func() error { return os.Remove(path) }, err
}

// kill kills the coordinator, changes one of its newest files if it is told to, and starts it again.
func (r *run) kill(ctx context.Context, random *rand.Rand, tear bool, length time.Duration) error {
	r.tally.kills.Add(1)
	r.cluster.KillCoordinator()
	var t *torn
	if tear {
		var err error
		if t, err = r.tear(random); err != nil {
			return err
		}
	}
	wait(ctx, length)
	r.log.forget()
	restarting, cancel := context.WithTimeout(context.WithoutCancel(ctx), settled)
	defer cancel()
	if err := r.cluster.RestartCoordinator(restarting); err != nil {
		return err
	}
	if err := r.cluster.AwaitWorkers(restarting); err != nil {
		return err
	}
	if t == nil {
		return nil
	}
	if err := r.said(restarting, t); err != nil {
		return fmt.Errorf("%s was %s while the coordinator was dead: %w", t.path, t.how, err)
	}
	return nil
}

// torn is a file that was changed.
type torn struct {
	path, how string
	left      []byte            // what it has now
	id        string            // of the job whose record it is, or ""
	files     map[string][]byte // those of that job, by path
}

// tear cuts one of the newest files, or changes a bit of it, as a write that did not come to its end, or a disk, may leave it.
func (r *run) tear(random *rand.Rand) (*torn, error) {
	paths, err := newest(filepath.Join(r.data, "jobs"), filepath.Join(r.data, "workers.json"))
	if err != nil || len(paths) == 0 {
		return nil, err
	}
	t := &torn{path: paths[random.IntN(min(len(paths), 4))]}
	b, err := os.ReadFile(t.path)
	if err != nil || len(b) == 0 {
		return nil, err
	}
	at := random.IntN(len(b))
	if random.IntN(2) == 0 {
		t.how, b = fmt.Sprintf("cut to %d of %d bytes", at, len(b)), b[:at]
	} else {
		t.how = fmt.Sprintf("changed in byte %d of %d", at, len(b))
		b[at] ^= 1 << random.IntN(8)
	}
	// The file is changed in its place, which needs no room.
	f, err := os.OpenFile(t.path, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteAt(b, 0)
	if err := errors.Join(err, f.Truncate(int64(len(b))), f.Close()); err != nil {
		return nil, err
	}
	r.tally.torn.Add(1)
	t.left = b
	return t, r.blame(t)
}

// blame notes which job a file that was changed belongs to.
func (r *run) blame(t *torn) error {
	name := filepath.Base(t.path)
	if atomicfile.IsTemporary(t.path) {
		return nil
	}
	if id, ok := strings.CutSuffix(name, ".job"); ok {
		t.id = id
		r.history.leaveOut(id)
		r.tally.leftOut.Add(1)
		var err error
		t.files, err = filesOf(filepath.Dir(t.path), id)
		return err
	}
	for _, end := range []string{".result.safetensors", ".safetensors"} {
		if id, ok := strings.CutSuffix(name, end); ok {
			r.history.damage(id)
			r.tally.damaged.Add(1)
			break
		}
	}
	return nil
}

// newest are the files of a folder, and some others, the newest first.
func newest(folder string, others ...string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	paths := others
	for _, e := range entries {
		paths = append(paths, filepath.Join(folder, e.Name()))
	}
	times := map[string]time.Time{}
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			times[path] = info.ModTime()
		}
	}
	paths = slices.DeleteFunc(paths, func(path string) bool { _, there := times[path]; return !there })
	slices.SortStableFunc(paths, func(a, b string) int { return times[b].Compare(times[a]) })
	return paths, nil
}

// filesOf are the files of a job.
func filesOf(folder, id string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, end := range []string{".job", ".safetensors", ".result.safetensors"} {
		b, err := os.ReadFile(filepath.Join(folder, id+end))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files[filepath.Join(folder, id+end)] = b
	}
	return files, nil
}

// said checks what the coordinator says of a file that was changed before its start, and takes a record that is damaged out of its
// way, as the line says.
func (r *run) said(ctx context.Context, t *torn) error {
	if filepath.Base(t.path) == "workers.json" {
		return r.saidOfWorkers(t)
	}
	if t.id == "" {
		return nil
	}
	found := r.log.lines(t.path + " is damaged")
	if len(found) != 1 || !strings.Contains(found[0], t.id+".safetensors beside it is the job, to be submitted again") {
		return fmt.Errorf("the log says of it: %q", found)
	}
	c, err := client.Dial(r.cluster.Address())
	if err != nil {
		return err
	}
	defer c.Close()
	if job, err := c.Get(ctx, t.id); !errors.Is(err, client.ErrNotFound) {
		return fmt.Errorf("its job is there: %+v, %w", job, err)
	}
	for path, before := range t.files {
		now, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(now, before) {
			return fmt.Errorf("%s is another file now", path)
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// saidOfWorkers checks that one line says that the workers of before are not known, where that is so.
func (r *run) saidOfWorkers(t *torn) error {
	found := r.log.lines("workers before this start are not known")
	if !json.Valid(t.left) && len(found) != 1 {
		return fmt.Errorf("the log says of it: %q", found)
	}
	return nil
}
