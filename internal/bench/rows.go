package bench

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unsafe"

	"headwater.example/tensor"
)

// Rows are keys or values of a job: one row for each position and group.
type Rows struct {
	Dim    int       // elements of a row
	Values []float32 // [rows, Dim]
}

// JobRows reads the keys and values of a job file that come in f32, f16 or bf16; none where it has no such.
func JobRows(path string) (all []Rows, err error) {
	file, err := tensor.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for _, name := range file.Names() {
		info, _ := file.Lookup(name)
		last := name[strings.LastIndexByte(name, '.')+1:]
		if last != "k" && last != "v" || len(info.Shape) != 3 || info.DType == tensor.I8 || info.Elements() == 0 {
			continue
		}
		data := make([]byte, info.Bytes())
		if err := file.ReadAt(data, name, 0); err != nil {
			return nil, err
		}
		rows := Rows{Dim: info.Shape[2], Values: make([]float32, info.Elements())}
		if err := tensor.Widen(rows.Values, data, info.DType); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", path, name, err)
		}
		all = append(all, rows)
	}
	return all, nil
}

// Narrowing is what a storage type makes of keys and values.
type Narrowing struct {
	// Bytes are those of float32, Stored those of the storage type, scales included.
	Bytes, Stored int64
	// Took is the median time to narrow all rows, on one core.
	Took time.Duration
	// MaxError is the largest error of an element relative to the largest magnitude of its row.
	MaxError float64
}

// MeasureRows narrows rows to a storage type for so many rounds, each timed by now.
func MeasureRows(storage tensor.DType, all []Rows, rounds int, now func() time.Time) (Narrowing, error) {
	var m Narrowing
	stored, scales := make([][]byte, len(all)), make([][]float32, len(all))
	for i, rows := range all {
		stored[i] = make([]byte, len(rows.Values)*storage.Size())
		m.Bytes += 4 * int64(len(rows.Values))
		m.Stored += int64(len(stored[i]))
		if storage == tensor.I8 {
			scales[i] = make([]float32, len(rows.Values)/rows.Dim)
			m.Stored += 4 * int64(len(scales[i]))
		}
	}
	times := make([]time.Duration, rounds)
	for r := range times {
		began := now()
		for i, rows := range all {
			if storage != tensor.I8 {
				if err := tensor.Narrow(stored[i], rows.Values, storage); err != nil {
					return m, fmt.Errorf("narrow to %s: %w", storage, err)
				}
				continue
			}
			for n := range scales[i] {
				row := stored[i][n*rows.Dim:][:rows.Dim]
				scales[i][n] = tensor.QuantizeI8(unsafe.Slice((*int8)(unsafe.Pointer(&row[0])), rows.Dim), rows.Values[n*rows.Dim:][:rows.Dim])
			}
		}
		times[r] = now().Sub(began)
	}
	slices.Sort(times)
	m.Took = times[rounds/2]
	for i, rows := range all {
		back := make([]float32, len(rows.Values))
		if err := tensor.Widen(back, stored[i], storage); err != nil {
			return m, err
		}
		for n := 0; n < len(back); n += rows.Dim {
			scale := 1.0
			if storage == tensor.I8 {
				scale = float64(scales[i][n/rows.Dim])
			}
			var top, worst float64
			for j, x := range rows.Values[n : n+rows.Dim] {
				top = max(top, math.Abs(float64(x)))
				worst = max(worst, math.Abs(float64(x)-scale*float64(back[n+j])))
			}
			if top > 0 {
				worst /= top
			}
			m.MaxError = max(m.MaxError, worst)
		}
	}
	return m, nil
}
