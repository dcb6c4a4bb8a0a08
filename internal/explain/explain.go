package explain

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"headwater.example/internal/jobfile"
	"headwater.example/tensor"
)

// Explanation is where some queries of one problem look.
type Explanation struct {
	Prefix string `json:"prefix"` // of the problem
	Seq    int    `json:"seq"`
	Layer  int    `json:"layer"`
	Rows   []Row  `json:"rows"` // by head, then position
}

// Row is one query of one head.
type Row struct {
	Head     int     `json:"head"`
	Group    int     `json:"group"`
	Query    int     `json:"query"`           // index of the query, from 0
	Position int64   `json:"position"`        // its position
	Token    string  `json:"token,omitempty"` // at its position
	Matches  []Match `json:"matches"`         // by weight, the largest first; where equal, the earlier position first
	Rest     float64 `json:"rest"`            // weight of all other positions together, 0 to 1
	Sink     float64 `json:"sink"`            // weight that went to the head's sink, 0 to 1
}

// Match is a position that the query sees.
type Match struct {
	Position int     `json:"position"`
	Token    string  `json:"token,omitempty"`
	Weight   float64 `json:"weight"` // above 0, at most 1
}

// Explain returns the top matches of the chosen heads and positions of a problem of the job; top is at least 1. The
// choice's positions nil is the last query alone. Errors are a *ChoiceError, ctx's, or those of reading the file.
func Explain(ctx context.Context, f *tensor.File, j *jobfile.Job, p *jobfile.Problem, c Choice, top int) (*Explanation, error) {
	if top < 1 {
		return nil, &ChoiceError{fmt.Sprintf("%d matches are asked for, must be at least 1", top)}
	}
	if c.Positions == nil {
		c.Positions = []int64{p.Offset + int64(p.Tokens) - 1}
	}
	heads, queries, err := c.resolve(p)
	if err != nil {
		return nil, err
	}
	e := &Explanation{Prefix: p.Prefix, Seq: p.Seq, Layer: p.Layer, Rows: []Row{}}
	s := &source{file: f, p: p}
	err = s.rows(ctx, heads, queries, func(head, query int, weights []float64) {
		r := Row{Head: head, Group: head / p.Shape.GroupSize(), Query: query, Position: p.Offset + int64(query)}
		r.Matches, r.Rest = best(weights, top)
		if len(p.Options.Sinks) > 0 {
			r.Sink = 1
			for _, w := range weights {
				r.Sink -= w
			}
			r.Sink = max(r.Sink, 0) // rounding
		}
		e.Rows = append(e.Rows, r)
	})
	if err != nil {
		return nil, err
	}
	names := newLabels(f, j, p)
	for i := range e.Rows {
		r := &e.Rows[i]
		if r.Token, err = names.at(r.Position); err != nil {
			return nil, err
		}
		for k := range r.Matches {
			if r.Matches[k].Token, err = names.at(int64(r.Matches[k].Position)); err != nil {
				return nil, err
			}
		}
	}
	return e, nil
}

// best returns the largest weights above 0, and the sum of the others.
func best(weights []float64, top int) (matches []Match, rest float64) {
	all := make([]Match, 0, len(weights))
	for i, w := range weights {
		if w > 0 {
			all = append(all, Match{Position: i, Weight: w})
		}
	}
	slices.SortStableFunc(all, func(a, b Match) int { return cmp.Compare(b.Weight, a.Weight) })
	n := min(top, len(all))
	for _, m := range all[n:] {
		rest += m.Weight
	}
	return slices.Clone(all[:n]), rest
}

// WriteTable writes one line for each row: group, head, position with its token, and the matches.
func (e *Explanation) WriteTable(w io.Writer) error {
	var text bytes.Buffer
	if e.Prefix != "" {
		fmt.Fprintln(&text, strings.TrimSuffix(e.Prefix, "."))
	}
	sinks := slices.ContainsFunc(e.Rows, func(r Row) bool { return r.Sink > 0 })
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	head := "group\thead\tquery\tlooks at\trest"
	if sinks {
		head += "\tsink"
	}
	fmt.Fprintln(table, head)
	for _, r := range e.Rows {
		matches := make([]string, len(r.Matches))
		for i, m := range r.Matches {
			matches[i] = percent(m.Weight) + " " + place(int64(m.Position), m.Token)
		}
		if len(matches) == 0 {
			matches = []string{"nothing"}
		}
		lines := pack(matches)
		fmt.Fprintf(table, "%d\t%d\t%s\t%s\t%s", r.Group, r.Head, place(r.Position, r.Token), lines[0], percent(r.Rest))
		if sinks {
			fmt.Fprintf(table, "\t%s", percent(r.Sink))
		}
		fmt.Fprintln(table)
		for _, line := range lines[1:] {
			fmt.Fprintf(table, "\t\t\t%s\t", line)
			if sinks {
				fmt.Fprint(table, "\t")
			}
			fmt.Fprintln(table)
		}
	}
	return flush(w, table, &text)
}

// matchesWidth is how wide a line of matches is at most, so that a row of usual tokens fits 80 columns.
const matchesWidth = 34

// pack puts matches into lines, at least one into each.
func pack(matches []string) []string {
	lines := []string{matches[0]}
	for _, m := range matches[1:] {
		last := &lines[len(lines)-1]
		if utf8.RuneCountInString(*last)+len(", ")+utf8.RuneCountInString(m) <= matchesWidth {
			*last += ", " + m
			continue
		}
		*last += ","
		lines = append(lines, m)
	}
	return lines
}

// flush writes a table that was laid out in text.
func flush(w io.Writer, table *tabwriter.Writer, text *bytes.Buffer) error {
	if err := table.Flush(); err != nil {
		return fmt.Errorf("laying out a table: %w", err)
	}
	for line := range strings.Lines(text.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return fmt.Errorf("writing a table: %w", err)
		}
	}
	return nil
}

func percent(w float64) string { return strconv.FormatFloat(100*w, 'f', 1, 64) + "%" }

// place shows a position with its token, quoted, since tokens hold blanks, line ends and worse.
func place(position int64, token string) string {
	if token == "" {
		return strconv.FormatInt(position, 10)
	}
	return strconv.FormatInt(position, 10) + " " + strconv.Quote(token)
}

// GroupPanels are the weights of the chosen heads of one KV group.
type GroupPanels struct {
	Group  int
	Panels []Panel
}

// Panel is one query head's weights [queries, kv_len].
type Panel struct {
	Head    int
	Weights [][]float64
}

// maxCells bounds the weights that Panels returns, 256 MiB.
const maxCells = 1 << 25

// Panels returns the weights of the chosen heads and positions, by group, then head, and the positions of the queries.
// Errors are those of Explain; more than 2^25 weights are refused with a *ChoiceError.
func Panels(ctx context.Context, f *tensor.File, p *jobfile.Problem, c Choice) (groups []GroupPanels, positions []int64, err error) {
	n, each := int64(p.Tokens), int64(p.Shape.Heads)
	if c.Positions != nil {
		n = int64(len(c.Positions))
	}
	if c.Heads != nil {
		each = int64(len(c.Heads))
	}
	if row := int64(max(p.KVLen, 1)); n > maxCells || each*n > maxCells/row {
		return nil, nil, &ChoiceError{fmt.Sprintf("%d heads of %d queries over %d positions are more than %d weights: choose fewer heads or positions", each, n, row, maxCells)}
	}
	heads, queries, err := c.resolve(p)
	if err != nil {
		return nil, nil, err
	}
	for _, q := range queries {
		positions = append(positions, p.Offset+int64(q))
	}
	s := &source{file: f, p: p}
	err = s.rows(ctx, heads, queries, func(head, _ int, weights []float64) {
		group := head / p.Shape.GroupSize()
		if len(groups) == 0 || groups[len(groups)-1].Group != group {
			groups = append(groups, GroupPanels{Group: group})
		}
		g := &groups[len(groups)-1]
		if len(g.Panels) == 0 || g.Panels[len(g.Panels)-1].Head != head {
			g.Panels = append(g.Panels, Panel{Head: head})
		}
		panel := &g.Panels[len(g.Panels)-1]
		panel.Weights = append(panel.Weights, weights)
	})
	if err != nil {
		return nil, nil, err
	}
	return groups, positions, nil
}
