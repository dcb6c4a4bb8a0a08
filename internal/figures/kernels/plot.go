package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
	"golang.org/x/image/vector"
)

func load(path string) (r report, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("read samples %s: %w", path, err)
	}
	return r, nil
}

// draw draws the samples into a picture.
func (c *command) draw() (err error) {
	r, err := load(c.samples)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.plot), 0o755); err != nil {
		return err
	}
	f, err := os.Create(c.plot)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return roofline(f, r)
}

// The picture, in pixels.
const (
	width, height           = 1120, 700
	left, right, top, below = 84, 30, 84, 70
	labelHeight, pointSize  = 17, 5
)

var (
	paper = color.RGBA{0xff, 0xff, 0xff, 0xff}
	ink   = color.RGBA{0x1c, 0x1c, 0x24, 0xff}
	soft  = color.RGBA{0x6a, 0x6a, 0x76, 0xff}
	grid  = color.RGBA{0xe4, 0xe4, 0xea, 0xff}
	roof  = color.RGBA{0x40, 0x07, 0x78, 0xff}
	own   = color.RGBA{0xd4, 0x1d, 0x59, 0xff}
	other = color.RGBA{0x1f, 0x7a, 0x8c, 0xff}
)

// plot maps flops a byte and flops a second, both by their logarithms, to pixels.
type plot struct {
	img                    *image.RGBA
	body, title            font.Face
	minX, maxX, minY, maxY float64
	taken                  []image.Rectangle // by labels and points
}

func (p *plot) x(v float64) float64 {
	return left + (width-left-right)*math.Log(v/p.minX)/math.Log(p.maxX/p.minX)
}

func (p *plot) y(v float64) float64 {
	return height - below - (height-top-below)*math.Log(v/p.minY)/math.Log(p.maxY/p.minY)
}

// mark is one measured row.
type mark struct {
	x, y float64 // flops a byte, flops a second
	row  row
}

// roofline draws every row of one core by its flops a byte and flops a second, under the roof that the bus and the FMA
// units make, each the median over the whole run.
func roofline(w io.Writer, r report) error {
	found := make(map[limit][]float64)
	var marks []mark
	for _, row := range r.Rows {
		for _, s := range row.Samples {
			for l, v := range s.Limits {
				found[l] = append(found[l], v)
			}
		}
		if seconds := row.median(func(s sample) float64 { return s.Seconds }); row.Flops > 0 && row.Bytes > 0 && row.Threads == 1 && seconds > 0 {
			marks = append(marks, mark{row.Flops / row.Bytes, row.Flops / seconds, row})
		}
	}
	bus, fma := median(found[read1]), median(found[peak])
	if fma == 0 {
		fma = median(found[peak2])
	}
	if len(marks) == 0 || !(bus > 0) || !(fma > 0) {
		return errors.New("draw the roofline: the samples have no row of one core with the limits of bus and FMA units")
	}
	p := &plot{img: image.NewRGBA(image.Rect(0, 0, width, height)), minX: 1, maxX: 1000, minY: fma / 4, maxY: fma * 1.6}
	for _, m := range marks {
		p.minX, p.maxX = min(p.minX, m.x/2), max(p.maxX, m.x*2)
		p.minY, p.maxY = min(p.minY, m.y/1.6), max(p.maxY, m.y*1.6)
	}
	draw.Draw(p.img, p.img.Bounds(), image.NewUniform(paper), image.Point{}, draw.Src)
	var err error
	if p.body, err = face(goregular.TTF, 14); err == nil {
		p.title, err = face(gobold.TTF, 21)
	}
	if err != nil {
		return fmt.Errorf("draw the roofline: read the font: %w", err)
	}
	p.axes()
	p.roofs(bus, fma)
	p.text(p.title, ink, left, 36, "Attention kernels under the roof of one core")
	p.text(p.body, soft, left, 60, fmt.Sprintf("%s, last-level cache %d MiB, kernel %s, %s. Each point is the median of %d rounds.",
		r.Processor, r.Cache>>20, r.Kernel, r.Taken.Format("2006-01-02"), r.Rounds))
	p.marks(marks)
	if err := png.Encode(w, p.img); err != nil {
		return fmt.Errorf("draw the roofline: %w", err)
	}
	return nil
}

func face(ttf []byte, size float64) (font.Face, error) {
	parsed, err := opentype.Parse(ttf)
	if err != nil {
		return nil, err
	}
	return opentype.NewFace(parsed, &opentype.FaceOptions{Size: size, DPI: 72, Hinting: font.HintingFull})
}

func (p *plot) text(f font.Face, c color.Color, x, y int, s string) {
	d := font.Drawer{Dst: p.img, Src: image.NewUniform(c), Face: f, Dot: fixed.P(x, y)}
	d.DrawString(s)
}

func (p *plot) wide(s string) int { return font.MeasureString(p.body, s).Ceil() }

// line draws a line of a given thickness.
func (p *plot) line(c color.Color, thick, x0, y0, x1, y1 float64) {
	d := math.Hypot(x1-x0, y1-y0)
	if d == 0 {
		return
	}
	u, v := (y1-y0)/d*thick/2, -(x1-x0)/d*thick/2
	p.fill(c, [][2]float64{{x0 + u, y0 + v}, {x1 + u, y1 + v}, {x1 - u, y1 - v}, {x0 - u, y0 - v}})
}

func (p *plot) circle(c color.Color, x, y, radius float64) {
	var points [][2]float64
	for i := range 32 {
		sin, cos := math.Sincos(2 * math.Pi * float64(i) / 32)
		points = append(points, [2]float64{x + radius*cos, y + radius*sin})
	}
	p.fill(c, points)
}

