package heatmap

import (
	"image"
	"strconv"
)

// Sizes in pixels.
const (
	margin       = 32
	maxPixels    = 32 << 20 // of an image
	maxWidth     = 2400     // that the panels of a line may take together, unless at minPanel
	maxHeight    = 6000     // likewise of all lines
	idealPanel   = 500      // the side that a panel has where there is room
	minPanel     = 128
	maxCell      = 30 // side of one weight
	lineOfPanels = 8  // panels of a group beside each other; more go on the next line
	panelGap     = 26
	groupGap     = 22
	minContent   = 620 // so that title and scale have room beside one small panel
	labelCell    = 15  // a cell this large is labeled with its token
	barWidth     = 320
	barHeight    = 14
)

// layout places the parts of a figure.
type layout struct {
	fonts *fonts
	scale *scale

	queries, keys int
	panels        int
	poolX, poolY  int // weights of one cell
	cellX, cellY  int // pixels of one cell
	panelX        int // pixels of a panel
	panelY        int
	columns       int // panels of the widest line
	columnX       int // a panel with what stands beside it
	lineY         int // a panel with its title and ticks
	labelX        int // the axis' name and tick labels left of the first column
	labelY        int // tick labels below a panel

	title, caption, footnote []string
	rowTicks                 []tick
	keyTicks                 []tick
	names                    bool // each key is labeled with its token

	top           int // where the first group begins
	width, height int
}

// tick marks a query or key by its index.
type tick struct {
	index int
	label string
}

func newLayout(f Figure, queries, keys int, fonts *fonts) *layout {
	l := &layout{fonts: fonts, scale: newScale(keys), queries: queries, keys: keys}
	lines := 0
	for _, row := range f.Rows {
		l.panels += len(row.Panels)
		l.columns = max(l.columns, min(len(row.Panels), lineOfPanels))
		lines += ceilDiv(len(row.Panels), lineOfPanels)
	}

	side := min(idealPanel, maxWidth/l.columns-panelGap, maxHeight/lines-60)
	side = max(side, minPanel)
	l.poolX, l.cellX = cellsOf(keys, side)
	l.poolY, l.cellY = cellsOf(queries, side)
	l.panelX = ceilDiv(keys, l.poolX) * l.cellX
	l.panelY = ceilDiv(queries, l.poolY) * l.cellY

	l.ticks(f)
	for _, t := range l.rowTicks {
		l.labelX = max(l.labelX, textWidth(fonts.tick, t.label))
	}
	l.labelX += 36 // the axis' name, tick marks and air

	titles := 0
	for _, row := range f.Rows {
		for _, panel := range row.Panels {
			name, note := panelTitle(panel)
			titles = max(titles, textWidth(fonts.body, name)+16+textWidth(fonts.tick, note))
		}
	}
	l.columnX = max(l.panelX, titles) + panelGap
	l.lineY = 26 + l.panelY + l.labelY

	content := max(l.labelX+l.columns*l.columnX-panelGap, minContent)
	l.width = content + 2*margin
	if f.Title != "" {
		l.title = wrap(fonts.title, f.Title, content, 2)
	}
	l.caption = wrap(fonts.body, f.Caption, content, 6)
	l.footnote = wrap(fonts.tick, footnote, content, 3)
	l.top = margin + 34*len(l.title) + 21*len(l.caption) + 74
	l.height = l.top + lines*l.lineY + len(f.Rows)*(32+groupGap) + 24 + 21*len(l.footnote) + margin - groupGap
	return l
}

// cellsOf gives how many of n weights share a cell, and the cell's pixels, so
// that n weights take about side pixels in whole ones.
func cellsOf(n, side int) (pooled, pixels int) {
	pooled = max(ceilDiv(n*4, side*5), 1)
	cells := ceilDiv(n, pooled)
	return pooled, min(max((2*side+cells)/(2*cells), 1), maxCell)
}

// ticks chooses what the axes name: each key's token where there is room, else
// round positions, on the query axis with their tokens.
func (l *layout) ticks(f Figure) {
	token := func(position int64) string {
		if position < 0 || position >= int64(len(f.Tokens)) {
			return ""
		}
		return clean(f.Tokens[position], 14)
	}
	l.names = len(f.Tokens) > 0 && l.poolX == 1 && l.cellX >= labelCell
	if l.names {
		for j := range l.keys {
			l.keyTicks = append(l.keyTicks, tick{j, token(int64(j))})
			l.labelY = max(l.labelY, textWidth(l.fonts.tick, l.keyTicks[j].label))
		}
		l.labelY += 14
	} else {
		widest := textWidth(l.fonts.tick, digits(l.keys)) + 24
		step := stepOf(widest * l.poolX / l.cellX)
		for j := 0; j < l.keys; j += step {
			l.keyTicks = append(l.keyTicks, tick{j, strconv.Itoa(j)})
		}
		l.labelY = 28
	}

	if len(f.Positions) > 0 { // any order: each one that has room
		step := max(ceilDiv(20*l.poolY, l.cellY), 1)
		for i := 0; i < l.queries; i += step {
			l.rowTicks = append(l.rowTicks, rowTick(i, f.Positions[i], token(f.Positions[i])))
		}
		return
	}
	step := int64(1)
	if l.poolY > 1 || l.cellY < labelCell {
		step = int64(stepOf(40 * l.poolY / l.cellY))
	}
	first := f.Offset / step * step
	if first < f.Offset {
		first += step
	}
	for p := first; p-f.Offset < int64(l.queries); p += step {
		l.rowTicks = append(l.rowTicks, rowTick(int(p-f.Offset), p, token(p)))
	}
}

func rowTick(i int, position int64, token string) tick {
	label := strconv.FormatInt(position, 10)
	if token != "" {
		label = token + "  " + label
	}
	return tick{i, label}
}

// stepOf is the smallest of 1, 2, 5, 10, 20, 50, … that is at least least.
func stepOf(least int) int {
	for power := 1; ; power *= 10 {
		for _, m := range []int{1, 2, 5} {
			if m*power >= least {
				return m * power
			}
		}
	}
}

// footnote explains panelTitle's figure.
const footnote = "A head looks at as many positions as would, weighed evenly, have the entropy of its weights: the mean over its queries."

// panelTitle is the head's name, and how many positions its queries look at.
func panelTitle(p Panel) (name, note string) {
	name = "head " + strconv.Itoa(p.Head)
	if mean, ok := breadth(p.Weights); ok {
		places := 1
		if mean >= 100 {
			places = 0
		}
		note = "looks at ≈ " + strconv.FormatFloat(mean, 'f', places, 64) + " positions"
	}
	return name, note
}

// center of query or key i in pixels from the panel's edge.
func center(i, pooled, pixels int) int { return i/pooled*pixels + pixels/2 }

// panelAt is the rectangle of a panel in column c of the line that begins at y.
func (l *layout) panelAt(c, y int) image.Rectangle {
	x := margin + l.labelX + c*l.columnX
	return image.Rect(x, y+26, x+l.panelX, y+26+l.panelY)
}
