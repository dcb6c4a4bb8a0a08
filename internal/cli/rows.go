package cli

import (
	"encoding/csv"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// rows prints measurements as they come: Markdown or CSV a line each, JSON at the end.
type rows struct {
	app    *app
	format string
	about  []fact // what is alike in all rows
	header []column
	csv    *csv.Writer
	kept   []map[string]any
	begun  bool
}

// fact is something that holds for all rows, by the name that scripts know it by.
type fact struct {
	key   string
	value any
}

// column is a column of rows. One that is folded stands in the line above a Markdown table and not in it.
type column struct {
	name   string
	aside  string // what a Markdown table says beside the name
	number bool   // aligned to the right
	spread bool   // its cells are spreads: for scripts, two columns
	folded bool
}

// spread is a value and its standard deviation over repetitions; known is false where there was one.
type spread struct {
	value, deviation float64
	known            bool
}

// columns makes columns of their names: those that begin with ">" are numbers, with "±" numbers with a deviation.
func columns(names ...string) []column {
	all := make([]column, len(names))
	for i, name := range names {
		name, spread := strings.CutPrefix(name, "±")
		name, number := strings.CutPrefix(name, ">")
		all[i] = column{name: name, number: number || spread, spread: spread}
	}
	return all
}

// rows begins a table of measurements.
func (a *app) rows(format string, about []fact, header []column) *rows {
	return &rows{app: a, format: format, about: about, header: header, csv: csv.NewWriter(a.Out), kept: []map[string]any{}}
}

// figure prints three digits or more.
func figure(x float64) string {
	switch {
	case x >= 100:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	case x >= 0.01 || x == 0:
		return strconv.FormatFloat(x, 'f', 3, 64)
	}
	return strconv.FormatFloat(x, 'e', 2, 64)
}

// key is a column's name for scripts.
func key(name string) string {
	return strings.NewReplacer(" ", "_", "/", "_per_", ".", "_").Replace(strings.ToLower(name))
}

func (r *rows) add(cells ...any) error {
	switch r.format {
	case "json":
		one := map[string]any{}
		for i, cell := range cells {
			name := key(r.header[i].name)
			if x, ok := cell.(spread); ok {
				one[name], one[name+"_stddev"] = x.value, nil
				if x.known {
					one[name+"_stddev"] = x.deviation
				}
				continue
			}
			one[name] = cell
		}
		r.kept = append(r.kept, one)
		return nil
	case "csv":
		return r.addCSV(cells)
	}
	if !r.begun {
		if err := r.begin(); err != nil {
			return err
		}
	}
	var text []string
	for i, cell := range cells {
		if !r.header[i].folded {
			text = append(text, cellText(cell))
		}
	}
	return r.app.say("| %s |\n", strings.Join(text, " | "))
}

// begin prints the head of a Markdown table.
func (r *rows) begin() error {
	r.begun = true
	var names, rule []string
	for _, c := range r.header {
		if c.folded {
			continue
		}
		names = append(names, strings.TrimSpace(c.name+" "+c.aside))
		if rule = append(rule, "---"); c.number {
			rule[len(rule)-1] = "--:"
		}
	}
	return r.app.say("| %s |\n| %s |\n", strings.Join(names, " | "), strings.Join(rule, " | "))
}

func cellText(cell any) string {
	switch x := cell.(type) {
	case nil:
		return ""
	case float64:
		return figure(x)
	case spread:
		if x.known {
			return figure(x.value) + " ± " + figure(x.deviation)
		}
		return figure(x.value)
	}
	return fmt.Sprint(cell)
}

// addCSV prints a line with all columns, those that are alike in all rows at its end, so that lines of several runs can be
// joined.
func (r *rows) addCSV(cells []any) error {
	if !r.begun {
		r.begun = true
		var names []string
		for _, c := range r.header {
			if names = append(names, c.name); c.spread {
				names = append(names, c.name+" stddev")
			}
		}
		for _, f := range r.about {
			names = append(names, f.key)
		}
		_ = r.csv.Write(names) // as is Write below, told by Error
	}
	var line []string
	for _, cell := range cells {
		if x, ok := cell.(spread); ok {
			deviation := any(nil)
			if x.known {
				deviation = x.deviation
			}
			line = append(line, cellText(x.value), cellText(deviation))
			continue
		}
		line = append(line, cellText(cell))
	}
	for _, f := range r.about {
		line = append(line, fmt.Sprint(f.value))
	}
	_ = r.csv.Write(line)
	r.csv.Flush()
	return r.csv.Error()
}

func (r *rows) end() error {
	if r.format != "json" {
		return nil
	}
	all := map[string]any{"rows": r.kept}
	for _, f := range r.about {
		all[f.key] = f.value
	}
	return r.app.printJSON(all)
}

// fold folds the columns of those names whose cells are alike in all rows.
func fold(header []column, alike func(name string) bool, names ...string) {
	for i, c := range header {
		header[i].folded = slices.Contains(names, c.name) && alike(c.name)
	}
}