func (p *plot) fill(c color.Color, points [][2]float64) {
	r := vector.NewRasterizer(width, height)
	r.MoveTo(float32(points[0][0]), float32(points[0][1]))
	for _, q := range points[1:] {
		r.LineTo(float32(q[0]), float32(q[1]))
	}
	r.ClosePath()
	r.Draw(p.img, p.img.Bounds(), image.NewUniform(c), image.Point{})
}

// axes draws the grid: 1, 2 and 5 of every decade.
func (p *plot) axes() {
	ticks := func(lo, hi float64) (all []float64) {
		for e := math.Floor(math.Log10(lo)); e <= math.Log10(hi); e++ {
			for _, m := range []float64{1, 2, 5} {
				if v := m * math.Pow(10, e); v >= lo && v <= hi {
					all = append(all, v)
				}
			}
		}
		return all
	}
	for _, v := range ticks(p.minX, p.maxX) {
		x := p.x(v)
		p.line(grid, 1, x, top, x, height-below)
		s := strconv.FormatFloat(v, 'g', 6, 64)
		p.text(p.body, soft, int(x)-p.wide(s)/2, height-below+20, s)
	}
	for _, v := range ticks(p.minY/1e9, p.maxY/1e9) {
		y := p.y(v * 1e9)
		p.line(grid, 1, left, y, width-right, y)
		s := strconv.FormatFloat(v, 'g', 6, 64)
		p.text(p.body, soft, left-8-p.wide(s), int(y)+5, s)
	}
	p.line(soft, 1, left, height-below, width-right, height-below)
	p.line(soft, 1, left, top, left, height-below)
	s := "flops for each byte of K and V (of x, w and y for project)"
	p.text(p.body, ink, (left+width-right-p.wide(s))/2, height-18, s)
	p.text(p.body, ink, 12, top-8, "GFLOP/s")
}

// roofs draws the lines that no point of memory can be above.
func (p *plot) roofs(bus, fma float64) {
	ridge := fma / bus
	from := max(p.minX, p.minY/bus)
	p.line(roof, 2.5, p.x(from), p.y(from*bus), p.x(ridge), p.y(fma))
	p.line(roof, 2.5, p.x(ridge), p.y(fma), width-right, p.y(fma))
	s := fmt.Sprintf("FMA peak %.0f GFLOP/s", fma/1e9)
	p.put(roof, width-right-p.wide(s)-6, int(p.y(fma))-10, s)
	s = fmt.Sprintf("read bandwidth %.1f GB/s", bus/1e9)
	p.put(roof, max(int(p.x(ridge))-p.wide(s)-10, left+4), int(p.y(fma))-6, s)
	// Labels keep off the roof.
	const steps = 64
	for i := range steps {
		v := from * math.Pow(p.maxX/from, float64(i)/steps)
		x, y := int(p.x(v)), int(p.y(min(v*bus, fma)))
		p.taken = append(p.taken, image.Rect(x-8, y-3, x+8, y+3))
	}
}

// put writes s and keeps its place.
func (p *plot) put(c color.Color, x, y int, s string) {
	p.taken = append(p.taken, image.Rect(x-3, y-13, x+p.wide(s)+3, y+4))
	p.text(p.body, c, x, y, s)
}

// marks draws the points, then a label for each figure beside it, at the nearest free place.
func (p *plot) marks(all []mark) {
	slices.SortFunc(all, func(a, b mark) int {
		switch {
		case a.y > b.y:
			return -1
		case a.y < b.y:
			return 1
		}
		return 0
	})
	for _, m := range all {
		x, y := p.x(m.x), p.y(m.y)
		p.taken = append(p.taken, image.Rect(int(x)-pointSize, int(y)-pointSize, int(x)+pointSize, int(y)+pointSize))
	}
	for _, m := range all {
		c := own
		switch {
		case m.row.Intended != "":
			c = other
		case !m.row.Figure:
			c = soft
		}
		x, y := p.x(m.x), p.y(m.y)
		if m.row.Figure {
			s := fmt.Sprintf("%s  %.2f", m.row.Name, m.row.median(func(s sample) float64 { return s.Share }))
			if m.row.Cached {
				s += " (in L2)"
			}
			p.label(c, x, y, s)
		}
		p.circle(c, x, y, pointSize)
		if m.row.Cached {
			p.circle(paper, x, y, pointSize-2)
		}
	}
	s := "Beside each name: the share that it reaches of its own round's limit, bus or FMA peak, whichever is lower."
	p.text(p.body, soft, left+16, height-below-14, s)
}

// label tries places to the right and left of a point, ever further up and down.
func (p *plot) label(c color.Color, x, y float64, s string) {
	inside := image.Rect(left+2, top, width-4, height-below-32)
	w := p.wide(s)
	for i := range 40 {
		shift := (i + 1) / 2 * 6
		if i%2 == 1 {
			shift = -shift
		}
		for _, at := range []int{int(x) + 12, int(x) - 12 - w} {
			r := image.Rect(at-2, int(y)+shift-labelHeight/2, at+w+2, int(y)+shift+labelHeight/2)
			free := r.In(inside) && !slices.ContainsFunc(p.taken, r.Overlaps)
			if !free {
				continue
			}
			if shift != 0 {
				end := float64(r.Min.X)
				if at < int(x) {
					end = float64(r.Max.X)
				}
				p.line(soft, 1, x, y, end, y+float64(shift))
			}
			p.taken = append(p.taken, r)
			p.text(p.body, c, at, int(y)+shift+5, s)
			return
		}
	}
}
