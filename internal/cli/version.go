package cli

import (
	"context"
	"runtime"

	"github.com/spf13/cobra"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/internal/rpc"
)

// versionView is versions as scripts read them.
type versionView struct {
	Client      programView      `json:"client"`
	Coordinator *coordinatorView `json:"coordinator"` // null if it was not asked or does not answer
}

type programView struct {
	Version  string `json:"version"`
	Protocol string `json:"protocol"`
	Kernel   string `json:"kernel"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

type coordinatorView struct {
	Name     string `json:"name"`
	Address  string `json:"address"`
	Version  string `json:"version"`
	Protocol string `json:"protocol"`
}

func ownVersion() programView {
	return programView{programVersion, rpc.Version, attention.KernelName(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
}

// version is the command that prints this program's version and, of coord, the coordinator's.
func (a *app) version(remotely bool) *cobra.Command {
	var at remote
	var own bool
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version of this program", Args: exactly(), Example: "  " + a.program + " version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versionView{Client: ownVersion()}
			var unasked error
			if remotely && !own {
				unasked = at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
					status, err := c.Status(ctx)
					if err == nil {
						v.Coordinator = &coordinatorView{status.Name, c.Address(), status.Version, status.Protocol}
					}
					return err
				})
			}
			if a.json() {
				if err := a.printJSON(v); err != nil {
					return err
				}
				return unasked
			}
			err := a.say("%s %s, protocol %s, kernel %s, %s %s\n", a.program, v.Client.Version, v.Client.Protocol, v.Client.Kernel, v.Client.Go, v.Client.Platform)
			if c := v.Coordinator; c != nil && err == nil {
				err = a.say("coordinator %s at %s: %s, protocol %s\n", c.Name, c.Address, c.Version, c.Protocol)
			}
			if err != nil {
				return err
			}
			return unasked
		},
	}
	if remotely {
		cmd.Short = "Print the version of this program and of the coordinator"
		cmd.Example = "  coord version\n  coord version --client"
		at.flags(cmd.Flags())
		cmd.Flags().BoolVar(&own, "client", false, "of this program alone: no coordinator is asked")
		flagOnly(cmd.Flags(), "client")
	}
	return cmd
}
