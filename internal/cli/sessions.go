package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"headwater.example/client"
)

// sessions is the group of commands about the sessions that workers hold.
func (a *app) sessions() *cobra.Command {
	return group("sessions", "List, show and drop sessions, and carry them elsewhere",
		"  coord sessions list\n  coord sessions show 7f3c90\n  coord sessions snapshot 7f3c90 story.snapshot\n  coord sessions restore story.snapshot",
		a.sessionsList(), a.sessionsShow(), a.sessionsDrop(), a.sessionsSnapshot(), a.sessionsRestore(), a.sessionsKey())
}

// sessionView is a session as scripts read it.
type sessionView struct {
	ID          string       `json:"id"`
	Name        string       `json:"name,omitempty"`
	Tenant      string       `json:"tenant,omitempty"`
	Epoch       uint64       `json:"epoch"`
	Truncations uint64       `json:"truncations"`
	Lengths     []uint64     `json:"lengths"` // positions of each layer
	PageBytes   uint64       `json:"page_bytes"`
	OwnBytes    uint64       `json:"own_bytes"`
	Pinned      bool         `json:"pinned"`
	State       string       `json:"state,omitempty"` // whole, half lost, or part unseen, if some workers did not answer; lists only
	Created     *time.Time   `json:"created,omitempty"`
	Used        *time.Time   `json:"used,omitempty"`
	Holders     []holderView `json:"holders"`
	Arithmetics []string     `json:"arithmetics,omitempty"` // of each layer, as far as they were asked for
	OtherSides  []sideView   `json:"other_sides,omitempty"` // if it went on twice; of one session that is shown
}

// sideView is what a worker has of another side of a session.
type sideView struct {
	Worker    string `json:"worker"`
	Address   string `json:"address"`
	Epoch     uint64 `json:"epoch"`
	Positions uint64 `json:"positions"`
	PageBytes uint64 `json:"page_bytes"`
}

type holderView struct {
	Name      string     `json:"name"`
	Address   string     `json:"address"`
	PageBytes uint64     `json:"page_bytes"`
	OwnBytes  uint64     `json:"own_bytes"`
	Groups    [][]uint32 `json:"groups"` // of each layer
	// Stripes has of each layer in stripes, in the place of groups, each stripe that is held: its group, and its number.
	Stripes [][][2]uint32 `json:"stripes,omitempty"`
}

// sessionsView is a list of sessions as scripts read it.
type sessionsView struct {
	Sessions []sessionView `json:"sessions"`
	Silent   []silentView  `json:"silent"` // workers that did not answer, whose sessions are missing
}

type silentView struct {
	Worker  string `json:"worker"`
	Address string `json:"address"`
	Error   string `json:"error"`
}

func viewSession(s *client.SessionState) sessionView {
	v := sessionView{
		ID: s.ID.String(), Name: s.Name, Tenant: s.Tenant, Epoch: s.Epoch,
		Truncations: s.Truncations, Lengths: []uint64{}, PageBytes: s.PageBytes, OwnBytes: s.OwnBytes, Pinned: s.Pinned,
		Created: when(s.Created), Used: when(s.Used), Holders: []holderView{},
	}
	for _, l := range s.Layers {
		v.Lengths = append(v.Lengths, l.Length)
	}
	for _, a := range s.Arithmetics {
		v.Arithmetics = append(v.Arithmetics, a.String())
	}
	for _, o := range s.OtherSides {
		v.OtherSides = append(v.OtherSides, sideView{o.Worker, o.Address, o.Epoch, o.Positions, o.PageBytes})
	}
	for _, h := range s.Holders {
		one := holderView{Name: h.Name, Address: h.Address, PageBytes: h.PageBytes, OwnBytes: h.OwnBytes, Groups: make([][]uint32, len(v.Lengths))}
		for i := range one.Groups {
			one.Groups[i] = []uint32{}
		}
		for _, l := range h.Layers {
			if int(l.Layer) >= len(one.Groups) {
				continue
			}
			if len(l.Stripes) == 0 {
				one.Groups[l.Layer] = l.Groups
				continue
			}
			if one.Stripes == nil {
				one.Stripes = make([][][2]uint32, len(v.Lengths))
			}
			one.Stripes[l.Layer] = l.Stripes
		}
		v.Holders = append(v.Holders, one)
	}
	return v
}

