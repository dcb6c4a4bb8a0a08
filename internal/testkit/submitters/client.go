package submitters

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"

	"headwater.example/client"
)

// submitter is one client.
type submitter struct {
	*run
	number int
	rand   *rand.Rand
	client *client.Client
	mine   []*job // that it has not deleted
}

// submit submits jobs until ctx ends.
func (s *submitter) submit(ctx context.Context) (err error) {
	if s.client, err = client.Dial(s.cluster.Address()); err != nil {
		return err
	}
	defer s.client.Close()
	for n := 0; ctx.Err() == nil; n++ {
		err := s.one(ctx, n)
		if err == nil && len(s.mine) > 0 {
			err = s.look(ctx, s.mine[s.rand.IntN(len(s.mine))])
		}
		if err == nil && len(s.mine) > 20 {
			err = s.tidy(ctx)
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		wait(ctx, time.Duration(s.rand.IntN(30))*time.Millisecond)
	}
	return nil
}

// deadline is a context that sometimes ends in the middle of a call.
func (s *submitter) deadline(ctx context.Context, long time.Duration) (context.Context, context.CancelFunc) {
	if s.rand.IntN(5) > 0 {
		return context.WithTimeout(ctx, long)
	}
	return context.WithTimeout(ctx, time.Duration(s.rand.IntN(60))*time.Millisecond)
}

// one submits a job, again under its key if no outcome came, and does something with it.
func (s *submitter) one(ctx context.Context, n int) error {
	j := &job{file: s.files[s.rand.IntN(len(s.files))]}
	if s.rand.IntN(10) < 7 {
		j.key = fmt.Sprintf("k%d-%d", s.number, n)
	}
	s.history.begin(j)
	for tries := 0; ; tries++ {
		one, cancel := s.deadline(ctx, 10*time.Second)
		got, err := s.client.Submit(one, client.SubmitOptions{Path: j.file.path, Key: j.key})
		cancel()
		if err == nil {
			s.tally.submitted.Add(1)
			s.history.acknowledge(j, got.ID)
			for _, other := range s.mine {
				if got.ID <= other.id && !s.history.mayBeMissing(other) {
					return fmt.Errorf("job %s was submitted after %s", got.ID, other.id)
				}
			}
			s.mine = append(s.mine, j)
			return s.follow(ctx, j)
		}
		if err := tolerable(err); err != nil {
			return fmt.Errorf("submit %s as %q: %w", j.file.path, j.key, err)
		}
		if !refused(err) {
			s.history.unknown(j)
		}
		if ctx.Err() != nil || j.key == "" || refused(err) || tries == 3 {
			if refused(err) {
				s.tally.refused.Add(1)
				if err := s.tidy(ctx); err != nil {
					return err
				}
			} else {
				s.tally.unknown.Add(1)
			}
			return nil
		}
		wait(ctx, 20*time.Millisecond)
	}
}

// refused says whether the coordinator itself refused a submission: there is no job of it.
func refused(err error) bool {
	var e *client.Error
	return errors.As(err, &e) && e.Answered && e.Code == codes.ResourceExhausted
}

// tolerable returns an error that no call may have in such company.
func tolerable(err error) error {
	if err == nil || errors.Is(err, client.ErrTryAgain) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// follow waits for a job, cancels it, or leaves it.
func (s *submitter) follow(ctx context.Context, j *job) error {
	switch n := s.rand.IntN(8); {
	case n < 4:
		one, cancel := s.deadline(ctx, 20*time.Second)
		defer cancel()
		_, err := s.client.Wait(one, j.id, nil)
		var ended *client.JobError
		if err != nil && !errors.As(err, &ended) && tolerable(err) == nil {
			return nil // It goes on, and is looked at later.
		}
		return s.look(ctx, j)
	case n < 6:
		one, cancel := s.deadline(ctx, 5*time.Second)
		defer cancel()
		s.history.cancelling(j)
		got, err := s.client.Cancel(one, j.id)
		if errors.Is(err, client.ErrNotFound) {
			return s.missing(j, err)
		}
		if err == nil && !got.Over() {
			return fmt.Errorf("job %s was cancelled, and is %s", j.id, got.State)
		}
		if err == nil && got.State == client.JobCancelled {
			s.tally.cancelled.Add(1)
		}
		return tolerable(err)
	}
	return nil
}

// look looks at a job, and at its result if it has one.
func (s *submitter) look(ctx context.Context, j *job) error {
	one, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	got, err := s.client.Get(one, j.id)
	if errors.Is(err, client.ErrNotFound) {
		return s.missing(j, err)
	}
	if err != nil {
		return tolerable(err)
	}
	if err := s.history.check(j, got); err != nil || got.State != client.JobSucceeded {
		return err
	}
	return s.fetch(one, s.client, j)
}

// fetch fetches the result of a job that has succeeded.
func (r *run) fetch(ctx context.Context, c *client.Client, j *job) error {
	_, err := c.DownloadTo(ctx, j.id, io.Discard, nil) // it compares the bytes with the hash that the job says, which check has seen
	var e *client.Error
	switch {
	case err == nil:
		r.tally.results.Add(1)
		return nil
	case errors.Is(err, client.ErrNotFound):
		return r.missing(j, err)
	case errors.As(err, &e) && (e.Code == codes.DataLoss || e.Code == codes.FailedPrecondition):
		return r.history.failed(j, err) // it has failed since
	}
	return tolerable(err)
}

// missing is the error of a job that the coordinator does not know, unless it may be so.
func (r *run) missing(j *job, err error) error {
	if r.history.mayBeMissing(j) {
		return nil
	}
	return fmt.Errorf("the submission of job %s (key %q) was acknowledged: %w", j.id, j.key, err)
}

// tidy deletes most jobs that have ended.
func (s *submitter) tidy(ctx context.Context) error {
	var kept []*job
	for _, j := range s.mine {
		if ctx.Err() != nil || s.rand.IntN(5) == 0 {
			kept = append(kept, j)
			continue
		}
		s.history.deleting(j)
		one, cancel := s.deadline(ctx, 2*time.Second)
		_, err := s.client.Delete(one, j.id)
		cancel()
		var e *client.Error
		switch {
		case err == nil:
			s.tally.deleted.Add(1)
			s.history.deleted(j)
		case errors.Is(err, client.ErrNotFound):
			if err := s.missing(j, err); err != nil {
				return err
			}
		case errors.As(err, &e) && e.Code == codes.FailedPrecondition: // it has not ended
			s.history.kept(j)
			kept = append(kept, j)
		default:
			if err := tolerable(err); err != nil {
				return fmt.Errorf("delete job %s: %w", j.id, err)
			}
		}
	}
	s.mine = kept
	return nil
}
