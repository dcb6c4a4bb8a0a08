package heatmap

import (
	"bytes"
	"errors"
	"image"
	"image/png"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// causal gives even weights over what a causal query at offset + i sees.
func causal(queries, keys int) [][]float64 {
	w := make([][]float64, queries)
	for i := range w {
		w[i] = make([]float64, keys)
		seen := keys - queries + i + 1
		for j := range max(seen, 0) {
			w[i][j] = 1 / float64(seen)
		}
	}
	return w
}

func figure(groups, heads, queries, keys int) Figure {
	f := Figure{Title: "title", Caption: "caption"}
	for g := range groups {
		row := Row{Group: g, Label: "on worker-0"}
		for h := range heads {
			row.Panels = append(row.Panels, Panel{g*heads + h, causal(queries, keys)})
		}
		f.Rows = append(f.Rows, row)
	}
	return f
}

func drawn(t *testing.T, f Figure) image.Image {
	t.Helper()
	var b bytes.Buffer
	if err := Draw(&b, f); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// sizeOf draws a figure and reads only how large its image is.
func sizeOf(t *testing.T, f Figure) image.Point {
	t.Helper()
	var b bytes.Buffer
	if err := Draw(&b, f); err != nil {
		t.Fatal(err)
	}
	c, err := png.DecodeConfig(&b)
	if err != nil {
		t.Fatal(err)
	}
	return image.Pt(c.Width, c.Height)
}

func TestSizes(t *testing.T) {
	for _, c := range []struct {
		name                         string
		groups, heads, queries, keys int
	}{
		{"one weight", 1, 1, 1, 1},
		{"one query", 2, 4, 1, 300},
		{"one key", 1, 2, 40, 1},
		{"square", 3, 3, 64, 64},
		{"between one and two pixels", 1, 3, 330, 330},
		{"long keys", 1, 2, 8, 20_000},
		{"long queries", 1, 1, 3000, 200},
		{"one group of many heads", 1, 71, 16, 16},
		{"many groups of one head", 32, 1, 16, 16},
	} {
		t.Run(c.name, func(t *testing.T) {
			size := sizeOf(t, figure(c.groups, c.heads, c.queries, c.keys))
			if size.X < minContent || size.X > 3400 || size.Y < 200 || size.Y > 9000 {
				t.Errorf("%v is not a sensible size", size)
			}
		})
	}
}

// A panel keeps to about its side, whatever the length.
func TestCells(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, side := rapid.IntRange(1, 1<<30).Draw(t, "n"), rapid.IntRange(minPanel, idealPanel).Draw(t, "side")
		pooled, pixels := cellsOf(n, side)
		if got := ceilDiv(n, pooled) * pixels; got > side*3/2 || (n >= side && got < side*5/8) {
			t.Fatalf("%d weights take %d pixels of a side of %d", n, got, side)
		}
		if n <= side && pooled != 1 {
			t.Fatalf("%d weights are pooled although there are %d pixels", n, side)
		}
	})
}

func TestPixelsAreTheWeights(t *testing.T) {
	f := figure(1, 1, 3, 3)
	f.Rows[0].Panels[0].Weights = [][]float64{{1, 0, 0}, {0.5, 0.5, 0}, {1e-9, 0.01, 0.99}}
	img := drawn(t, f)
	fonts, err := newFonts()
	if err != nil {
		t.Fatal(err)
	}
	defer fonts.close()
	l := newLayout(f, 3, 3, fonts)
	r := l.panelAt(0, l.top+32)
	for i, row := range f.Rows[0].Panels[0].Weights {
		for j, weight := range row {
			at := r.Min.Add(image.Pt(center(j, l.poolX, l.cellX), center(i, l.poolY, l.cellY)))
			if got, want := img.At(at.X, at.Y), l.scale.color(weight); got != want {
				t.Errorf("weight %v at [%d, %d] has color %v, want %v", weight, i, j, got, want)
			}
		}
	}
}

func TestPoolKeepsTheLargest(t *testing.T) {
	w := causal(10, 10)
	w[6][3] = 0.75
	cells := pool(w, 4, 3)
	if len(cells) != 3 || len(cells[0]) != 4 || cells[1][1] != 0.75 || cells[0][2] != 0 {
		t.Errorf("cells %v", cells)
	}
}

func TestScale(t *testing.T) {
	s := newScale(242)
	if s.decades != 4 || newScale(1).decades != 3 || newScale(1<<40).decades != 8 {
		t.Errorf("%d decades for 242 keys", s.decades)
	}
	if s.color(0) != unseen || s.color(1e-300) != s.table[0] || s.color(weightLimit) != s.table[255] {
		t.Error("the ends of the scale have other colors")
	}
	light := func(i int) float64 { // relative luminance
		linear := func(v uint8) float64 { return math.Pow(float64(v)/255, 2.2) }
		c := s.table[i]
		return 0.2126*linear(c.R) + 0.7152*linear(c.G) + 0.0722*linear(c.B)
	}
	for i := 8; i < 256; i += 8 {
		if light(i) <= light(i-8) {
			t.Errorf("color %d is not lighter than color %d", i, i-8)
		}
	}
}

func TestBreadth(t *testing.T) {
	for _, c := range []struct {
		weights [][]float64
		want    float64
	}{
		{[][]float64{{1, 0, 0}}, 1},
		{[][]float64{{0.25, 0.25, 0.25, 0.25}, {0.5, 0.5, 0, 0}, {0, 0, 0, 0}}, 3},
	} {
		if got, ok := breadth(c.weights); !ok || math.Abs(got-c.want) > 1e-12 {
			t.Errorf("breadth %v, want %v", got, c.want)
		}
	}
	if _, ok := breadth([][]float64{{0, 0}}); ok {
		t.Error("a head that sees nothing has a breadth")
	}
}