// parts says which groups of a layer a holder has; stripe 2 of group 1 is 1:2.
func (h *holderView) parts(layer int) string {
	if layer < len(h.Stripes) && len(h.Stripes[layer]) > 0 {
		var all []string
		for _, s := range h.Stripes[layer] {
			all = append(all, fmt.Sprintf("%d:%d", s[0], s[1]))
		}
		return strings.Join(all, " ")
	}
	return strings.Trim(fmt.Sprint(h.Groups[layer]), "[]")
}

// stripes says in how many stripes the layers' groups are, unless all are whole.
func stripes(s *client.SessionState) string {
	var each []string
	for _, n := range slices.Compact(slices.Sorted(slices.Values(s.Stripes))) {
		if n > 1 {
			each = append(each, strconv.Itoa(n))
		}
	}
	if len(each) == 0 {
		return ""
	}
	return ", groups in " + strings.Join(each, " or ") + " stripes"
}

// sums says in which arithmetics the layers are.
func (v *sessionView) sums() string {
	names := slices.Compact(slices.Sorted(slices.Values(v.Arithmetics)))
	if len(names) == 0 {
		return ""
	}
	return " in " + strings.Join(names, " and ")
}

// positions are what all layers of a session have.
func (v *sessionView) positions() (least uint64) {
	for i, n := range v.Lengths {
		if i == 0 || n < least {
			least = n
		}
	}
	return least
}

// holders says who holds it, and how many bytes of pages.
func (v *sessionView) holders() string {
	each := make([]string, len(v.Holders))
	for i, h := range v.Holders {
		if each[i] = h.Name; h.PageBytes > 0 {
			each[i] += " " + sizeOf(int64(h.PageBytes))
		}
	}
	return strings.Join(each, ", ")
}

func (a *app) sessionsList() *cobra.Command {
	var at remote
	cmd := &cobra.Command{
		Use: "list", Short: "List the sessions that the workers hold", Args: exactly(),
		Long: "List the sessions that the workers hold: the positions that all of their layers have, the bytes of their pages, and own,\n" +
			"the bytes that no other session and no prefix shares: coord sessions drop frees these at once.\n\n" +
			"A session is whole if its holders have all groups of all layers. It is half lost if a part of it is gone, and part\n" +
			"unseen if workers that do not answer may have the rest; stderr names these workers, and JSON does under silent. The table\n" +
			"has the first digits of each id, which are enough to name the session; -o wide has more.",
		Example: "  coord sessions list\n  coord sessions list -o wide\n  coord sessions list -o json | jq '.sessions[] | select(.state==\"half lost\")'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return at.withSessions(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				listed, err := c.Sessions(ctx)
				if err != nil {
					return err
				}
				whole, err := c.WholeSessions(ctx, listed.Sessions)
				if err != nil {
					return err
				}
				return a.printSessions(listed, whole, time.Now())
			})
		},
	}
	at.flags(cmd.Flags())
	return cmd
}

// shortSession is how many digits of a session's id the table has: 48 bits, so that no two are alike.
const shortSession = 12

func (a *app) printSessions(listed *client.SessionList, whole map[client.SessionID]bool, now time.Time) error {
	found := listed.Sessions
	view := sessionsView{Sessions: make([]sessionView, len(found)), Silent: []silentView{}}
	for _, w := range listed.Silent {
		view.Silent = append(view.Silent, silentView{w.Worker, w.Address, w.Error})
		a.note("warning: worker %s at %s did not answer, what it holds is not listed: %s\n", w.Worker, w.Address, w.Error)
	}
	for i := range found {
		v := viewSession(&found[i])
		id, err := client.ParseSessionID(v.ID)
		switch known, asked := whole[id]; {
		case err != nil || !asked: // it has ended meanwhile
		case known:
			v.State = "whole"
		case len(view.Silent) > 0:
			v.State = "part unseen"
		default:
			v.State = "half lost"
		}
		view.Sessions[i] = v
	}
	if a.json() {
		return a.printJSON(view)
	}
	if a.wide() {
		t := a.newTable("", "id", "name", "state", ">layers", ">positions", ">bytes", ">own", "pinned", "on", "last used")
		for i, v := range view.Sessions {
			t.AppendRow(table.Row{v.ID, v.Name, state(v.State), len(v.Lengths), v.positions(), sizeOf(int64(v.PageBytes)), sizeOf(int64(v.OwnBytes)), yes(v.Pinned), v.holders(), clock(found[i].Used)})
		}
		return a.printTable(t)
	}
	t := a.newTable("", "id", "name", "state", ">layers", ">positions", ">bytes", ">used")
	for i, v := range view.Sessions {
		t.AppendRow(table.Row{v.ID[:min(len(v.ID), shortSession)], shorten(v.Name, 14), state(v.State), len(v.Lengths), v.positions(), sizeOf(int64(v.PageBytes)), age(found[i].Used, now)})
	}
	return a.printTable(t)
}

