package cli

import (
	"path/filepath"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"headwater.example/internal/certs"
)

// authorityFlags name the folder of an authority.
type authorityFlags struct{ folder string }

func (f *authorityFlags) flags(flags *pflag.FlagSet) {
	flags.StringVar(&f.folder, "dir", "headwater-certs", "`folder` of the authority: keep it secret, and off the cluster's machines")
	flagOnly(flags, "dir")
}

func (f *authorityFlags) open() (*certs.Authority, error) {
	return certs.OpenAuthority(f.folder, time.Now)
}

// days reads a lifetime.
func days(n int) (time.Duration, error) {
	if n < 1 || n > mostDays {
		return 0, usage("--days %d: from 1 to %d", n, mostDays)
	}
	return time.Duration(n) * day, nil
}

const (
	day = 24 * time.Hour
	// mostDays bounds lifetimes of certificates: a hundred years.
	mostDays = 36525
)

// certs is the group of commands that make certificates.
func (a *app) certs() *cobra.Command {
	return group("certs", "Make the certificates by which a cluster's parts know each other",
		"  coord certs init\n  coord certs issue coordinator c1\n  coord certs issue worker w1\n  coord certs issue client ann",
		a.certsInit(), a.certsIssue(), a.certsRenew(), a.certsRotate(), a.certsRevoke(), a.certsList(), a.certsSecrets())
}

func (a *app) certsInit() *cobra.Command {
	var at authorityFlags
	var life int
	cmd := &cobra.Command{
		Use: "init", Short: "Make a certificate authority for a cluster", Args: exactly(),
		Long: "Make a certificate authority for a cluster: its certificate and private key (ECDSA P-256), and the key that encrypts\n" +
			"gossip. All are in authority.pem. Whoever has that file can be every part of the cluster.",
		Example: "  coord certs init\n  coord certs init --dir ~/headwater-certs --days 730",
		RunE: func(*cobra.Command, []string) error {
			until, err := days(life)
			if err != nil {
				return err
			}
			made, err := certs.Init(at.folder, until, time.Now)
			if err != nil {
				return err
			}
			_, expires := made.Life()
			return a.say("%s is the authority, until %s; issue each process its certificate:\n\n  %s certs issue coordinator NAME%s\n  %[3]s certs issue worker NAME%[4]s\n  %[3]s certs issue client NAME%[4]s\n",
				made.Name(), date(expires), a.program, at.said())
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().IntVar(&life, "days", int(certs.AuthorityLife/day), "how long the authority holds")
	flagOnly(cmd.Flags(), "days")
	return cmd
}

// said is the flag as a command that is proposed needs it.
func (f *authorityFlags) said() string {
	if f.folder == "headwater-certs" {
		return ""
	}
	return " --dir " + f.folder
}

func date(t time.Time) string { return t.UTC().Format("2006-01-02") }

func (a *app) certsIssue() *cobra.Command {
	var at authorityFlags
	var life int
	var out string
	cmd := &cobra.Command{
		Use: "issue coordinator|worker|relay|client|admin|monitor NAME", Short: "Issue a certificate, or issue it anew",
		Long: "Issue a certificate into a folder that its process takes by --tls-dir: ca.crt, tls.crt, tls.key, and gossip.key for those\n" +
			"that gossip. A running process reads the files again when they change.\n\n" +
			"NAME is the process's --name; a client's is its tenant, and an admin is bound to none; a monitor\n" +
			"reads metrics alone. 'headwater-worker-*' is one certificate for all workers whose names\n" +
			"begin so, as the replicas of a StatefulSet have them.",
		Example:   "  coord certs issue worker w1\n  coord certs issue worker 'headwater-worker-*' --days 90\n  coord certs issue client ann --out ~/.config/headwater/tls",
		ValidArgs: []string{"coordinator", "worker", "relay", "client", "admin", "monitor"},
		Args:      exactly("ROLE", "NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			until, err := days(life)
			if err != nil {
				return err
			}
			id := certs.Identity{Role: certs.Role(args[0]), Name: args[1]}
			if err := id.Validate(); err != nil {
				return usageError{err}
			}
			authority, err := at.open()
			if err != nil {
				return err
			}
			folder := out
			if folder == "" {
				folder = authority.FolderOf(id)
			}
			expires, err := authority.Issue(id, folder, until)
			if err != nil {
				return err
			}
			return a.say("%s: %s, until %s\n", folder, id, date(expires))
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().StringVar(&out, "out", "", "`folder` to fill (default: one within the authority's)")
	cmd.Flags().IntVar(&life, "days", int(certs.CertificateLife/day), "how long the certificate holds")
	flagOnly(cmd.Flags(), "days", "out")
	return cmd
}

func (a *app) certsRenew() *cobra.Command {
	var at authorityFlags
	cmd := &cobra.Command{
		Use: "renew", Short: "Issue all certificates anew", Args: exactly(),
		Long: "Issue all certificates of the authority's folder anew, with the lifetimes that they had. Give the folders to their processes\n" +
			"before the old ones expire: these read them again, and no connection ends.",
		Example: "  coord certs renew",
		RunE: func(*cobra.Command, []string) error {
			authority, err := at.open()
			if err != nil {
				return err
			}
			if err := authority.Again(true); err != nil {
				return err
			}
			return a.printIssued(authority)
		},
	}
	at.flags(cmd.Flags())
	return cmd
}

func (a *app) certsRotate() *cobra.Command {
	var at authorityFlags
	var life int
	cmd := &cobra.Command{
		Use: "rotate", Short: "Take the next step to another authority and key of gossip", Args: exactly(),
		Long: "Replace the authority and the key of gossip, in three steps, while the cluster goes on. Each run takes one step, and brings\n" +
			"the folders that were issued up to date; those elsewhere are issued anew by `coord certs issue`. Give the folders to all\n" +
			"processes before the next step.\n\n" +
			"1. The new authority is trusted, and the new key decrypts. 2. Certificates are issued by the new authority, and the new key\n" +
			"encrypts. 3. The old authority is trusted no more: connections with its certificates end.",
		Example: "  coord certs rotate",
		RunE: func(*cobra.Command, []string) error {
			until, err := days(life)
			if err != nil {
				return err
			}
			authority, err := at.open()
			if err != nil {
				return err
			}
			step, err := authority.Rotate(until)
			if err != nil {
				return err
			}
			if err := a.printIssued(authority); err != nil {
				return err
			}
			next := map[certs.Step]string{
				certs.Introduced: "step 1 of 3: the new authority and key of gossip are trusted, and not used yet",
				certs.Switched:   "step 2 of 3: certificates are of the new authority, and the new key of gossip encrypts; the old ones are trusted still",
				certs.Finished:   "step 3 of 3: the old authority and key of gossip are trusted no more",
			}[step]
			if step != certs.Finished {
				next += "; give the folders to all processes, then rotate again"
			} else {
				next += "; give the folders to all processes"
			}
			return a.say("%s\n", next)
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().IntVar(&life, "days", int(certs.AuthorityLife/day), "how long a new authority holds")
	flagOnly(cmd.Flags(), "days")
	return cmd
}

func (a *app) certsRevoke() *cobra.Command {
	var at authorityFlags
	cmd := &cobra.Command{
		Use: "revoke ROLE NAME", Short: "Make the certificates worthless that a holder has", Args: exactly("ROLE", "NAME"),
		Long: "Make all certificates worthless that were issued to a holder until now. Give the folders to all processes, which have\n" +
			"revoked.txt then: they refuse these certificates, and connections that use them end. `certs issue` issues another. The key\n" +
			"of gossip that a coordinator or a worker has is worth as much as before: replace it by `certs rotate`.",
		Example: "  coord certs revoke client ann",
		RunE: func(_ *cobra.Command, args []string) error {
			id := certs.Identity{Role: certs.Role(args[0]), Name: args[1]}
			if err := id.Validate(); err != nil {
				return usageError{err}
			}
			authority, err := at.open()
			if err != nil {
				return err
			}
			if err := authority.Revoke(id); err != nil {
				return err
			}
			return a.say("%s is revoked; give the folders to all processes\n", id)
		},
	}
	at.flags(cmd.Flags())
	return cmd
}

func (a *app) certsList() *cobra.Command {
	var at authorityFlags
	cmd := &cobra.Command{
		Use: "list", Short: "List the certificates that were issued", Args: exactly(),
		Long:    "List the certificates that were issued into the authority's folder, with the day on which each expires.",
		Example: "  coord certs list\n  coord certs list -o json | jq '.certificates[] | select(.expires < \"2027\")'",
		RunE: func(*cobra.Command, []string) error {
			authority, err := at.open()
			if err != nil {
				return err
			}
			return a.printIssued(authority)
		},
	}
	at.flags(cmd.Flags())
	return cmd
}

// issuedView is an authority and its certificates as scripts read them.
type issuedView struct {
	Authority    string            `json:"authority"`
	Expires      time.Time         `json:"expires"`
	Certificates []certificateView `json:"certificates"`
}

type certificateView struct {
	Folder  string     `json:"folder"`
	Role    certs.Role `json:"role"`
	Names   []string   `json:"names"`
	Expires time.Time  `json:"expires"`
}

func (a *app) printIssued(authority *certs.Authority) error {
	issued, err := authority.List()
	if err != nil {
		return err
	}
	_, expires := authority.Life()
	if a.json() {
		view := issuedView{authority.Name(), expires, []certificateView{}}
		for _, one := range issued {
			view.Certificates = append(view.Certificates, certificateView{one.Folder, one.Holder.Role, one.Holder.Names, one.Expires})
		}
		return a.printJSON(view)
	}
	t := a.newTable(authority.Name()+", until "+date(expires), "holder", "expires", "folder")
	for _, one := range issued {
		t.AppendRow(table.Row{a.narrow(one.Holder.String(), holderWidth), date(one.Expires), a.narrow(filepath.Base(one.Folder), holderWidth)})
	}
	return a.printTable(t)
}

// holderWidth is the width of a role with its name.
const holderWidth = 32
