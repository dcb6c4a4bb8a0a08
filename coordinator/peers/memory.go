package peers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"headwater.example/coordinator/jobs"
	"headwater.example/internal/atomicfile"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

const (
	// memoryFile is the file in the data folder that has what other coordinators had.
	memoryFile = "coordinators.json"
	// maxRemembered bounds the jobs of one coordinator that are remembered, the newest.
	maxRemembered = 500
	// maxMemoryBytes bounds what is read of the file: more than all that is remembered takes.
	maxMemoryBytes = 32 << 20
	// pollEvery is how often the other coordinators are asked what they have, and writeEvery how often at most that is written down.
	pollEvery, writeEvery = time.Second, 5 * time.Second
)

// memory is what the other coordinators had when they were last heard of.
type memory struct {
	mu      sync.Mutex // guards what follows
	of      map[string]*remembered
	changed bool // since it was written
}

// remembered is one coordinator, and its jobs.
type remembered struct {
	Name  string    `json:"name"`
	Heard time.Time `json:"heard"`
	Jobs  []oneJob  `json:"jobs"` // newest first
}

// oneJob is what is remembered of a job.
type oneJob struct {
	ID      string    `json:"id"`
	Tenant  string    `json:"tenant,omitempty"`
	Key     string    `json:"key,omitempty"`
	Name    string    `json:"name,omitempty"`
	Kind    string    `json:"kind,omitempty"`
	Hash    string    `json:"content_hash,omitempty"`
	State   string    `json:"state"`
	Bytes   uint64    `json:"size_bytes,omitempty"`
	Created time.Time `json:"created"`
}

// poll asks the other coordinators what they have.
func (p *Peers) poll(ctx context.Context, others []membership.Member) {
	p.each(rpc.As(ctx, rpc.Anyone), others, func(ctx context.Context, i int) {
		req := &headwaterv1.ListJobsRequest{Limit: maxRemembered, Brief: true}
		if resp, err := pass(ctx, p, others[i], client.ListJobs, req); err == nil {
			p.memory.hear(others[i], resp.GetJobs(), p.Now())
		}
	})
	p.memory.forget(p.Name, others, p.Now().Add(-p.KeepFor))
}

