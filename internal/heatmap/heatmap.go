// Package heatmap draws attention weights as one PNG: a row of panels a KV
// group, a panel a query head, so that one sees several query heads asking
// different questions of one library of keys.
//
// The way of a figure: check refuses what cannot be drawn, pool takes the
// largest weight of the cells that share a pixel, layout places everything,
// and the canvas paints it. The same figure gives the same bytes.
//
// A panel's rows are queries from top to bottom, its columns key positions
// from left to right. Color is the logarithm of the weight. A weight of exactly
// 0 is gray: the query cannot see that position, or gave it nothing.
package heatmap

import (
	"fmt"
	"image"
	"image/draw"
	"image/png"
	"io"
	"math"
)

// Figure is what one image shows. All panels of a figure have one shape,
// [queries, keys].
type Figure struct {
	Title   string
	Caption string // explains the figure; wrapped to its width, at most 6 lines
	// Offset is the position of the first query, and Positions those of all
	// queries where they do not follow each other from Offset; the axis names them.
	// Both may be negative.
	Offset    int64
	Positions []int64
	Tokens    []string // of the key positions, [keys]; empty for none
	Rows      []Row
}

// Row is one KV group: the panels of the query heads that read it.
type Row struct {
	Group  int
	Label  string // beside the group's name, may be empty
	Panels []Panel
}

// Panel is one query head.
type Panel struct {
	Head    int
	Weights [][]float64 // [queries, keys], each in 0..1
}

// FigureError says what of a figure cannot be drawn. Indices that do not apply
// are -1.
type FigureError struct {
	Group, Head, Query, Key int
	Rule                    string
}

func (e *FigureError) Error() string {
	s := "heat map"
	for _, part := range []struct {
		name  string
		index int
	}{{"group", e.Group}, {"head", e.Head}, {"query", e.Query}, {"key", e.Key}} {
		if part.index >= 0 {
			s += fmt.Sprintf(" %s %d", part.name, part.index)
		}
	}
	return s + ": " + e.Rule
}

// positionLimit keeps sums of positions and indices from overflowing.
const positionLimit = 1 << 53

// weightLimit leaves room for the rounding of a weight that was computed in
// float32.
const weightLimit = 1 + 1e-4

// Draw writes figures to w as one PNG, one beside the other. Nothing is written
// for a figure that cannot be drawn; the error is then a *FigureError. Sequences
// longer than a panel's pixels are pooled by their largest weight.
func Draw(w io.Writer, figures ...Figure) error {
	fonts, err := newFonts()
	if err != nil {
		return fmt.Errorf("heat map: reading the font: %w", err)
	}
	defer fonts.close()
	var layouts []*layout
	width, height, panels := 0, 0, 0
	for _, f := range figures {
		queries, keys, err := check(f)
		if err != nil {
			return err
		}
		l := newLayout(f, queries, keys, fonts)
		layouts = append(layouts, l)
		width, height, panels = width+l.width, max(height, l.height), panels+l.panels
	}
	if width*height > maxPixels {
		return &FigureError{-1, -1, -1, -1, fmt.Sprintf("%d panels do not fit an image of %d pixels; draw fewer heads", panels, maxPixels)}
	}
	all := image.NewRGBA(image.Rect(0, 0, width, height))
	fill(all, all.Rect, paper)
	x := 0
	for i, l := range layouts {
		draw.Draw(all, image.Rect(x, 0, x+l.width, l.height), l.paint(figures[i]), image.Point{}, draw.Src)
		x += l.width
	}
	encoder := png.Encoder{CompressionLevel: png.DefaultCompression}
	if err := encoder.Encode(w, all); err != nil {
		return fmt.Errorf("heat map: writing the PNG: %w", err)
	}
	return nil
}

// check gives the one shape of all panels.
func check(f Figure) (queries, keys int, err error) {
	refuse := func(group, head, query, key int, format string, args ...any) (int, int, error) {
		return 0, 0, &FigureError{group, head, query, key, fmt.Sprintf(format, args...)}
	}
	if len(f.Rows) == 0 {
		return refuse(-1, -1, -1, -1, "no rows")
	}
	if max(f.Offset, -f.Offset) > positionLimit || f.Offset == math.MinInt64 {
		return refuse(-1, -1, -1, -1, "offset %d is not within ±2⁵³", f.Offset)
	}
	first := true
	for _, row := range f.Rows {
		if row.Group < 0 {
			return refuse(-1, -1, -1, -1, "group %d is below 0", row.Group)
		}
		if len(row.Panels) == 0 {
			return refuse(row.Group, -1, -1, -1, "no panels")
		}
		for _, panel := range row.Panels {
			if panel.Head < 0 {
				return refuse(row.Group, -1, -1, -1, "head %d is below 0", panel.Head)
			}
			if len(panel.Weights) == 0 || len(panel.Weights[0]) == 0 {
				return refuse(row.Group, panel.Head, -1, -1, "no weights")
			}
			if first {
				queries, keys, first = len(panel.Weights), len(panel.Weights[0]), false
			}
			if len(panel.Weights) != queries {
				return refuse(row.Group, panel.Head, -1, -1, "%d queries, the first panel has %d", len(panel.Weights), queries)
			}
			for i, weights := range panel.Weights {
				if len(weights) != keys {
					return refuse(row.Group, panel.Head, i, -1, "%d keys, the first panel has %d", len(weights), keys)
				}
				for j, weight := range weights {
					if !(weight >= 0 && weight <= weightLimit) { // NaN too
						return refuse(row.Group, panel.Head, i, j, "weight %v is not in 0..1", weight)
					}
				}
			}
		}
	}
	if len(f.Tokens) != 0 && len(f.Tokens) != keys {
		return refuse(-1, -1, -1, -1, "%d tokens for %d keys", len(f.Tokens), keys)
	}
	if len(f.Positions) != 0 && len(f.Positions) != queries {
		return refuse(-1, -1, -1, -1, "%d positions for %d queries", len(f.Positions), queries)
	}
	return queries, keys, nil
}

// breadth is how many positions a query of the head looks at, on average over
// the queries: e to the entropy of its weights. ok is false where no query
// weighs anything.
func breadth(weights [][]float64) (mean float64, ok bool) {
	var sum, n float64
	for _, row := range weights {
		var mass, moment float64 // Σp and Σp·log p
		for _, p := range row {
			if p > 0 {
				mass += p
				moment += p * math.Log(p)
			}
		}
		if mass > 0 {
			sum += mass * math.Exp(-moment/mass)
			n++
		}
	}
	if n == 0 {
		return 0, false
	}
	return sum / n, true
}

// pool reduces weights to cells of sizeY × sizeX by their maximum, so that one
// strong match stays visible among thousands of weak ones.
func pool(weights [][]float64, sizeY, sizeX int) [][]float64 {
	if sizeY == 1 && sizeX == 1 {
		return weights
	}
	cells := make([][]float64, ceilDiv(len(weights), sizeY))
	for y := range cells {
		cells[y] = make([]float64, ceilDiv(len(weights[0]), sizeX))
	}
	for i, row := range weights {
		cell := cells[i/sizeY]
		for j, weight := range row {
			cell[j/sizeX] = max(cell[j/sizeX], weight)
		}
	}
	return cells
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }
