package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

func record(id string) Record {
	return Record{
		Job:       &headwaterv1.Job{Id: id, Name: "job.safetensors", Key: "key of " + id, State: headwaterv1.JobState_JOB_STATE_QUEUED, SizeBytes: 1000},
		Request:   &headwaterv1.SubmitBegin{Name: "job.safetensors", Overrides: []byte(`{"causal":true}`)},
		InputHash: 7, ResultHash: 9,
	}
}

// text is records in a form that is compared.
func text(records []Record) (all []string) {
	for _, r := range records {
		all = append(all, fmt.Sprintf("%x %d %d", mustEncode(r), r.InputHash, r.ResultHash))
	}
	return all
}

func mustEncode(r Record) []byte {
	b, err := encode(r)
	if err != nil {
		panic(err)
	}
	return b
}

func open(t *testing.T, data string) *Store {
	t.Helper()
	folder := filepath.Join(data, "jobs")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func load(t *testing.T, s *Store) ([]Record, []*DamagedError) {
	t.Helper()
	records, damaged, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return records, damaged
}

func TestRecordsAreFoundAgainOldestFirst(t *testing.T) {
	s := open(t, t.TempDir())
	want := []Record{record("c-1"), record("c-2"), record("c-3")}
	for _, i := range []int{2, 0, 1} {
		if err := s.Put(want[i]); err != nil {
			t.Fatal(err)
		}
	}
	want[1].Job.State = headwaterv1.JobState_JOB_STATE_RUNNING
	if err := s.Put(want[1]); err != nil {
		t.Fatal(err)
	}
	got, damaged := load(t, s)
	if len(damaged) != 0 || !reflect.DeepEqual(text(got), text(want)) {
		t.Fatalf("%v, %v", got, damaged)
	}
	for _, path := range []string{s.Input("c-2"), s.Result("c-2")} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete("c-2"); err != nil {
		t.Fatal(err)
	}
	// A deletion that was interrupted after its first step.
	if err := os.Rename(s.path("c-1"), filepath.Join(s.folder, "c-1"+deleted)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Result("c-1"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := load(t, s); !reflect.DeepEqual(text(got), text(want[2:])) {
		t.Fatal(got)
	}
	files, err := os.ReadDir(s.folder)
	if err != nil || len(files) != 1 {
		t.Errorf("%v are left, %v", files, err)
	}
}

// TestDamageAtEveryByte: a record that is cut or changed anywhere is the record of before, or one line that names its file.
// The other records do not suffer, and nothing is removed.
func TestDamageAtEveryByte(t *testing.T) {
	s := open(t, t.TempDir())
	for _, id := range []string{"c-1", "c-2"} {
		if err := s.Put(record(id)); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(s.path("c-1"))
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, b []byte) {
		if err := os.WriteFile(s.path("c-1"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		got, damaged := load(t, s)
		if len(damaged) != 1 || len(got) != 1 || got[0].Job.GetId() != "c-2" {
			t.Fatalf("%s: %v, %v", what, got, damaged)
		}
		if line := damaged[0].Error(); strings.Contains(line, "\n") || !strings.Contains(line, s.path("c-1")) || !strings.Contains(line, "c-1.safetensors") {
			t.Fatalf("%s: %s", what, line)
		}
		if left, err := os.ReadFile(s.path("c-1")); err != nil || string(left) != string(b) {
			t.Fatalf("%s: the damaged record was changed: %v", what, err)
		}
	}
	for at := range whole {
		try(fmt.Sprint("cut at ", at), whole[:at])
		for _, bit := range []byte{1, 0x80} {
			flipped := append([]byte(nil), whole...)
			flipped[at] ^= bit
			try(fmt.Sprint("flip at ", at), flipped)
		}
	}
	try("a byte more", append(append([]byte(nil), whole...), 0))
	// The record of another job under this name.
	other, err := os.ReadFile(s.path("c-2"))
	if err != nil {
		t.Fatal(err)
	}
	try("another's", other)
}

// database makes what an older version kept jobs in.
func database(t *testing.T, path string, records ...Record) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		jobs, err1 := tx.CreateBucket(bucketJobs)
		requests, err2 := tx.CreateBucket(bucketRequests)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		for _, r := range records {
			job, err1 := proto.Marshal(r.Job)
			request, err2 := proto.Marshal(r.Request)
			if err := errors.Join(err1, err2, jobs.Put([]byte(r.Job.GetId()), job), requests.Put([]byte(r.Job.GetId()), request)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestDatabaseOfAnOlderVersionIsRead(t *testing.T) {
	data := t.TempDir()
	path := filepath.Join(data, "jobs.db")
	want := []Record{record("c-1"), record("c-2")}
	for i := range want {
		want[i].InputHash, want[i].ResultHash = 0, 0
	}
	database(t, path, want...)
	got, damaged := load(t, open(t, data))
	if len(damaged) != 0 || !reflect.DeepEqual(text(got), text(want)) {
		t.Fatalf("%v, %v", got, damaged)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("it is still in its place")
	}
	if _, err := os.Stat(path + ".imported"); err != nil {
		t.Error(err)
	}
}

// TestDamagedDatabaseOfAnOlderVersion: cut anywhere, with a page zeroed, or empty, it is read or it is one line that names it
// and the way back; it is neither removed nor changed.
func TestDamagedDatabaseOfAnOlderVersion(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "jobs.db")
	database(t, whole, record("c-1"), record("c-2"))
	b, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	damages := map[string][]byte{"empty": {}, "text": []byte(strings.Repeat("no database ", 4000))}
	for at := page / 2; at < len(b); at += page / 2 {
		damages[fmt.Sprint("cut at ", at)] = b[:at]
	}
	for at := 0; at < len(b); at += page {
		zeroed := append([]byte(nil), b...)
		clear(zeroed[at:min(at+page, len(b))])
		damages[fmt.Sprint("zeros at ", at)] = zeroed
	}
	for at := 0; at < len(b); at += 61 {
		flipped := append([]byte(nil), b...)
		flipped[at] ^= 0x10
		damages[fmt.Sprint("flip at ", at)] = flipped
	}
	refused := 0
	for what, b := range damages {
		data := t.TempDir()
		path := filepath.Join(data, "jobs.db")
		if err := errors.Join(os.Mkdir(filepath.Join(data, "jobs"), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
		s, err := Open(filepath.Join(data, "jobs"))
		if err == nil {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		refused++
		if line := err.Error(); strings.Contains(line, "\n") || !strings.Contains(line, path) || !strings.Contains(line, "X.safetensors") {
			t.Errorf("%s: %s", what, line)
		}
		if left, err := os.ReadFile(path); err != nil || string(left) != string(b) {
			t.Errorf("%s: the database was changed: %v", what, err)
		}
	}
	if refused < 4 {
		t.Errorf("only %d of %d damages were found", refused, len(damages))
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(mustEncode(record("c-1")))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decode(b)
		if err == nil && r.Job == nil {
			t.Error("no job and no error")
		}
	})
}
