package jobs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"headwater.example/coordinator/jobs/internal/store"
	"headwater.example/internal/atomicfile"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// maxCrashes is how often the coordinator may crash while a job runs before the job has failed. A coordinator that is killed
// from outside has not crashed, and costs the job nothing but time.
const maxCrashes = 3

// CrashLog is the file in the data folder to which a process writes why the Go runtime ends it, so that the next one can tell
// a crash from a kill. It is the program's to give to the runtime (debug.SetCrashOutput) once the queue is open.
const CrashLog = "crash.log"

// recover reads the store, queues again what was running, and removes what belongs to no job any more. Nothing that it can
// not account for is removed.
func (q *Queue) recover() error {
	crashed, err := q.crashed()
	if err != nil {
		return err
	}
	records, damaged, err := q.store.Load()
	if err != nil {
		return err
	}
	q.jobs = newTable()
	keep := map[string]bool{} // by id: a job whose record can not be read keeps all its files
	for _, d := range damaged {
		q.Logger.Error(d.Error())
		keep[d.ID] = true
		q.after(d.ID)
	}
	for _, r := range records {
		q.after(r.Job.GetId())
		if r.Job.GetCodec() == headwaterv1.ContextCodec_CONTEXT_CODEC_UNSPECIFIED { // of before it was said of a job
			r.Job.Codec = r.Request.GetCodec()
		}
		q.resume(q.jobs.add(r), crashed)
	}
	if err := q.sweep(keep); err != nil {
		return err
	}
	q.retain()
	return nil
}

// crashed tells whether the process before this one crashed, and puts its crash log aside for people.
func (q *Queue) crashed() (bool, error) {
	path := filepath.Join(q.DataDir, CrashLog)
	stat, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && stat.Size() == 0 {
		return false, nil
	}
	aside := filepath.Join(q.DataDir, "crash.last.log")
	if err == nil {
		err = os.Rename(path, aside)
	}
	if err != nil {
		return false, fmt.Errorf("read the crash log: %w", err)
	}
	q.Logger.Error("the coordinator crashed before; a job that ran counts it", "file", aside)
	return true, nil
}

// resume queues a job again that was running when the process before ended, and fails one that can not go on. That the disk
// may have no room for it now does not matter: the next start finds the same.
func (q *Queue) resume(e *entry, crashed bool) {
	job := e.snapshot()
	var err error
	switch job.GetState() {
	case headwaterv1.JobState_JOB_STATE_RUNNING, headwaterv1.JobState_JOB_STATE_QUEUED:
	default:
		return
	}
	running := job.GetState() == headwaterv1.JobState_JOB_STATE_RUNNING
	crashes := job.GetCrashes()
	if running && crashed {
		crashes++
	}
	_, missing := os.Stat(q.store.Input(job.GetId()))
	switch {
	case errors.Is(missing, fs.ErrNotExist):
		err = q.end(e, nil, status.Errorf(codes.DataLoss, "the job's file is not in the spool any more: submit the job again"))
	case crashes >= maxCrashes:
		err = q.end(e, nil, status.Errorf(codes.Internal, "the coordinator crashed %d times while the job ran", crashes))
	case running:
		err = q.change(e, func(j *headwaterv1.Job) {
			j.State, j.Progress, j.Crashes = headwaterv1.JobState_JOB_STATE_QUEUED, nil, crashes
		})
	}
	if running || missing != nil {
		q.Logger.Info("job found unfinished", "job", job.GetId(), "state", StateName(e.snapshot().GetState()), "crashes", crashes)
	}
	if err != nil {
		q.Logger.Warn("job is taken up, but that could not be stored", "job", job.GetId(), "error", err)
	}
}

// sweep removes the files of the spool that are known to be of no use: those of ended jobs but their results, and temporary
// ones. What it does not know it leaves alone and names.
func (q *Queue) sweep(keep map[string]bool) error {
	wanted := map[string]bool{}
	for _, e := range q.jobs.all() {
		job := e.snapshot()
		wanted[job.GetId()+".job"] = true
		switch job.GetState() {
		case headwaterv1.JobState_JOB_STATE_QUEUED:
			wanted[filepath.Base(q.store.Input(job.GetId()))] = true
		case headwaterv1.JobState_JOB_STATE_SUCCEEDED:
			wanted[filepath.Base(q.store.Result(job.GetId()))] = true
		}
		keep[job.GetId()] = keep[job.GetId()] || false
	}
	files, err := os.ReadDir(q.spool())
	if err != nil {
		return fmt.Errorf("list spooled files: %w", err)
	}
	var unknown []string
	for _, f := range files {
		path := filepath.Join(q.spool(), f.Name())
		id, _ := store.Owner(f.Name())
		kept, ours := keep[id]
		switch {
		case wanted[f.Name()] || kept:
		case f.Type().IsRegular() && (ours || atomicfile.IsTemporary(path)):
			q.Logger.Info("removing left-over file", "file", f.Name())
			if err := os.Remove(path); err != nil {
				q.Logger.Warn("a left-over file can not be removed", "file", path, "error", err)
			}
		default:
			unknown = append(unknown, f.Name())
		}
	}
	if n := len(unknown); n > 0 {
		q.Logger.Warn("the spool holds files that belong to no job: they are left alone, and may be removed by hand", "folder", q.spool(), "files", n, "first", strings.Join(unknown[:min(n, 3)], " "))
	}
	return nil
}

// room notes whether there was room on the disk for what was to be done. A job for which there was none rests.
func (q *Queue) room(e *entry, err error) {
	switch {
	case err != nil:
		e.rest(time.Now().Add(q.RoomPause))
		q.showWaiting(e)
		if !q.full {
			q.Logger.Warn("the disk is full: accepted jobs wait until there is room, new ones are refused", "folder", q.DataDir, "job", e.snapshot().GetId(), "error", err)
		}
	case q.full:
		q.Logger.Info("there is room on the disk again", "folder", q.DataDir)
	}
	q.full = err != nil
}

// showWaiting shows that a job waits for room on the disk.
func (q *Queue) showWaiting(e *entry) {
	q.turn.Lock()
	defer q.turn.Unlock()
	if job := proto.CloneOf(e.snapshot()); !ended(job.GetState()) {
		job.Progress = &headwaterv1.Progress{Phase: waitsForRoom}
		e.show(job)
	}
}
