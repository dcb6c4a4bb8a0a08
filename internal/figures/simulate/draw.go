package main

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	imagedraw "image/draw"
	"image/png"
	"os"
	"path/filepath"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
)

// picture is one row of bars: the bytes of each worker, the heaviest first.
type picture struct {
	title string
	used  []float64
}

// In pixels.
const (
	pictureWidth, rowHeight, margin = 960, 170, 24
	titleHeight                     = 30
)

var (
	paper = color.RGBA{255, 255, 255, 255}
	ink   = color.RGBA{32, 36, 40, 255}
	bar   = color.RGBA{70, 120, 180, 255}
	line  = color.RGBA{200, 90, 40, 255}
)

// draw draws the rows below each other, all to one scale, each with a line at its mean.
func draw(path string, rows []picture) (err error) {
	f, err := opentype.Parse(goregular.TTF)
	if err != nil {
		return err
	}
	face, err := opentype.NewFace(f, &opentype.FaceOptions{Size: 15, DPI: 72})
	if err != nil {
		return err
	}
	top := 0.0
	for _, r := range rows {
		top = max(top, r.used[0])
	}
	m := image.NewRGBA(image.Rect(0, 0, pictureWidth, rowHeight*len(rows)))
	imagedraw.Draw(m, m.Bounds(), image.NewUniform(paper), image.Point{}, imagedraw.Src)
	fill := func(x0, y0, x1, y1 int, c color.Color) {
		imagedraw.Draw(m, image.Rect(x0, y0, x1, y1), image.NewUniform(c), image.Point{}, imagedraw.Src)
	}
	for i, r := range rows {
		y := i * rowHeight
		sum := 0.0
		for _, u := range r.used {
			sum += u
		}
		mean := sum / float64(len(r.used))
		text := font.Drawer{Dst: m, Src: image.NewUniform(ink), Face: face, Dot: fixed.P(margin, y+titleHeight-8)}
		text.DrawString(fmt.Sprintf("Bytes of each of %d workers %s; the heaviest has %.3f of the mean", len(r.used), r.title, r.used[0]/mean))
		bottom, span := y+rowHeight-10, float64(rowHeight-titleHeight-10)
		wide := float64(pictureWidth-2*margin) / float64(len(r.used))
		for w, u := range r.used {
			x := margin + int(float64(w)*wide)
			fill(x, bottom-int(u/top*span), margin+int(float64(w+1)*wide)-1, bottom, bar)
		}
		at := bottom - int(mean/top*span)
		fill(margin, at, pictureWidth-margin, at+1, line)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(png.Encode(out, m), out.Close())
}
