package cli

import (
	"errors"
	"io/fs"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"headwater.example/internal/certs"
	"headwater.example/internal/tenants"
)

// tenantsFlags name the file of tenants.
type tenantsFlags struct{ file string }

func (f *tenantsFlags) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.file, "file", "headwater-tenants.json", "`file` of the tenants, which coordinators take by --tenants: it has hashes of tokens and no token")
	flagOnly(cmd.Flags(), "file")
}

// change reads the file, changes it, and writes it. If there is none, it begins empty where it may.
func (f *tenantsFlags) change(create bool, do func(*tenants.Table) error) error {
	t, err := tenants.Read(f.file)
	if create && errors.Is(err, fs.ErrNotExist) {
		t, err = &tenants.Table{}, nil
	}
	if err != nil {
		return err
	}
	if err := do(t); err != nil {
		return err
	}
	return t.Write(f.file)
}

// tenants is the group of commands that keep the file of tenants.
func (a *app) tenants() *cobra.Command {
	return group("tenants", "Keep the tenants that a cluster knows by tokens",
		"  coord tenants add ann > ann.token\n  coord serve --tls-dir coordinator-c1 --tenants headwater-tenants.json\n  coord status --tls-dir ca --token-file ann.token",
		a.tenantsAdd(), a.tenantsLimit(), a.tenantsList(), a.tenantsRotate(), a.tenantsRemove())
}

// tokenView is a new token as scripts read it.
type tokenView struct {
	Tenant string `json:"tenant"`
	Token  string `json:"token"`
}

// printToken prints a token: its only copy.
func (a *app) printToken(name, token string) error {
	if a.json() {
		return a.printJSON(tokenView{name, token})
	}
	return a.say("%s\n", token)
}

func (a *app) tenantsAdd() *cobra.Command {
	var at tenantsFlags
	var admin bool
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Add a tenant and print its token", Args: exactly("NAME"),
		Long: "Add a tenant to the file, which is made if there is none, and print its token. The file has the token's SHA-256 alone: the\n" +
			"token is printed once. Give the file to all coordinators (--tenants), which read it again when it changes, and the token to\n" +
			"the tenant (--token-file).",
		Example: "  coord tenants add ann > ann.token\n  coord tenants add ops --admin",
		RunE: func(_ *cobra.Command, args []string) error {
			if err := (certs.Identity{Role: certs.Client, Name: args[0]}).Validate(); err != nil {
				return usageError{err}
			}
			var token string
			if err := at.change(true, func(t *tenants.Table) (err error) {
				token, err = t.Add(args[0], admin, time.Now())
				return err
			}); err != nil {
				return err
			}
			return a.printToken(args[0], token)
		},
	}
	at.flags(cmd)
	cmd.Flags().BoolVar(&admin, "admin", false, "bind the token to no tenant: it is that of who runs the cluster")
	flagOnly(cmd.Flags(), "admin")
	return cmd
}

func (a *app) tenantsRotate() *cobra.Command {
	var at tenantsFlags
	var keep bool
	cmd := &cobra.Command{
		Use: "rotate NAME", Short: "Give a tenant a new token and print it", Args: exactly("NAME"),
		Long: "Give a tenant a new token and print it. The old one is taken no more once coordinators have read the file, and connections\n" +
			"that have shown it end. With --keep it is taken until the next rotation.",
		Example: "  coord tenants rotate ann --keep > ann.token\n  coord tenants rotate ann > ann.token",
		RunE: func(_ *cobra.Command, args []string) error {
			var token string
			if err := at.change(false, func(t *tenants.Table) (err error) {
				token, err = t.Rotate(args[0], keep)
				return err
			}); err != nil {
				return err
			}
			return a.printToken(args[0], token)
		},
	}
	at.flags(cmd)
	cmd.Flags().BoolVar(&keep, "keep", false, "take the newest of the old tokens, too, until the next rotation")
	flagOnly(cmd.Flags(), "keep")
	return cmd
}

func (a *app) tenantsRemove() *cobra.Command {
	var at tenantsFlags
	cmd := &cobra.Command{
		Use: "remove NAME", Short: "Remove a tenant: its tokens are taken no more", Args: exactly("NAME"),
		Long: "Remove a tenant: its tokens are taken no more once coordinators have read the file, and connections that have shown one end.\n" +
			"Its sessions stay until their TTL, its jobs as long as others; an admin ends them earlier.",
		Example: "  coord tenants remove ann",
		RunE: func(_ *cobra.Command, args []string) error {
			return at.change(false, func(t *tenants.Table) error { return t.Remove(args[0]) })
		},
	}
	at.flags(cmd)
	return cmd
}

// tenantsView is the tenants as scripts read them.
type tenantsView struct {
	Tenants []tenantView `json:"tenants"`
	Limits  *limitsView  `json:"limits"` // of each that has none of its own; null is none
}

type tenantView struct {
	Name    string      `json:"name"`
	Admin   bool        `json:"admin"`
	Tokens  int         `json:"tokens"` // how many are taken
	Created time.Time   `json:"created"`
	Limits  *limitsView `json:"limits"` // null is what the others may have
}

func (a *app) tenantsList() *cobra.Command {
	var at tenantsFlags
	cmd := &cobra.Command{
		Use: "list", Short: "List the tenants of the file", Args: exactly(),
		Long:    "List the tenants of the file, how many tokens of each are taken, and what each may have; coord status says what each has.",
		Example: "  coord tenants list\n  coord tenants list -o json | jq -r '.tenants[].name'",
		RunE: func(*cobra.Command, []string) error {
			all, err := tenants.Read(at.file)
			if err != nil {
				return err
			}
			view := tenantsView{[]tenantView{}, viewLimits(all.Limits)}
			for _, one := range all.Tenants {
				view.Tenants = append(view.Tenants, tenantView{one.Name, one.Admin, len(one.Tokens), one.Created, viewLimits(one.Limits)})
			}
			if a.json() {
				return a.printJSON(view)
			}
			t := a.newTable("", "tenant", "role", ">tokens", "created", ">sessions", ">bytes", ">steps/s", ">jobs")
			for _, one := range view.Tenants {
				role := "tenant"
				if one.Admin {
					role = "admin"
				}
				t.AppendRow(append(table.Row{a.narrow(one.Name, holderWidth), role, one.Tokens, date(one.Created)}, one.Limits.cells()...))
			}
			if view.Limits != nil {
				t.AppendRow(append(table.Row{"(others)", "", "", ""}, view.Limits.cells()...))
			}
			return a.printTable(t)
		},
	}
	at.flags(cmd)
	return cmd
}