func yes(is bool) string {
	if is {
		return "yes"
	}
	return ""
}

func (a *app) sessionsShow() *cobra.Command {
	var at remote
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show one session: which workers hold which groups of its layers", Args: exactly("ID"),
		ValidArgsFunction: a.completeSessions(&at),
		Long: "Show one session: which worker holds which groups of its layers, and how many bytes of pages; own counts the bytes that\n" +
			"no other session and no prefix shares. Truncations count how often positions were taken back; the epoch counts how often a\n" +
			"client attached to the session. coord sessions list names the sessions; the first digits of an id are enough.",
		Example: "  coord sessions show 7f3c90",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, _, err := parseSession(args[0]); err != nil {
				return err
			}
			return at.withSessions(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				id, err := findSession(ctx, c, args[0])
				if err != nil {
					return err
				}
				found, err := c.FindSession(ctx, id)
				if err != nil {
					return err
				}
				v := viewSession(found)
				if a.json() {
					return a.printJSON(v)
				}
				pinned := ""
				if v.Pinned {
					pinned = ", pinned"
				}
				title := fmt.Sprintf("session %s %s\n%s%s%s, %d positions, %d truncations, epoch %d%s;\n%s of pages, %s its own; last used %s\n",
					v.ID, clean(v.Name), plural(len(v.Lengths), "layer"), v.sums(), stripes(found), v.positions(), v.Truncations, v.Epoch, pinned, sizeOf(int64(v.PageBytes)), sizeOf(int64(v.OwnBytes)), clock(found.Used))
				holders := a.newTable(title, "worker", "address", ">bytes", ">own")
				for _, h := range v.Holders {
					holders.AppendRow(table.Row{a.narrow(h.Name, nameWidth), a.narrow(h.Address, 30), sizeOf(int64(h.PageBytes)), sizeOf(int64(h.OwnBytes))})
				}
				if err := a.printTable(holders); err != nil {
					return err
				}
				t := a.newTable("\nlayers", ">layer", ">positions", "worker", "groups")
				for layer, length := range v.Lengths {
					for _, h := range v.Holders {
						if parts := h.parts(layer); parts != "" {
							t.AppendRow(table.Row{layer, length, a.narrow(h.Name, nameWidth), parts})
						}
					}
				}
				return errors.Join(a.printTable(t), a.printSides(v.OtherSides))
			})
		},
	}
	at.flags(cmd.Flags())
	return cmd
}

// printSides prints what workers have of other sides of a session, if it went on twice.
func (a *app) printSides(sides []sideView) error {
	if len(sides) == 0 {
		return nil
	}
	t := a.newTable("\nit went on twice; another side is at", "worker", "address", ">positions", ">bytes", ">epoch")
	for _, s := range sides {
		t.AppendRow(table.Row{a.narrow(s.Worker, nameWidth), a.narrow(s.Address, 30), s.Positions, sizeOf(int64(s.PageBytes)), s.Epoch})
	}
	return a.printTable(t)
}

func (a *app) sessionsDrop() *cobra.Command {
	var at remote
	var side string
	cmd := &cobra.Command{
		Use: "drop ID", Short: "End a session and free its memory, even if a client drives it", Args: exactly("ID"),
		ValidArgsFunction: a.completeSessions(&at), Example: "  coord sessions drop 7f3c90\n  coord sessions drop 7f3c90 --side w3",
		Long: "End a session and free its memory, even if a client drives it. With --side WORKER, the session goes on, and only what that\n" +
			"worker has of another side of it is dropped: coord sessions show names the workers that have one, if a session went on twice.\n" +
			"What was acknowledged on that side may be there alone.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, _, err := parseSession(args[0]); err != nil {
				return err
			}
			return at.withSessions(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				id, err := findSession(ctx, c, args[0])
				if err != nil {
					return err
				}
				if side != "" {
					if err := c.DropSide(ctx, id, side); err != nil {
						return err
					}
					if a.json() {
						return a.printJSON(map[string]string{"dropped": id.String(), "side": side})
					}
					return a.say("what %s had of another side of session %s is dropped\n", side, id)
				}
				if err := c.DropSession(ctx, id); err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(map[string]string{"dropped": id.String()})
				}
				return a.say("session %s is dropped\n", id)
			})
		},
	}
	cmd.Flags().StringVar(&side, "side", "", "drop only what this worker has of another side of the session")
	at.flags(cmd.Flags())
	return cmd
}
