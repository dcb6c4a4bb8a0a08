package submitters

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/grpc/codes"

	"headwater.example/client"
)

// settle looks at all jobs once nothing bad happens any more: those that were acknowledged, those of which no outcome came, and those
// that should not be there.
func (r *run) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settled)
	defer cancel()
	c, err := client.Dial(r.cluster.Address())
	if err != nil {
		return err
	}
	defer c.Close()
	known := map[string]*job{} // by id
	for _, j := range r.history.jobs {
		if j.id == "" || j.gone {
			continue
		}
		known[j.id] = j
		if err := r.last(ctx, c, j); err != nil {
			return err
		}
	}
	if err := r.others(ctx, c, known); err != nil {
		return err
	}
	r.log.forget()
	r.cluster.KillCoordinator()
	if err := r.cluster.RestartCoordinator(ctx); err != nil {
		return err
	}
	if found := r.log.lines("damaged"); len(found) > 0 {
		return fmt.Errorf("nothing was changed before the last start, and the log says %q", found)
	}
	return r.spool(ctx, c)
}

// last waits for the end of a job whose submission was acknowledged.
func (r *run) last(ctx context.Context, c *client.Client, j *job) error {
	got, err := c.Wait(ctx, j.id, nil)
	var ended *client.JobError
	switch {
	case errors.Is(err, client.ErrNotFound):
		return r.missing(j, err)
	case err != nil && !errors.As(err, &ended):
		return fmt.Errorf("job %s (key %q) has not ended: %w", j.id, j.key, err)
	}
	if err := r.history.check(j, got); err != nil || got.State != client.JobSucceeded {
		return err
	}
	return r.fetch(ctx, c, j)
}

// others looks at the jobs that nobody was told of: each must be one of which no outcome came, and there is at most one of a key.
func (r *run) others(ctx context.Context, c *client.Client, known map[string]*job) error {
	listed, err := c.List(ctx)
	if err != nil {
		return err
	}
	unsure, keyless := map[string]*job{}, 0
	for _, j := range r.history.jobs {
		switch {
		case !j.unsure || j.id != "":
		case j.key == "":
			keyless++
		default:
			unsure[j.key] = j
		}
	}
	keys := map[string]string{}
	for _, got := range listed {
		if got.Key != "" && keys[got.Key] != "" {
			return fmt.Errorf("the key %s has two jobs, %s and %s", got.Key, keys[got.Key], got.ID)
		}
		keys[got.Key] = got.ID
		if known[got.ID] != nil {
			continue
		}
		if got.Key == "" {
			keyless--
		}
		if got.Key == "" && keyless < 0 || got.Key != "" && unsure[got.Key] == nil {
			return fmt.Errorf("job %s (key %q) is there, is %s, and was refused, deleted or never submitted", got.ID, got.Key, got.State)
		}
		// It ends as it should, or says honestly that its file did not come to the disk.
		got, err := c.Wait(ctx, got.ID, nil)
		var ended *client.JobError
		if err != nil && (!errors.As(err, &ended) || got.ErrorCode != codes.DataLoss) {
			return fmt.Errorf("job %s (key %q), of whose submission no outcome came: %w", got.ID, got.Key, err)
		}
	}
	return nil
}

// spool checks that the folder of the jobs has their files, and no others.
func (r *run) spool(ctx context.Context, c *client.Client) error {
	listed, err := c.List(ctx)
	if err != nil {
		return err
	}
	var want, have []string
	for _, j := range listed {
		want = append(want, j.ID+".job")
		if j.State == client.JobSucceeded {
			want = append(want, j.ID+".result.safetensors")
		}
	}
	entries, err := os.ReadDir(filepath.Join(r.data, "jobs"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		have = append(have, e.Name())
	}
	slices.Sort(want)
	if !slices.Equal(want, have) {
		return fmt.Errorf("in the end the folder of the jobs has %q, and should have %q", have, want)
	}
	return nil
}
