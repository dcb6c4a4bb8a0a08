package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"headwater.example/client"
	"headwater.example/internal/snapshot"
)

// snapshotView is a snapshot that was written, as scripts read it.
type snapshotView struct {
	Session string   `json:"session"`
	File    string   `json:"file"`
	Bytes   int64    `json:"bytes"`    // of the file
	KVBytes int64    `json:"kv_bytes"` // keys and values in it, as pages have them
	Lengths []uint64 `json:"lengths"`  // positions of each layer
	Pinned  bool     `json:"pinned"`
}

// counter counts what is written through it.
type counter struct {
	io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n += int64(n)
	return n, err
}

func (a *app) sessionsSnapshot() *cobra.Command {
	var at remote
	var quiet bool
	cmd := &cobra.Command{
		Use: "snapshot ID FILE", Short: "Write a session to a file, while it goes on", Args: exactly("ID", "FILE"),
		Long: "Write all keys and values of a session, as they are stored, to a file that coord sessions restore reads (docs/snapshot.md);\n" +
			"- is the standard output. The session goes on meanwhile: the command writes a fork of it. The file appears under its\n" +
			"name when it is complete, or not at all.",
		ValidArgsFunction: a.completeSessions(&at),
		Example: `  coord sessions snapshot 7f3c90 story.snapshot
  coord sessions snapshot 7f3c90 - | ssh elsewhere coord sessions restore -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, _, err := parseSession(args[0]); err != nil {
				return err
			}
			to, err := a.openOutput("FILE", args[1])
			if err != nil {
				return err
			}
			return at.withSessions(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				id, err := findSession(ctx, c, args[0])
				if err != nil {
					return err
				}
				return a.takeSnapshot(ctx, c, id, to, quiet)
			})
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

func (a *app) takeSnapshot(ctx context.Context, c *client.Client, id client.SessionID, to *output, quiet bool) error {
	bar := a.progress(quiet)
	defer bar.end()
	progress := func(done, total int64) { bar.show("writing", done, total, true) }
	var done *client.Snapshotted
	var written int64
	err := to.write(func(w io.Writer) (err error) {
		out := &counter{Writer: w}
		done, err = c.SnapshotSession(ctx, id, out, progress)
		written = out.n
		return err
	})
	if err != nil || to.standard(a) {
		return err
	}
	bar.end()
	v := snapshotView{Session: id.String(), File: to.path, Bytes: written, KVBytes: done.Bytes, Lengths: done.Lengths, Pinned: done.Pinned}
	if a.json() {
		return a.printJSON(v)
	}
	return a.say("session %s is written to %s: %d layers, %d positions, %s of keys and values in %s\n",
		id, to.path, len(v.Lengths), slices.Min(v.Lengths), sizeOf(v.KVBytes), sizeOf(v.Bytes))
}

func (a *app) sessionsRestore() *cobra.Command {
	var at remote
	var opts client.RestoreOptions
	var quiet bool
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Make a session from a snapshot", Args: exactly("FILE"),
		Long: "Make a session from a file of coord sessions snapshot, on this cluster, however many workers it has; - is the standard\n" +
			"input. The session gets a new id, which is printed, and goes on with the same bits. If it can not be restored whole,\n" +
			"nothing of it stays.",
		Example: "  coord sessions restore story.snapshot\n  coord sessions restore story.snapshot --workers 2 --name story-2",
		RunE: func(cmd *cobra.Command, args []string) error {
			if opts.Workers < 0 {
				return usage("--workers is %d, must not be negative", opts.Workers)
			}
			in := a.In
			if args[0] != stdio {
				file, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("restore a session: %w", err)
				}
				defer file.Close()
				in = file
			}
			return at.withSessions(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.restoreSnapshot(ctx, c, in, args[0], opts, quiet)
			})
		},
	}
	flags := cmd.Flags()
	at.flags(flags)
	flags.StringVar(&opts.Name, "name", "", "`name` of the session for people (default: the snapshot's)")
	flags.IntVar(&opts.Workers, "workers", 0, "most workers that hold the session, 0 is all")
	flags.BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	flagOnly(flags, "name", "workers")
	return cmd
}

func (a *app) restoreSnapshot(ctx context.Context, c *client.Client, in io.Reader, path string, opts client.RestoreOptions, quiet bool) error {
	bar := a.progress(quiet)
	defer bar.end()
	opts.Progress = func(done, total int64) { bar.show("restoring", done, total, true) }
	s, err := c.RestoreSession(ctx, in, opts)
	if err != nil {
		var bad *snapshot.Error
		if errors.As(err, &bad) {
			err = fmt.Errorf("restore %s: %w", path, bad)
		}
		return err
	}
	bar.end()
	found, err := c.FindSession(ctx, s.ID())
	if err != nil {
		return err
	}
	v := viewSession(found)
	if a.json() {
		return a.printJSON(v)
	}
	return a.say("session %s is restored from %s: %d layers, %d positions, %s of pages: %s\n",
		v.ID, path, len(v.Lengths), v.positions(), sizeOf(int64(v.PageBytes)), v.holders())
}