// hear takes what a coordinator says that it has. What can't be its job is left out.
func (m *memory) hear(from membership.Member, all []*headwaterv1.Job, now time.Time) {
	r := &remembered{Name: from.Name, Heard: now}
	for _, job := range all {
		one := oneJob{
			job.GetId(), job.GetTenant(), job.GetKey(), job.GetName(), job.GetKind(), job.GetContentHash(), jobs.StateName(job.GetState()), job.GetSizeBytes(),
			job.GetCreated().AsTime(),
		}
		if len(r.Jobs) < maxRemembered && one.fits(from.Name) {
			r.Jobs = append(r.Jobs, one)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.of[from.Name]
	if before == nil && len(m.of) >= maxCoordinators {
		m.forgetOldest()
	}
	m.changed = m.changed || before == nil || !reflect.DeepEqual(before.Jobs, r.Jobs) || now.Sub(before.Heard) > time.Minute
	m.of[from.Name] = r
}

// fits tells whether it may be a job of a coordinator.
func (o *oneJob) fits(coordinator string) bool {
	for _, text := range []string{o.ID, o.Tenant, o.Key, o.Name, o.Kind, o.Hash, o.State} {
		if len(text) > shard.MaxText {
			return false
		}
	}
	return Owner(o.ID) == coordinator
}

// forgetOldest forgets who has not been heard of for the longest. The lock is held.
func (m *memory) forgetOldest() {
	oldest := ""
	for name, r := range m.of {
		if oldest == "" || r.Heard.Before(m.of[oldest].Heard) {
			oldest = name
		}
	}
	delete(m.of, oldest)
}

// forget forgets who was last heard of before a time and is not there, and this coordinator.
func (m *memory) forget(own string, others []membership.Member, before time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, r := range m.of {
		there := slices.ContainsFunc(others, func(o membership.Member) bool { return o.Name == name })
		if name == own || !there && r.Heard.Before(before) {
			delete(m.of, name)
			m.changed = true
		}
	}
}

// heard says when a coordinator was last heard of, and whether it ever was.
func (m *memory) heard(name string) (at time.Time, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.of[name]; r != nil {
		return r.Heard, true
	}
	return time.Time{}, false
}

// named looks for a caller's job with a content hash or a key among those of coordinators that can't be asked: who is none of others, or
// is silent.
func (m *memory) named(caller rpc.Caller, name string, others []membership.Member, silent []string) (of string, heard time.Time, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.of {
		there := slices.ContainsFunc(others, func(o membership.Member) bool { return o.Name == r.Name })
		if there && !slices.Contains(silent, r.Name) {
			continue
		}
		for _, one := range r.Jobs {
			if name != "" && (one.Hash == name || one.Key == name) && caller.Owns(one.Tenant) {
				return r.Name, r.Heard, true
			}
		}
	}
	return "", time.Time{}, false
}

// unreachable returns a caller's jobs, after a place, of coordinators that have not answered.
func (m *memory) unreachable(caller rpc.Caller, answered []string, after *headwaterv1.JobPlace) (all []*headwaterv1.Job) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.of {
		if slices.Contains(answered, r.Name) {
			continue
		}
		for _, one := range r.Jobs {
			job := one.unreachable(r)
			if caller.Owns(one.Tenant) && jobs.After(job, after) {
				all = append(all, job)
			}
		}
	}
	return all
}

// unreachable is a job of a coordinator that does not answer.
func (o *oneJob) unreachable(r *remembered) *headwaterv1.Job {
	return &headwaterv1.Job{
		Id: o.ID, Tenant: o.Tenant, Key: o.Key, Name: o.Name, Kind: o.Kind, ContentHash: o.Hash, SizeBytes: o.Bytes, Created: timestamppb.New(o.Created),
		State: headwaterv1.JobState_JOB_STATE_UNREACHABLE, Heard: timestamppb.New(r.Heard), ErrorCode: uint32(codes.Unavailable),
		Error: fmt.Sprintf("coordinator %s does not answer; when it was last heard of, at %s, the job was %s", r.Name, r.Heard.UTC().Format(time.RFC3339), o.State),
	}
}

// readMemory reads what was remembered. No file is nothing.
func readMemory(folder string, now time.Time) (_ *memory, err error) {
	m := &memory{of: map[string]*remembered{}}
	f, err := os.Open(filepath.Join(folder, memoryFile))
	if errors.Is(err, os.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := io.ReadAll(io.LimitReader(f, maxMemoryBytes))
	if err != nil {
		return m, err
	}
	var all []*remembered
	if err := json.Unmarshal(b, &all); err != nil {
		return m, fmt.Errorf("%s: %w", f.Name(), err)
	}
	for _, r := range all[:min(len(all), maxCoordinators)] {
		if r == nil {
			continue
		}
		if r.Heard.After(now) { // the clock has gone back
			r.Heard = now
		}
		r.Jobs = slices.DeleteFunc(r.Jobs, func(o oneJob) bool { return !o.fits(r.Name) })
		r.Jobs = r.Jobs[:min(len(r.Jobs), maxRemembered)]
		m.of[r.Name] = r
	}
	return m, nil
}

// write writes what is remembered, if it has changed, and reports whether it has tried.
func (m *memory) write(folder string, log *slog.Logger) bool {
	m.mu.Lock()
	var all []*remembered
	for _, r := range m.of {
		all = append(all, r) // one is never changed in place
	}
	changed := m.changed
	m.changed = false
	m.mu.Unlock()
	if !changed {
		return false
	}
	slices.SortFunc(all, func(a, b *remembered) int { return strings.Compare(a.Name, b.Name) })
	if err := writeFile(filepath.Join(folder, memoryFile), all); err != nil {
		log.Debug("what other coordinators have is not kept for the next start", "error", err)
		m.mu.Lock()
		m.changed = true
		m.mu.Unlock()
	}
	return true
}

func writeFile(path string, all []*remembered) error {
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	f, err := atomicfile.Create(path, int64(len(b)))
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return errors.Join(err, f.Abort())
	}
	return f.Commit()
}
