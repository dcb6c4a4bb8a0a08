package coordinator_test

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
)

// flip changes one bit in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)*3/4] ^= 4
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// spooled is the path of a file of a job.
func spooled(data string, job *client.Job, suffix string) string {
	return filepath.Join(data, "jobs", job.ID+suffix)
}

// TestFlippedBitInTheSpoolIsNoResult: a job whose file changed while it waited fails as damaged, and runs again when it is
// submitted again.
func TestFlippedBitInTheSpoolIsNoResult(t *testing.T) {
	h, data := newHeld(), t.TempDir()
	c := startCluster(t, clusterOptions{workers: []workerOptions{{stream: h.intercept}}, config: coordinator.Config{DataDir: data}})
	path := variety(t)
	first, err := c.Submit(t.Context(), client.SubmitOptions{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	await.One(t, h.arrived, "the job's first answer, at the worker")
	second, err := c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	flip(t, spooled(data, second, ".safetensors"))
	close(h.release)
	if _, err := c.Wait(t.Context(), first.ID, nil); err != nil {
		t.Fatal(err)
	}
	job, err := c.Wait(t.Context(), second.ID, nil)
	if err == nil || codes.Code(job.ErrorCode) != codes.DataLoss || !strings.Contains(job.Error, "changed on the coordinator's disk") {
		t.Fatalf("%v, %v", job, err)
	}
	_, got := c.run(t, client.SubmitOptions{Path: path, Key: "k"})
	same(t, "submitted again", c.fetch(t, first.ID), got)
}

// TestFlippedBitInAResultIsNotSent, not even in part; and the key runs the job again.
func TestFlippedBitInAResultIsNotSent(t *testing.T) {
	data := t.TempDir()
	c := startCluster(t, clusterOptions{workers: workers(1), config: coordinator.Config{DataDir: data}})
	path := variety(t)
	job, want := c.run(t, client.SubmitOptions{Path: path, Key: "k"})
	flip(t, spooled(data, job, ".result.safetensors"))
	out := filepath.Join(t.TempDir(), "out")
	received := false
	_, err := c.Download(t.Context(), "k", out, func(int64, int64) { received = true })
	if status.Code(unwrapAll(err)) != codes.DataLoss || received {
		t.Fatalf("%v, received %t", err, received)
	}
	again, got := c.run(t, client.SubmitOptions{Path: path, Key: "k"})
	if again.ID != job.ID {
		t.Errorf("%v", again)
	}
	same(t, "submitted again", want, got)
}

// lines is a log that a test reads while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// of returns the lines that contain a text.
func (l *lines) of(text string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

// TestDamagedSpoolDoesNotStopTheStart: a record that can not be read is one line that names it and costs its job alone; what
// is unknown, a folder among it, is left alone; nothing is removed.
func TestDamagedSpoolDoesNotStopTheStart(t *testing.T) {
	data := t.TempDir()
	c := startCluster(t, clusterOptions{workers: workers(1), config: coordinator.Config{DataDir: data}})
	path := variety(t)
	damaged, _ := c.run(t, client.SubmitOptions{Path: path})
	sound, want := c.run(t, client.SubmitOptions{Path: path})
	c.stop()
	flip(t, spooled(data, damaged, ".job"))
	if err := errors.Join(os.Mkdir(filepath.Join(data, "jobs", "folder"), 0o700), os.WriteFile(filepath.Join(data, "jobs", "coord-0.result.safetensors"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	var log lines
	c.start(t, coordinator.Config{DataDir: data, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	same(t, "the other job", want, c.fetch(t, sound.ID))
	if found := log.of(spooled(data, damaged, ".job")); len(found) != 1 || !strings.Contains(found[0], "damaged") {
		t.Errorf("%q", found)
	}
	for _, name := range []string{damaged.ID + ".job", damaged.ID + ".result.safetensors", "folder", "coord-0.result.safetensors"} {
		if _, err := os.Stat(filepath.Join(data, "jobs", name)); err != nil {
			t.Error(err)
		}
	}
}

// copyData copies a data folder as a kill at this moment would leave it.
func copyData(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "data")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestKillsOfTheCoordinatorCostNoJob, however many: it ran each time, and ends with its bits.
func TestKillsOfTheCoordinatorCostNoJob(t *testing.T) {
	h, data := newHeld(), t.TempDir()
	path := variety(t)
	_, want := startCluster(t, clusterOptions{workers: workers(1)}).run(t, client.SubmitOptions{Path: path})
	c := startCluster(t, clusterOptions{workers: []workerOptions{{stream: h.intercept}}, config: coordinator.Config{DataDir: data}})
	job, err := c.Submit(t.Context(), client.SubmitOptions{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		await.One(t, h.arrived, "the job's first answer, at the worker")
		data = copyData(t, data)
		c.stop()
		c.start(t, coordinator.Config{DataDir: data})
	}
	close(h.release)
	if job, err = c.Wait(t.Context(), job.ID, nil); err != nil || job.Crashes != 0 {
		t.Fatalf("%v, %v", job, err)
	}
	same(t, "after five kills", want, c.fetch(t, job.ID))
}

// TestJobThatCrashesItsCoordinatorIsNotRunForEver: what the Go runtime wrote when it ended the process tells a crash.
func TestJobThatCrashesItsCoordinatorIsNotRunForEver(t *testing.T) {
	h, data := newHeld(), t.TempDir()
	c := startCluster(t, clusterOptions{workers: []workerOptions{{stream: h.intercept}}, config: coordinator.Config{DataDir: data}})
	job, err := c.Submit(t.Context(), client.SubmitOptions{Path: variety(t)})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		await.One(t, h.arrived, "the job's first answer, at the worker")
		data = copyData(t, data)
		if err := os.WriteFile(filepath.Join(data, "crash.log"), []byte("fatal error: out of memory\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.stop()
		c.start(t, coordinator.Config{DataDir: data})
	}
	close(h.release)
	job, err = c.Wait(t.Context(), job.ID, nil)
	if err == nil || job.State != client.JobFailed || !strings.Contains(job.Error, "crashed 3 times") {
		t.Fatalf("%v, %v", job, err)
	}
}

// smallDisk is a folder on a file system of its own.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("no file system of its own: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill leaves no room on a disk; the file that it returns gives it back when it is removed.
func fill(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestFullDiskRefusesNewJobsAndKeepsAccepted: also at the start of a coordinator; and goes on by itself once there is room.
func TestFullDiskRefusesNewJobsAndKeepsAccepted(t *testing.T) {
	path := variety(t)
	_, want := startCluster(t, clusterOptions{workers: workers(1)}).run(t, client.SubmitOptions{Path: path})
	data := smallDisk(t, "16m")
	h := newHeld()
	var log lines
	config := coordinator.Config{DataDir: data, RoomPause: 10 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	c := startCluster(t, clusterOptions{workers: []workerOptions{{stream: h.intercept}}, config: config})
	ids := c.two(t, path, h)
	ballast := fill(t, data)
	_, err := c.Submit(t.Context(), client.SubmitOptions{Path: path})
	if status.Code(unwrapAll(err)) != codes.ResourceExhausted || !strings.Contains(err.Error(), "disk is full") || strings.Contains(err.Error(), "\n") {
		t.Fatalf("a new job: %v", err)
	}
	if found := log.of("submission refused"); len(found) != 1 || !strings.Contains(found[0], "level=WARN") {
		t.Errorf("%q", found)
	}
	c.stop()
	c.start(t, config)
	close(h.release)
	waits := make(chan struct{})
	go func() {
		defer close(waits)
		_, _ = c.Watch(t.Context(), ids[0], func(job *client.Job) {
			if strings.Contains(job.Progress.Phase, "waiting for room") && ballast != "" {
				if err := os.Remove(ballast); err != nil {
					t.Error(err)
				}
				ballast = ""
			}
		})
	}()
	for _, id := range ids {
		if _, err := c.Wait(t.Context(), id, nil); err != nil {
			t.Fatal(err)
		}
		same(t, id, want, c.fetch(t, id))
	}
	await.One(t, waits, "the end of the watch")
	if ballast != "" {
		t.Error("no job has waited for room")
	}
	if found := log.of("the disk is full: "); len(found) != 1 {
		t.Errorf("%q", found)
	}
	if found := log.of("there is room on the disk again"); len(found) != 1 {
		t.Errorf("%q", found)
	}
}

// TestACancellationOnAFullDiskWaitsForRoom: the job of which nothing can be stored has ended once there is room, and never runs.
func TestACancellationOnAFullDiskWaitsForRoom(t *testing.T) {
	path, data, h := variety(t), smallDisk(t, "16m"), newHeld()
	config := coordinator.Config{DataDir: data, RoomPause: 10 * time.Millisecond}
	c := startCluster(t, clusterOptions{workers: []workerOptions{{stream: h.intercept}}, config: config})
	ids := c.two(t, path, h)
	// That its file is removed gives no room, as if somebody else took it at once.
	if err := os.Link(filepath.Join(data, "jobs", ids[1]+".safetensors"), filepath.Join(data, "other")); err != nil {
		t.Fatal(err)
	}
	ballast := fill(t, data)
	cancelled := make(chan error, 1)
	go func() {
		_, err := c.Cancel(t.Context(), ids[1])
		cancelled <- err
	}()
	await.That(t, "the beginning of the cancellation", func() bool {
		_, err := os.Stat(filepath.Join(data, "jobs", ids[1]+".safetensors"))
		return errors.Is(err, fs.ErrNotExist)
	})
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	close(h.release)
	if err := await.One(t, cancelled, "the end of the cancellation"); err != nil {
		t.Error(err)
	}
	if job, err := c.Get(t.Context(), ids[1]); err != nil || job.State != client.JobCancelled {
		t.Errorf("%+v, %v", job, err)
	}
	if _, err := c.Wait(t.Context(), ids[0], nil); err != nil {
		t.Error(err)
	}
}

// TestTheListOfWorkersIsKeptOnceThereIsRoom, although the cluster has not changed since.
func TestTheListOfWorkersIsKeptOnceThereIsRoom(t *testing.T) {
	data := smallDisk(t, "1m")
	config := coordinator.Config{DataDir: data, RoomPause: 10 * time.Millisecond}
	c := startCluster(t, clusterOptions{workers: workers(1), config: config})
	c.stop()
	list := filepath.Join(data, "workers.json")
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}
	ballast := fill(t, data)
	var log lines
	config.Logger = slog.New(slog.NewTextHandler(&log, nil))
	c.start(t, config)
	await.That(t, "the warning that the workers are not kept", func() bool { return len(log.of("are not kept for the next start")) > 0 })
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	await.That(t, "the list of workers on the disk", func() bool {
		_, err := os.Stat(list)
		return err == nil
	})
	if found := log.of("are not kept for the next start"); len(found) != 1 {
		t.Errorf("%q", found)
	}
}

// TestAnnouncedBytesAreNotTaken: an upload has of the disk what has come; it ends at once when it is cancelled, and by itself
// when nothing comes.
func TestAnnouncedBytesAreNotTaken(t *testing.T) {
	data := t.TempDir()
	m := newMaker(1)
	m.f32("q", 1, 1, 2, 16)
	m.f32("k", 1, 100_000, 2, 16)
	m.f32("v", 1, 100_000, 2, 16)
	file, err := os.ReadFile(m.write(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	header, err := tensor.HeaderBytes(bytes.NewReader(file), int64(len(file)), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	c := startCluster(t, clusterOptions{workers: workers(1), config: coordinator.Config{DataDir: data}})
	begin := func() (headwaterv1.CoordinatorService_SubmitClient, *headwaterv1.Job) {
		t.Helper()
		stream, err := headwaterv1.NewCoordinatorServiceClient(c.raw(t)).Submit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&headwaterv1.SubmitRequest{Request: &headwaterv1.SubmitRequest_Begin{Begin: &headwaterv1.SubmitBegin{
			Name: "job.safetensors", SizeBytes: uint64(len(file)), Header: header, Codec: headwaterv1.ContextCodec_CONTEXT_CODEC_EXACT,
		}}}); err != nil {
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		if err != nil || !resp.GetSend() {
			t.Fatal(resp, err)
		}
		return stream, resp.GetJob()
	}
	stream, job := begin()
	if err := stream.Send(&headwaterv1.SubmitRequest{Request: &headwaterv1.SubmitRequest_Data{Data: file[:5000]}}); err != nil {
		t.Fatal(err)
	}
	var taken int64
	err = filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		var stat syscall.Stat_t
		if err == nil && !d.IsDir() && syscall.Stat(path, &stat) == nil {
			taken += stat.Blocks * 512
		}
		return nil
	})
	if err != nil || taken > 1<<20 {
		t.Errorf("%d bytes are taken of the disk, %v", taken, err)
	}
	if cancelled, err := c.Cancel(t.Context(), job.GetId()); err != nil || cancelled.State != client.JobCancelled {
		t.Fatalf("%v, %v", cancelled, err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("the upload that was cancelled: %v", err)
	}
	c.stop()
	c.start(t, coordinator.Config{DataDir: data, UploadStall: 50 * time.Millisecond})
	stream, _ = begin()
	if _, err := stream.Recv(); status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "stalled") {
		t.Errorf("the upload that stalls: %v", err)
	}
	if jobs, err := c.List(t.Context()); err != nil || len(jobs) != 0 {
		t.Errorf("%v, %v", jobs, err)
	}
}
