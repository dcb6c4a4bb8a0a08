package heatmap

import (
	"image"
	"image/color"
	"image/draw"
	"strconv"
)

// paint draws the figure as placed.
func (l *layout) paint(f Figure) *image.RGBA {
	img := image.NewRGBA(image.Rect(0, 0, l.width, l.height))
	fill(img, img.Rect, paper)

	y := margin
	for _, line := range l.title {
		write(img, l.fonts.title, ink, margin, y+ascent(l.fonts.title), line)
		y += 34
	}
	for _, line := range l.caption {
		write(img, l.fonts.body, soft, margin, y+ascent(l.fonts.body), line)
		y += 21
	}
	l.paintScale(img, y+12)

	y = l.top
	for _, row := range f.Rows {
		y = l.paintGroup(img, f, row, y) + groupGap
	}
	y -= groupGap
	write(img, l.fonts.body, soft, margin+l.labelX, y+ascent(l.fonts.body)+2, "key position →")
	y += 28
	for _, line := range l.footnote {
		write(img, l.fonts.tick, soft, margin, y+ascent(l.fonts.tick), line)
		y += 21
	}
	return img
}

// paintGroup draws one KV group from y down, and gives where it ends.
func (l *layout) paintGroup(img *image.RGBA, f Figure, row Row, y int) int {
	fill(img, image.Rect(margin, y, l.width-margin, y+1), rule)
	base := y + 10 + ascent(l.fonts.group)
	name := "KV group " + strconv.Itoa(row.Group)
	write(img, l.fonts.group, ink, margin, base, name)
	if row.Label != "" {
		x := margin + textWidth(l.fonts.group, name) + 14
		write(img, l.fonts.body, soft, x, base, fit(l.fonts.body, clean(row.Label, 200), l.width-margin-x))
	}
	y += 32
	for i, panel := range row.Panels {
		column := i % lineOfPanels
		if i > 0 && column == 0 {
			y += l.lineY
		}
		l.paintPanel(img, panel, l.panelAt(column, y), column == 0)
	}
	return y + l.lineY
}

func (l *layout) paintPanel(img *image.RGBA, p Panel, r image.Rectangle, first bool) {
	name, note := panelTitle(p)
	base := r.Min.Y - 8
	write(img, l.fonts.body, ink, r.Min.X, base, name)
	x := max(r.Max.X-textWidth(l.fonts.tick, note), r.Min.X+textWidth(l.fonts.body, name)+16)
	write(img, l.fonts.tick, soft, x, base, note)

	fill(img, r.Inset(-1), rule)
	for i, row := range pool(p.Weights, l.poolY, l.poolX) {
		for j, weight := range row {
			at := r.Min.Add(image.Pt(j*l.cellX, i*l.cellY))
			fill(img, image.Rectangle{at, at.Add(image.Pt(l.cellX, l.cellY))}, l.scale.color(weight))
		}
	}

	for _, t := range l.keyTicks {
		x := r.Min.X + center(t.index, l.poolX, l.cellX)
		fill(img, image.Rect(x, r.Max.Y+1, x+1, r.Max.Y+5), soft)
		width := textWidth(l.fonts.tick, t.label)
		if l.names {
			writeUp(img, l.fonts.tick, soft, x+5, r.Max.Y+8+width, t.label)
			continue
		}
		// Inside the column, so that neighbors' labels never meet.
		left := min(x-width/2, max(r.Max.X, r.Min.X+width)-width)
		write(img, l.fonts.tick, soft, max(left, r.Min.X-8), r.Max.Y+7+ascent(l.fonts.tick), t.label)
	}
	for _, t := range l.rowTicks {
		y := r.Min.Y + center(t.index, l.poolY, l.cellY)
		fill(img, image.Rect(r.Min.X-5, y, r.Min.X-1, y+1), soft)
		if first {
			write(img, l.fonts.tick, soft, r.Min.X-9-textWidth(l.fonts.tick, t.label), y+5, t.label)
		}
	}
	if first {
		const name = "← query"
		if width := textWidth(l.fonts.body, name); width <= r.Dy()+26 {
			writeUp(img, l.fonts.body, soft, margin+ascent(l.fonts.body)-2, r.Min.Y+width, name)
		}
	}
}

// paintScale draws the scale of colors with its ticks, and what gray means.
func (l *layout) paintScale(img *image.RGBA, y int) {
	bar := image.Rect(margin, y, margin+barWidth, y+barHeight)
	fill(img, bar.Inset(-1), rule)
	for i := range barWidth {
		c := l.scale.table[i*255/(barWidth-1)]
		fill(img, image.Rect(bar.Min.X+i, bar.Min.Y, bar.Min.X+i+1, bar.Max.Y), c)
	}
	least := "≤ " + l.scale.label(l.scale.decades)
	taken := bar.Min.X + textWidth(l.fonts.tick, least) + 8 // where the next label may begin
	base := bar.Max.Y + 7 + ascent(l.fonts.tick)
	write(img, l.fonts.tick, soft, bar.Min.X, base, least)
	for d := l.scale.decades; d >= 0; d-- {
		x := bar.Max.X - 1 - (barWidth-1)*d/l.scale.decades
		fill(img, image.Rect(x, bar.Max.Y+1, x+1, bar.Max.Y+5), soft)
		label := l.scale.label(d)
		width := textWidth(l.fonts.tick, label)
		if left := x - width/2; left >= taken {
			write(img, l.fonts.tick, soft, left, base, label)
			taken = left + width + 8
		}
	}
	x := bar.Max.X + 24
	write(img, l.fonts.body, ink, x, bar.Max.Y-1, "attention weight, log scale")
	swatch := image.Rect(x, bar.Max.Y+9, x+barHeight, bar.Max.Y+9+barHeight)
	fill(img, swatch.Inset(-1), rule)
	fill(img, swatch, unseen)
	write(img, l.fonts.tick, soft, swatch.Max.X+8, swatch.Max.Y-2, "not visible, or exactly 0"+l.poolNote())
}

// poolNote says how many weights a cell stands for.
func (l *layout) poolNote() string {
	if l.poolX == 1 && l.poolY == 1 {
		return ""
	}
	return " · a cell is the largest of " + strconv.Itoa(l.poolY) + " × " + strconv.Itoa(l.poolX) + " weights"
}

func fill(img *image.RGBA, r image.Rectangle, c color.RGBA) {
	draw.Draw(img, r, image.NewUniform(c), image.Point{}, draw.Src)
}
