// Package store keeps a coordinator's jobs durably: one file for each job beside the job's own files, with the job as
// clients see it, the request that made it, and what is known of its files' bytes.
//
// A record is written whole to a temporary file, flushed, and renamed into its place, so that a crash or a loss of power
// leaves the record of before or the new one. It ends with a checksum of all of it: a record that was cut or changed on the
// disk is never taken for another. Damage to one record costs that job alone, and the job's own files, which are ordinary
// safetensors files of the same name, are the way back.
//
// A database in one file would be less to write. But none at hand has checksums of its pages, a cut file ends a process that
// maps it into memory, and one damaged page takes all jobs with it; and jobs change a few times a second at most.
package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/proto"

	"headwater.example/internal/atomicfile"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

const (
	// suffix is that of a record's file, deleted that of one whose job is being forgotten.
	suffix  = ".job"
	deleted = ".deleted"
	// magic begins a record; its last byte is the version of the format.
	magic = "HWJOB\x00\x00\x01"
	// head is what is before the job: magic, two hashes, two lengths; then come the job, the request, and 8 bytes of checksum.
	head = len(magic) + 8 + 8 + 4 + 4
	// maxRecord bounds what is read of a file.
	maxRecord = 64 << 20
	// lockWait is how long Open waits for another process to let the folder go.
	lockWait = 2 * time.Second
)

// Record is one job, the request that made it, and the xxh3 sums of its files' bytes, 0 if they are not known.
type Record struct {
	Job        *headwaterv1.Job
	Request    *headwaterv1.SubmitBegin
	InputHash  uint64
	ResultHash uint64
}

// DamagedError is a record that can not be read. Its file is left as it is.
type DamagedError struct {
	Path string
	ID   string // of the job
	Why  string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("job record %s is damaged: %s; the job is left out, and its files are kept: %s.safetensors beside it is the job, to be submitted again, and %s.result.safetensors its result; remove the record when they are safe",
		e.Path, e.Why, e.ID, e.ID)
}

// Store is a folder of records. Its methods may be called at the same time for different jobs.
type Store struct {
	folder string
	lock   *os.File
}

// Open opens the store in a folder, and locks it by a file in the folder above. A folder that another process holds is an
// error after two seconds. If there is a database of an older version above it, its jobs become records first.
func Open(folder string) (*Store, error) {
	above := filepath.Dir(folder)
	lock, err := lockFile(filepath.Join(above, "lock"), lockWait)
	if err != nil {
		return nil, err
	}
	s := &Store{folder: folder, lock: lock}
	if err := s.adopt(filepath.Join(above, "jobs.db")); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

// Close lets the folder go.
func (s *Store) Close() error { return s.lock.Close() }

// Load reads all records, oldest first (ids ascend with time), and finishes deletions that were interrupted. Records that
// can not be read are among the damaged.
func (s *Store) Load() (records []Record, damaged []*DamagedError, err error) {
	files, err := os.ReadDir(s.folder)
	if err != nil {
		return nil, nil, fmt.Errorf("list job records: %w", err)
	}
	for _, f := range files {
		if id, ok := strings.CutSuffix(f.Name(), deleted); ok && f.Type().IsRegular() {
			if err := s.forget(id); err != nil {
				return nil, nil, err
			}
		}
		id, ok := strings.CutSuffix(f.Name(), suffix)
		if !ok || f.IsDir() {
			continue
		}
		record, why := s.read(id)
		if why != nil {
			damaged = append(damaged, &DamagedError{Path: s.path(id), ID: id, Why: oneLine(why)})
			continue
		}
		records = append(records, record)
	}
	slices.SortFunc(records, func(a, b Record) int { return strings.Compare(a.Job.GetId(), b.Job.GetId()) })
	return records, damaged, nil
}

func (s *Store) path(id string) string { return filepath.Join(s.folder, id+suffix) }

// Input and Result are the paths of a job's own files.
func (s *Store) Input(id string) string { return filepath.Join(s.folder, id+".safetensors") }

// Result is the path of a job's result.
func (s *Store) Result(id string) string { return filepath.Join(s.folder, id+".result.safetensors") }

// read returns a job's record, or why it can not be read.
func (s *Store) read(id string) (Record, error) {
	stat, err := os.Stat(s.path(id))
	if err == nil && stat.Size() > maxRecord {
		err = fmt.Errorf("it has %d bytes, at most %d are read", stat.Size(), maxRecord)
	}
	if err != nil {
		return Record{}, err
	}
	b, err := os.ReadFile(s.path(id))
	if err != nil {
		return Record{}, err
	}
	r, err := decode(b)
	if err == nil && r.Job.GetId() != id {
		err = fmt.Errorf("it holds job %q", r.Job.GetId())
	}
	return r, err
}

// Put stores a record. It is on disk when the call returns.
func (s *Store) Put(r Record) error {
	b, err := encode(r)
	if err != nil {
		return fmt.Errorf("store job %s: %w", r.Job.GetId(), err)
	}
	f, err := atomicfile.Create(s.path(r.Job.GetId()), int64(len(b)))
	if err != nil {
		return fmt.Errorf("store job %s: %w", r.Job.GetId(), err)
	}
	if _, err = f.WriteAt(b, 0); err == nil {
		err = f.Commit()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("store job %s: %w", r.Job.GetId(), err), f.Abort())
	}
	return nil
}

