package heatmap

import (
	"image"
	"image/color"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
)

// parsed holds the fonts, which faces share; a face serves one goroutine.
var parsed = sync.OnceValues(func() (fonts [2]*opentype.Font, err error) {
	for i, ttf := range [][]byte{goregular.TTF, gobold.TTF} {
		if fonts[i], err = opentype.Parse(ttf); err != nil {
			return fonts, err
		}
	}
	return fonts, nil
})

// fonts are the faces of one drawing.
type fonts struct {
	title, group, body, tick font.Face
}

func newFonts() (*fonts, error) {
	files, err := parsed()
	if err != nil {
		return nil, err
	}
	f := new(fonts)
	for _, face := range []struct {
		to   *font.Face
		file *opentype.Font
		size float64 // pixels
	}{{&f.title, files[1], 25}, {&f.group, files[1], 17}, {&f.body, files[0], 15}, {&f.tick, files[0], 13}} {
		*face.to, err = opentype.NewFace(face.file, &opentype.FaceOptions{Size: face.size, DPI: 72, Hinting: font.HintingFull})
		if err != nil {
			f.close()
			return nil, err
		}
	}
	return f, nil
}

func (f *fonts) close() {
	for _, face := range []font.Face{f.title, f.group, f.body, f.tick} {
		if face != nil {
			_ = face.Close() // an opentype face holds nothing that could fail to close
		}
	}
}

func textWidth(face font.Face, s string) int { return font.MeasureString(face, s).Ceil() }

func ascent(face font.Face) int { return face.Metrics().Ascent.Ceil() }

// write puts s with its left end and baseline at (x, y).
func write(img *image.RGBA, face font.Face, c color.Color, x, y int, s string) {
	d := font.Drawer{Dst: img, Src: image.NewUniform(c), Face: face, Dot: fixed.P(x, y)}
	d.DrawString(s)
}

// writeUp puts s turned to read upward, with its baseline at x and its start at y.
func writeUp(img *image.RGBA, face font.Face, c color.RGBA, x, y int, s string) {
	m := face.Metrics()
	up, down := m.Ascent.Ceil(), m.Descent.Ceil()
	flat := image.NewRGBA(image.Rect(0, 0, textWidth(face, s), up+down))
	for i := 0; i < len(flat.Pix); i += 4 {
		copy(flat.Pix[i:i+4], []uint8{paper.R, paper.G, paper.B, paper.A})
	}
	write(flat, face, c, 0, up, s)
	for v := range flat.Rect.Dy() {
		for u := range flat.Rect.Dx() {
			if p := flat.RGBAAt(u, v); p != paper {
				img.SetRGBA(x-up+v, y-u, p)
			}
		}
	}
}

// clean makes s one line that shows what it holds: line ends and tabs by their
// escapes, other control characters as a dot. Only the first limit runes stay.
func clean(s string, limit int) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n == limit {
			b.WriteRune('…')
			break
		}
		n++
		switch {
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case unicode.IsSpace(r):
			b.WriteByte(' ')
		case !unicode.IsPrint(r):
			b.WriteRune('·')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// fit shortens s until it is at most width wide.
func fit(face font.Face, s string, width int) string {
	if textWidth(face, s) <= width {
		return s
	}
	runes := []rune(s)
	for len(runes) > 0 && textWidth(face, string(runes)+"…") > width {
		runes = runes[:len(runes)-1]
	}
	return string(runes) + "…"
}

// wrap breaks s at spaces into lines of at most width, at most limit lines.
func wrap(face font.Face, s string, width, limit int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(clean(s, 2000)) {
		word = fit(face, word, width)
		switch joined := line + " " + word; {
		case line == "":
			line = word
		case textWidth(face, joined) <= width:
			line = joined
		default:
			lines, line = append(lines, line), word
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	if len(lines) > limit {
		lines = lines[:limit]
		lines[limit-1] = fit(face, lines[limit-1]+" …", width)
	}
	return lines
}

func digits(n int) string { return strconv.Itoa(n) }
