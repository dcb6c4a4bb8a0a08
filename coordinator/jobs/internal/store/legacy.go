package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/proto"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// The buckets of the database that older versions kept jobs in, by id.
var (
	bucketJobs     = []byte("jobs")     // Job
	bucketRequests = []byte("requests") // SubmitBegin, without the header
)

// adopt writes the jobs of an older version's database as records, if there is one, and puts it aside.
func (s *Store) adopt(path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	records, err := readDatabase(path)
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("job database %s is in use by another coordinator", path)
	}
	if err != nil {
		return fmt.Errorf("job database %s of an older version can not be read: %s; nothing was changed. Move it away to start without its jobs: their own files in %s are kept, X.safetensors being a job to be submitted again and X.result.safetensors its result", path, oneLine(err), s.folder)
	}
	for _, r := range records {
		if err := s.Put(r); err != nil {
			return err
		}
	}
	if err := os.Rename(path, path+".imported"); err != nil {
		return fmt.Errorf("put the older job database aside: %w", err)
	}
	return nil
}

// readDatabase reads a database that may be damaged in any way: a page that is not there faults, and one that is wrong makes
// bbolt panic.
func readDatabase(path string) (records []Record, err error) {
	stat, err := os.Stat(path)
	if err == nil && stat.Size() == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() { // a goroutine of its own, since faults are made panics of by goroutine
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				records, err = nil, fmt.Errorf("it is damaged: %v", p)
			}
		}()
		debug.SetPanicOnFault(true)
		records, err = scanDatabase(path)
	}()
	<-done
	return records, err
}

func scanDatabase(path string) (records []Record, err error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.View(func(tx *bbolt.Tx) error {
		jobs, requests := tx.Bucket(bucketJobs), tx.Bucket(bucketRequests)
		if jobs == nil || requests == nil {
			return errors.New("it is not a coordinator's")
		}
		// bbolt's own check runs where its panics end the process. Each job has a request: that one is missing is found so.
		if j, r := jobs.Stats().KeyN, requests.Stats().KeyN; j != r {
			return fmt.Errorf("it has %d jobs and %d requests", j, r)
		}
		return jobs.ForEach(func(id, value []byte) error {
			r := Record{Job: &headwaterv1.Job{}, Request: &headwaterv1.SubmitBegin{}}
			if err := proto.Unmarshal(value, r.Job); err != nil {
				return fmt.Errorf("job %q: %w", id, err)
			}
			request := requests.Get(id)
			if request == nil {
				return fmt.Errorf("job %q has no request", id)
			}
			if err := proto.Unmarshal(request, r.Request); err != nil {
				return fmt.Errorf("request of job %q: %w", id, err)
			}
			if r.Job.GetId() != string(id) {
				return fmt.Errorf("job %q is kept under %q", r.Job.GetId(), id)
			}
			records = append(records, r)
			return nil
		})
	})
	return records, err
}
