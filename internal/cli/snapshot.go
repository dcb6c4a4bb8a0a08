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
	"headwater.example/internal/seal"
	"headwater.example/internal/snapshot"
	"headwater.example/shard"
)

// snapshotView is a snapshot that was written, as scripts read it.
type snapshotView struct {
	Session string   `json:"session"`
	File    string   `json:"file"`
	Bytes   int64    `json:"bytes"`    // of the file
	KVBytes int64    `json:"kv_bytes"` // keys and values in it, as pages have them
	Lengths []uint64 `json:"lengths"`  // positions of each layer
	Pinned  bool     `json:"pinned"`

	Encrypted bool `json:"encrypted"`
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
	var keyFile string
	cmd := &cobra.Command{
		Use: "snapshot ID FILE", Short: "Write a session to a file, while it goes on", Args: exactly("ID", "FILE"),
		Long: "Write all keys and values of a session, as they are stored, to a file that coord sessions restore reads (docs/snapshot.md);\n" +
			"- is the standard output. The session goes on meanwhile: the command writes a fork of it. The file appears under its\n" +
			"name when it is complete, or not at all. With --key-file it is encrypted.",
		ValidArgsFunction: a.completeSessions(&at),
		Example: `  coord sessions snapshot 7f3c90 story.snapshot
  coord sessions snapshot 7f3c90 story.snapshot --key-file snapshots.pub
  coord sessions snapshot 7f3c90 - | ssh elsewhere coord sessions restore -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, _, err := parseSession(args[0]); err != nil {
				return err
			}
			keys, err := readKeys(keyFile)
			if err != nil {
				return err
			}
			to, err := a.openOutput("FILE", args[1], keyFile)
			if err != nil {
				return err
			}
			return at.withSessions(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				id, err := findSession(ctx, c, args[0])
				if err != nil {
					return err
				}
				return a.takeSnapshot(ctx, c, id, to, keys, quiet)
			})
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().StringVar(&keyFile, "key-file", "", "`file` of the keys for which the snapshot is encrypted, secret or public, as coord sessions key makes them (default: it is not encrypted)")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

// readKeys reads a file of keys; nil without one.
func readKeys(path string) (*seal.Keys, error) {
	if path == "" {
		return nil, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, usage("--key-file: %w", err)
	}
	defer file.Close()
	keys, err := seal.ReadKeys(file)
	if err != nil {
		return nil, usage("--key-file: %s: %w", path, err)
	}
	return keys, nil
}

// keyView is a key that was made, as scripts read it.
type keyView struct {
	File   string `json:"file"`
	Public string `json:"public"`
}

func (a *app) sessionsKey() *cobra.Command {
	return &cobra.Command{
		Use: "key FILE", Short: "Make a key for encrypted snapshots", Args: exactly("FILE"),
		Long: "Make a secret key for snapshots, in a new file that its owner alone may read, and print its public key. Who writes snapshots\n" +
			"needs the public key alone, in a file; who restores them needs the file of the secret key (--key-file). Without it they are\n" +
			"lost: keep a copy in another place. A file may have several keys, one a line. They are keys of age.",
		Example: "  coord sessions key snapshots.key > snapshots.pub",
		RunE: func(_ *cobra.Command, args []string) error {
			secret, public, err := seal.NewKey()
			if err != nil {
				return err
			}
			// Never over another one, whose snapshots would be lost.
			file, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return fmt.Errorf("make a key: %w", err)
			}
			_, err = file.WriteString("# public key: " + public + "\n" + secret + "\n")
			if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
				return fmt.Errorf("make a key: %w", err)
			}
			if a.json() {
				return a.printJSON(keyView{args[0], public})
			}
			return a.say("%s\n", public)
		},
	}
}

func (a *app) takeSnapshot(ctx context.Context, c *client.Client, id client.SessionID, to *output, keys *seal.Keys, quiet bool) error {
	bar := a.progress(quiet)
	defer bar.end()
	progress := func(done, total int64) { bar.show("writing", done, total, true) }
	var done *client.Snapshotted
	var written int64
	err := to.write(func(w io.Writer) (err error) {
		out := &counter{Writer: w}
		done, err = snapshotTo(ctx, c, id, out, keys, progress)
		written = out.n
		return err
	})
	if err != nil || to.standard(a) {
		return err
	}
	bar.end()
	v := snapshotView{Session: id.String(), File: to.path, Bytes: written, KVBytes: done.Bytes, Lengths: done.Lengths, Pinned: done.Pinned}
	how := ""
	if v.Encrypted = keys != nil; v.Encrypted {
		how = ", encrypted"
	}
	if a.json() {
		return a.printJSON(v)
	}
	return a.say("session %s is written to %s: %d layers, %d positions, %s of keys and values in %s%s\n",
		id, to.path, len(v.Lengths), slices.Min(v.Lengths), sizeOf(v.KVBytes), sizeOf(v.Bytes), how)
}

// snapshotTo writes a session, encrypted unless keys are nil.
func snapshotTo(ctx context.Context, c *client.Client, id client.SessionID, w io.Writer, keys *seal.Keys, progress func(done, total int64)) (*client.Snapshotted, error) {
	if keys == nil {
		return c.SnapshotSession(ctx, id, w, progress)
	}
	sealed, err := keys.Seal(w)
	if err != nil {
		return nil, err
	}
	done, err := c.SnapshotSession(ctx, id, sealed, progress)
	if err != nil {
		return nil, err // what is written stays without its end
	}
	return done, sealed.Close()
}

func (a *app) sessionsRestore() *cobra.Command {
	var at remote
	var opts client.RestoreOptions
	var quiet bool
	var keyFile string
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
			if err := checkStripes(opts.Stripes); err != nil {
				return err
			}
			keys, err := readKeys(keyFile)
			if err != nil {
				return err
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
				return a.restoreSnapshot(ctx, c, in, args[0], keys, opts, quiet)
			})
		},
	}
	flags := cmd.Flags()
	at.flags(flags)
	flags.StringVar(&keyFile, "key-file", "", "`file` of the secret key of an encrypted snapshot; one that is not encrypted is refused (default: it is not encrypted)")
	flags.StringVar(&opts.Name, "name", "", "`name` of the session for people (default: the snapshot's)")
	flags.IntVar(&opts.Workers, "workers", 0, "most workers that hold the session, 0 is all")
	flags.BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	flags.IntVar(&opts.Stripes, "stripes", 0, stripesUsage)
	flagOnly(flags, "name", "workers", "stripes")
	return cmd
}

const stripesUsage = "stripes in which each group of a layer is held, for more workers than groups; 0 is whole"

// checkStripes refuses a number of stripes that no session may have.
func checkStripes(n int) error {
	if n < 0 || n > shard.MaxStripes {
		return usage("--stripes %d: from 0 to %d", n, shard.MaxStripes)
	}
	return nil
}

func (a *app) restoreSnapshot(ctx context.Context, c *client.Client, in io.Reader, path string, keys *seal.Keys, opts client.RestoreOptions, quiet bool) error {
	bar := a.progress(quiet)
	defer bar.end()
	opts.Progress = func(done, total int64) { bar.show("restoring", done, total, true) }
	opened, err := keys.Open(in)
	var s *client.Session
	if err == nil {
		s, err = c.RestoreSession(ctx, opened, opts)
	}
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