// Delete forgets a job and removes its files. A deletion that is interrupted is finished by the next Load.
func (s *Store) Delete(id string) error {
	err := os.Rename(s.path(id), filepath.Join(s.folder, id+deleted))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete job %s: %w", id, err)
	}
	return s.forget(id)
}

// forget removes a job's files, and the mark of its deletion last.
func (s *Store) forget(id string) error {
	for _, path := range []string{s.Input(id), s.Result(id), filepath.Join(s.folder, id+deleted)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete job %s: %w", id, err)
		}
	}
	return nil
}

// Owner returns the id of the job that a file in the folder belongs to by its name.
func Owner(name string) (id string, ok bool) {
	for _, end := range []string{".result.safetensors", ".safetensors", suffix} {
		if id, ok := strings.CutSuffix(name, end); ok {
			return id, true
		}
	}
	return "", false
}

func encode(r Record) ([]byte, error) {
	job, err := proto.Marshal(r.Job)
	if err != nil {
		return nil, err
	}
	request, err := proto.Marshal(r.Request)
	if err != nil {
		return nil, err
	}
	if head+len(job)+len(request)+8 > maxRecord {
		return nil, fmt.Errorf("a record has %d bytes, and at most %d are stored", len(job)+len(request), maxRecord)
	}
	b := append(make([]byte, 0, head+len(job)+len(request)+8), magic...)
	b = binary.LittleEndian.AppendUint64(b, r.InputHash)
	b = binary.LittleEndian.AppendUint64(b, r.ResultHash)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(job)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(request)))
	b = append(append(b, job...), request...)
	return binary.LittleEndian.AppendUint64(b, xxh3.Hash(b)), nil
}

func decode(b []byte) (Record, error) {
	switch {
	case len(b) < head+8:
		return Record{}, fmt.Errorf("it ends after %d bytes", len(b))
	case xxh3.Hash(b[:len(b)-8]) != binary.LittleEndian.Uint64(b[len(b)-8:]):
		return Record{}, errors.New("its checksum is wrong")
	case string(b[:len(magic)]) != magic:
		return Record{}, errors.New("it is not a job record of this version")
	}
	r := Record{Job: &headwaterv1.Job{}, Request: &headwaterv1.SubmitBegin{}}
	at := len(magic)
	r.InputHash, r.ResultHash = binary.LittleEndian.Uint64(b[at:]), binary.LittleEndian.Uint64(b[at+8:])
	job, request := uint64(binary.LittleEndian.Uint32(b[at+16:])), uint64(binary.LittleEndian.Uint32(b[at+20:]))
	rest := b[head : len(b)-8]
	if job+request != uint64(len(rest)) {
		return Record{}, fmt.Errorf("it has %d bytes for a job of %d and a request of %d", len(rest), job, request)
	}
	if err := proto.Unmarshal(rest[:job], r.Job); err != nil {
		return Record{}, fmt.Errorf("its job: %w", err)
	}
	if err := proto.Unmarshal(rest[job:], r.Request); err != nil {
		return Record{}, fmt.Errorf("its request: %w", err)
	}
	return r, nil
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
