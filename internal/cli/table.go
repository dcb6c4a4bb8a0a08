package cli

import (
	"fmt"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// nameWidth is the width of names in tables that are to fit 80 columns. -o wide and JSON have them whole.
const nameWidth = 24

// titled is a table with a line above it: go-pretty would wrap a title to the table's width. Its cells are cleaned.
type titled struct {
	table.Writer
	title   string
	colours bool
}

// narrow is shorten, but for -o wide.
func (a *app) narrow(s string, width int) string {
	if a.wide() {
		return s
	}
	return shorten(s, width)
}

// painted is a cell in a colour, where there are colours.
type painted struct {
	text   string
	colour text.Color
}

// state is a cell that says how something is: green is well, red is not, yellow is under way.
func state(word string) painted {
	switch word {
	case "succeeded", "answers", "whole", "serving":
		return painted{word, text.FgGreen}
	case "failed", "left out", "half lost", "lost", "unreachable":
		return painted{word, text.FgRed}
	case "running", "queued", "uploading", "part unseen":
		return painted{word, text.FgYellow}
	}
	return painted{word, text.Reset}
}

// newTable makes a table in the house's style. Columns whose header begins with ">" are aligned to the right.
func (a *app) newTable(title string, header ...string) titled {
	t := titled{table.NewWriter(), title, colours(a.Out)}
	style := table.StyleLight
	style.Format.Header = text.FormatDefault
	style.Format.Footer = text.FormatDefault
	style.Options.SeparateColumns = false
	style.Options.DrawBorder = false
	t.SetStyle(style)
	row := make(table.Row, len(header))
	var columns []table.ColumnConfig
	for i, name := range header {
		config := table.ColumnConfig{Number: i + 1}
		if right, ok := strings.CutPrefix(name, ">"); ok {
			name = right
			config.Align, config.AlignHeader, config.AlignFooter = text.AlignRight, text.AlignRight, text.AlignRight
		}
		row[i] = clean(name)
		columns = append(columns, config)
	}
	t.AppendHeader(row)
	t.SetColumnConfigs(columns)
	t.SuppressTrailingSpaces()
	return t
}

// AppendRow implements table.Writer.
func (t titled) AppendRow(row table.Row, config ...table.RowConfig) {
	t.Writer.AppendRow(t.cleaned(row), config...)
}

// AppendFooter implements table.Writer.
func (t titled) AppendFooter(row table.Row, config ...table.RowConfig) {
	t.Writer.AppendFooter(t.cleaned(row), config...)
}

func (t titled) cleaned(row table.Row) table.Row {
	out := make(table.Row, len(row))
	for i, cell := range row {
		switch x := cell.(type) {
		case string:
			out[i] = clean(x)
		case painted:
			out[i] = clean(x.text)
			if t.colours && x.colour != text.Reset {
				out[i] = x.colour.Sprint(clean(x.text))
			}
		default:
			out[i] = cell
		}
	}
	return out
}

// printTable prints a table, its title above it.
func (a *app) printTable(t titled) error {
	if t.title != "" {
		// A title may have lines of the program's own; what others chose was cleaned where it was put in.
		if _, err := fmt.Fprintln(a.Out, t.title); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(a.Out, t.Render())
	return err
}
