// Package store keeps a coordinator's jobs durably, in one bbolt file: the job as clients see it and the request that made
// it. Every change is one transaction, on disk when the call returns.
//
// bbolt, because jobs change a few times a second at most and must survive kill -9 at any instant: a single file, one
// writer, copy-on-write pages and an fsync for each transaction are just that, with nothing to recover at start.
package store

import (
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/proto"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// lockWait is how long Open waits for another process to let the file go.
const lockWait = 2 * time.Second

var (
	bucketJobs     = []byte("jobs")     // id -> Job
	bucketRequests = []byte("requests") // id -> SubmitBegin, without the header
)

// Record is one job and the request that made it.
type Record struct {
	Job     *headwaterv1.Job
	Request *headwaterv1.SubmitBegin
}

// Store is the file. It is safe for concurrent use.
type Store struct{ db *bbolt.DB }

// Open opens or makes the file at path. A file that another process holds is an error after two seconds.
func Open(path string) (*Store, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("job store %s is in use by another coordinator", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open job store %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketJobs, bucketRequests} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare job store %s: %w", path, err), db.Close())
	}
	return &Store{db: db}, nil
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }

// Load returns all records, oldest first (ids ascend with time).
func (s *Store) Load() ([]Record, error) {
	var records []Record
	err := s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketJobs).ForEach(func(id, value []byte) error {
			r := Record{Job: &headwaterv1.Job{}, Request: &headwaterv1.SubmitBegin{}}
			if err := proto.Unmarshal(value, r.Job); err != nil {
				return fmt.Errorf("read job %s: %w", id, err)
			}
			if err := proto.Unmarshal(tx.Bucket(bucketRequests).Get(id), r.Request); err != nil {
				return fmt.Errorf("read request of job %s: %w", id, err)
			}
			records = append(records, r)
			return nil
		})
	})
	return records, err
}

// Add stores a new job with its request.
func (s *Store) Add(r Record) error {
	return s.update(r.Job.GetId(), func(tx *bbolt.Tx) error {
		return errors.Join(put(tx, bucketJobs, r.Job.GetId(), r.Job), put(tx, bucketRequests, r.Job.GetId(), r.Request))
	})
}

// Put stores a job anew.
func (s *Store) Put(job *headwaterv1.Job) error {
	return s.update(job.GetId(), func(tx *bbolt.Tx) error { return put(tx, bucketJobs, job.GetId(), job) })
}

// Delete forgets a job.
func (s *Store) Delete(id string) error {
	return s.update(id, func(tx *bbolt.Tx) error {
		return errors.Join(tx.Bucket(bucketJobs).Delete([]byte(id)), tx.Bucket(bucketRequests).Delete([]byte(id)))
	})
}

func (s *Store) update(id string, change func(*bbolt.Tx) error) error {
	if err := s.db.Update(change); err != nil {
		return fmt.Errorf("store job %s: %w", id, err)
	}
	return nil
}

func put(tx *bbolt.Tx, bucket []byte, id string, m proto.Message) error {
	value, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return tx.Bucket(bucket).Put([]byte(id), value)
}
