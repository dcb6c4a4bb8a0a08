package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"headwater.example/client"
)

// jobNames says how a job is named on the command line.
const jobNames = "Name a job by its id, its key or its content hash. The first characters of its id, of the id's last part or of the hash " +
	"are enough if no other job shares them."

// shortJob is the last part of a job's id, which follows the coordinator's name.
func shortJob(id string) string { return id[strings.LastIndexByte(id, '-')+1:] }

// findJob returns the job of that id, key or content hash; else the one that the name is the beginning of.
func findJob(ctx context.Context, c *client.Client, name string) (*client.Job, error) {
	job, err := c.Get(ctx, name)
	if !errors.Is(err, client.ErrNotFound) || name == "" {
		return job, err
	}
	jobs, listed := c.List(ctx)
	if listed != nil {
		return nil, listed
	}
	fits := slices.DeleteFunc(jobs, func(job *client.Job) bool {
		return !beginsWith(job.ID, name) && !beginsWith(shortJob(job.ID), name) && !beginsWith(job.ContentHash, name)
	})
	ids := make([]string, len(fits))
	for i, job := range fits {
		ids[i] = job.ID
	}
	switch len(fits) {
	case 0:
		return nil, err
	case 1:
		return fits[0], nil
	}
	return nil, ambiguous("job", name, ids)
}

// beginsWith compares as people write ids: in small letters or capitals.
func beginsWith(id, name string) bool {
	return len(id) >= len(name) && strings.EqualFold(id[:len(name)], name)
}

// shownMatches is how many of several matches an error names.
const shownMatches = 3

func ambiguous(what, name string, ids []string) error {
	more := ""
	if len(ids) > shownMatches {
		more = fmt.Sprintf(" and %d others", len(ids)-shownMatches)
	}
	return usage("%s %q: it is the beginning of %s%s", what, name, strings.Join(ids[:min(len(ids), shownMatches)], ", "), more)
}

// parseSession reads a session's id or the beginning of one; whole says which.
func parseSession(name string) (id client.SessionID, whole bool, err error) {
	id, err = client.ParseSessionID(name)
	if err == nil {
		return id, true, nil
	}
	if name == "" || len(name) >= 2*len(id) || strings.Trim(strings.ToLower(name), "0123456789abcdef") != "" {
		return id, false, usageError{err}
	}
	return id, false, nil
}

// findSession returns the id of the session that the name is the id of, or the beginning of it.
func findSession(ctx context.Context, c *client.Client, name string) (client.SessionID, error) {
	id, whole, err := parseSession(name)
	if err != nil || whole {
		return id, err
	}
	listed, err := c.Sessions(ctx)
	if err != nil {
		return id, err
	}
	var ids []string
	for _, s := range listed.Sessions {
		if found := s.ID.String(); beginsWith(found, name) {
			ids = append(ids, found)
		}
	}
	switch len(ids) {
	case 0:
		return id, fmt.Errorf("session %s: %w: no listed session has an id that begins like this", name, client.ErrNotFound)
	case 1:
		return client.ParseSessionID(ids[0])
	}
	return id, ambiguous("session", name, ids)
}

// completionWait is how long the shell waits for names to complete.
const completionWait = 2 * time.Second

// complete asks the coordinator for names that begin with what was typed. Nothing is offered where it does not answer.
func (a *app) complete(at *remote, ask func(ctx context.Context, c *client.Client, typed string) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		var names []string
		if len(args) > 0 || a.configure(cmd) != nil {
			return nil, cobra.ShellCompDirectiveDefault // files, where a second argument is one
		}
		ctx, cancel := context.WithTimeout(context.Background(), completionWait)
		defer cancel()
		err := at.with(ctx, func(ctx context.Context, c *client.Client) (err error) {
			names, err = ask(ctx, c, typed)
			return err
		})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names = slices.DeleteFunc(names, func(name string) bool { return !beginsWith(name, typed) })
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeJobs completes the last parts of jobs' ids, or the ids whole where they were begun.
func (a *app) completeJobs(at *remote) cobra.CompletionFunc {
	return a.complete(at, func(ctx context.Context, c *client.Client, typed string) ([]string, error) {
		jobs, err := c.List(ctx)
		var ids []string
		for _, job := range jobs {
			id := shortJob(job.ID)
			if !beginsWith(id, typed) {
				id = job.ID
			}
			ids = append(ids, clean(id)+"\t"+clean(string(job.State)+" "+job.Name))
		}
		return ids, err
	})
}

// completeWorkers completes the names of workers.
func (a *app) completeWorkers(at *remote) cobra.CompletionFunc {
	return a.complete(at, func(ctx context.Context, c *client.Client, _ string) ([]string, error) {
		status, err := c.Status(ctx)
		if err != nil {
			return nil, err
		}
		var names []string
		for _, w := range status.Workers {
			names = append(names, clean(w.Name)+"\t"+clean(w.Address))
		}
		return names, nil
	})
}

// completeSessions completes the ids of sessions.
func (a *app) completeSessions(at *remote) cobra.CompletionFunc {
	return a.complete(at, func(ctx context.Context, c *client.Client, _ string) ([]string, error) {
		listed, err := c.Sessions(ctx)
		if err != nil {
			return nil, err
		}
		var ids []string
		for _, s := range listed.Sessions {
			ids = append(ids, s.ID.String()+"\t"+clean(s.Name))
		}
		return ids, nil
	})
}