func TestDeterministic(t *testing.T) {
	f := figure(2, 2, 20, 20)
	for range 20 {
		f.Tokens = append(f.Tokens, " token")
	}
	var a, b bytes.Buffer
	if err := errors.Join(Draw(&a, f), Draw(&b, f)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the same figure gave other bytes")
	}
}

func TestText(t *testing.T) {
	f := figure(1, 2, 12, 12)
	for i := range 12 {
		f.Tokens = append(f.Tokens, []string{"\n", "", "\x00\xff", "中文", strings.Repeat("long", 1000)}[i%5])
	}
	f.Title = strings.Repeat("W", 100_000)
	f.Caption = strings.Repeat("many words ", 10_000)
	f.Rows[0].Label = strings.Repeat("label ", 10_000)
	if size := sizeOf(t, f); size.X > 2000 || size.Y > 2000 {
		t.Errorf("long texts made an image of %v", size)
	}
}

func TestPositions(t *testing.T) {
	f := figure(1, 1, 4, 4)
	f.Tokens = []string{"a", "b", "c", "d"}
	for _, offset := range []int64{0, -3, 100, positionLimit, -positionLimit} {
		f.Offset = offset
		sizeOf(t, f)
	}
	f.Positions = []int64{3, -1, math.MaxInt64, math.MinInt64}
	sizeOf(t, f)

	l := &layout{queries: 100, keys: 100, poolX: 1, poolY: 1, cellX: 5, cellY: 5}
	fonts, err := newFonts()
	if err != nil {
		t.Fatal(err)
	}
	defer fonts.close()
	l.fonts = fonts
	l.ticks(Figure{Offset: -25})
	if l.rowTicks[0] != (tick{5, "-20"}) || l.rowTicks[2] != (tick{25, "0"}) {
		t.Errorf("ticks %v", l.rowTicks)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(f *Figure)
		want  string
	}{
		{"no rows", func(f *Figure) { f.Rows = nil }, "heat map: no rows"},
		{"no panels", func(f *Figure) { f.Rows[1].Panels = nil }, "heat map group 1: no panels"},
		{"no queries", func(f *Figure) { f.Rows[0].Panels[0].Weights = nil }, "heat map group 0 head 0: no weights"},
		{"no keys", func(f *Figure) { f.Rows[0].Panels[0].Weights[0] = nil }, "heat map group 0 head 0: no weights"},
		{"fewer queries", func(f *Figure) { f.Rows[1].Panels[0].Weights = causal(3, 5) }, "heat map group 1 head 2: 3 queries, the first panel has 5"},
		{"ragged", func(f *Figure) { f.Rows[0].Panels[1].Weights[2] = make([]float64, 4) }, "heat map group 0 head 1 query 2: 4 keys, the first panel has 5"},
		{"NaN", func(f *Figure) { f.Rows[1].Panels[1].Weights[4][3] = math.NaN() }, "heat map group 1 head 3 query 4 key 3: weight NaN is not in 0..1"},
		{"infinite", func(f *Figure) { f.Rows[0].Panels[0].Weights[0][0] = math.Inf(1) }, "heat map group 0 head 0 query 0 key 0: weight +Inf is not in 0..1"},
		{"negative", func(f *Figure) { f.Rows[0].Panels[0].Weights[0][0] = -1e-9 }, "heat map group 0 head 0 query 0 key 0: weight -1e-09 is not in 0..1"},
		{"above 1", func(f *Figure) { f.Rows[0].Panels[0].Weights[0][0] = 1.01 }, "heat map group 0 head 0 query 0 key 0: weight 1.01 is not in 0..1"},
		{"tokens", func(f *Figure) { f.Tokens = make([]string, 4) }, "heat map: 4 tokens for 5 keys"},
		{"positions", func(f *Figure) { f.Positions = make([]int64, 6) }, "heat map: 6 positions for 5 queries"},
		{"offset", func(f *Figure) { f.Offset = math.MinInt64 }, "heat map: offset -9223372036854775808 is not within ±2⁵³"},
		{"head", func(f *Figure) { f.Rows[0].Panels[0].Head = -1 }, "heat map group 0: head -1 is below 0"},
		{"group", func(f *Figure) { f.Rows[0].Group = -1 }, "heat map: group -1 is below 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := figure(2, 2, 5, 5)
			c.spoil(&f)
			var b bytes.Buffer
			err := Draw(&b, f)
			if refused := (*FigureError)(nil); !errors.As(err, &refused) || err.Error() != c.want {
				t.Errorf("error %v, want %s", err, c.want)
			}
			if b.Len() != 0 {
				t.Errorf("%d bytes were written", b.Len())
			}
		})
	}
}

func TestTooManyPanels(t *testing.T) {
	f := Figure{Rows: make([]Row, 1)}
	panel := Panel{0, causal(100, 100)}
	for range 4096 {
		f.Rows[0].Panels = append(f.Rows[0].Panels, panel)
	}
	var b bytes.Buffer
	if err := Draw(&b, f); err == nil || !strings.Contains(err.Error(), "4096 panels do not fit") {
		t.Errorf("error %v", err)
	}
}

type full struct{}

var errFull = errors.New("disk full")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestWriterFails(t *testing.T) {
	if err := Draw(full{}, figure(1, 1, 4, 4)); !errors.Is(err, errFull) {
		t.Errorf("error %v", err)
	}
}
