package cli

import (
	"fmt"
	"strconv"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"headwater.example/client"
	"headwater.example/internal/certs"
	"headwater.example/internal/quota"
	"headwater.example/internal/tenants"
)

func (a *app) tenantsLimit() *cobra.Command {
	var at tenantsFlags
	var limits quota.Limits
	var sessions, jobs count
	var bytes byteSize
	var others, reset bool
	cmd := &cobra.Command{
		Use: "limit [NAME]", Short: "Set what a tenant may have of the cluster", Args: cobra.MaximumNArgs(1),
		Long: "Set what a tenant may have of the whole cluster: sessions, bytes of their pages, steps a second, and jobs that have not ended at\n" +
			"each coordinator. What no flag names has no limit. With --others it is what each tenant may have that has no limits of its own,\n" +
			"whether or not it is in the file. A tenant that is not in it is added without a token, for clients with a certificate.",
		Example: "  coord tenants limit ann --sessions 100 --bytes 64GiB --steps 20000 --jobs 4\n  coord tenants limit --others --sessions 10\n  coord tenants limit ann --reset",
		RunE: func(_ *cobra.Command, args []string) error {
			limits.Sessions, limits.Bytes, limits.Jobs = int64(sessions), int64(bytes), int64(jobs)
			if err := limits.Check(); err != nil {
				return usageError{err}
			}
			if others == (len(args) > 0) {
				return usage("name a tenant, or say --others")
			}
			set := &limits
			if reset {
				set = nil
			}
			if others {
				return at.change(true, func(t *tenants.Table) error { return t.LimitOthers(set) })
			}
			if err := (certs.Identity{Role: certs.Client, Name: args[0]}).Validate(); err != nil {
				return usageError{err}
			}
			return at.change(true, func(t *tenants.Table) error { return t.Limit(args[0], set, time.Now()) })
		},
	}
	at.flags(cmd)
	flags := cmd.Flags()
	flags.Var(&sessions, "sessions", "most sessions")
	flags.Var(&bytes, "bytes", "most bytes of pages, those of copies and prefixes as well")
	flags.Float64Var(&limits.Steps, "steps", 0, "most steps a second: a model makes one for each layer")
	flags.Var(&jobs, "jobs", "most jobs that have not ended, at each coordinator")
	flags.BoolVar(&others, "others", false, "set what each tenant may have that has no limits of its own")
	flags.BoolVar(&reset, "reset", false, "take the limits away: the tenant may have what the others may")
	for _, name := range []string{"sessions", "bytes", "steps", "jobs", "others", "reset"} {
		flagOnly(flags, name)
	}
	return cmd
}

// limitsView is limits as scripts read them; 0 is no limit.
type limitsView struct {
	Sessions int64   `json:"sessions"`
	Bytes    int64   `json:"bytes"`
	Steps    float64 `json:"steps_per_second"`
	Jobs     int64   `json:"jobs"`
}

func viewLimits(l *quota.Limits) *limitsView {
	if l == nil {
		return nil
	}
	return &limitsView{l.Sessions, l.Bytes, l.Steps, l.Jobs}
}

// cells are limits in a table: "-" is no limit.
func (l *limitsView) cells() []any {
	if l == nil {
		return []any{"", "", "", ""}
	}
	number := func(x float64) string {
		if x == 0 {
			return "-"
		}
		return strconv.FormatFloat(x, 'f', -1, 64)
	}
	bytes := "-"
	if l.Bytes > 0 {
		bytes = sizeOf(l.Bytes)
	}
	return []any{number(float64(l.Sessions)), bytes, number(l.Steps), number(float64(l.Jobs))}
}

// tenantStatusView is what a tenant may have and has, as scripts read it.
type tenantStatusView struct {
	Tenant string     `json:"tenant"`
	Limit  limitsView `json:"limit"` // 0 is no limit
	Used   usageView  `json:"used"`
}

type usageView struct {
	Sessions float64 `json:"sessions"`
	Bytes    uint64  `json:"bytes"`
	Steps    float64 `json:"steps_per_second"`
	Jobs     uint64  `json:"jobs"`
}

func viewTenants(all []client.TenantStatus) []tenantStatusView {
	views := []tenantStatusView{}
	for _, t := range all {
		views = append(views, tenantStatusView{
			t.Tenant,
			limitsView{int64(t.Limit.Sessions), int64(t.Limit.Bytes), t.Limit.StepsPerSecond, int64(t.Limit.Jobs)},
			usageView{t.Used.Sessions, t.Used.Bytes, t.Used.StepsPerSecond, t.Used.Jobs},
		})
	}
	return views
}

// printTenants prints a line for each tenant that has limits: what it has, of what it may.
func (a *app) printTenants(all []tenantStatusView) error {
	if len(all) == 0 {
		return nil
	}
	t := a.newTable("\ntenants that have limits: what each has, of what it may", "tenant", ">sessions", ">bytes", ">steps/s", ">jobs")
	for _, one := range all {
		most := one.Limit.cells()
		of := func(used string, i int) string { return fmt.Sprintf("%s / %v", used, most[i]) }
		t.AppendRow(table.Row{
			a.narrow(one.Tenant, holderWidth), of(fmt.Sprintf("%.0f", one.Used.Sessions), 0), of(sizeOf(int64(one.Used.Bytes)), 1),
			of(fmt.Sprintf("%.0f", one.Used.Steps), 2), of(strconv.FormatUint(one.Used.Jobs, 10), 3),
		})
	}
	return a.printTable(t)
}
