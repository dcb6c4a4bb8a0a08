package scatter

import (
	"encoding/binary"
	"math"
	"testing"

	"pgregory.net/rapid"
)

// memory is a file that notes how often each byte is written.
type memory struct {
	data   []byte
	writes []int
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	copy(m.data[off:], p)
	for i := range p {
		m.writes[off+int64(i)]++
	}
	return len(p), nil
}

func TestPiecesInAnyOrderMakeTheTensor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const blockRows = 3
		rows := rapid.IntRange(1, 120).Draw(t, "rows")
		cuts := []int{0}
		for range rapid.IntRange(1, 4).Draw(t, "groups") {
			cuts = append(cuts, cuts[len(cuts)-1]+rapid.IntRange(1, 3).Draw(t, "columns"))
		}
		width := cuts[len(cuts)-1]
		const offset = 8
		file := &memory{data: make([]byte, offset+4*rows*width), writes: make([]int, offset+4*rows*width)}
		g := newGatherer(file, []output{{offset: offset, width: width}})
		type piece struct{ block, group int }
		var pieces []piece
		for b := range (rows + blockRows - 1) / blockRows {
			for group := range len(cuts) - 1 {
				pieces = append(pieces, piece{b, group})
			}
		}
		for _, p := range rapid.Permutation(pieces).Draw(t, "order") {
			start := p.block * blockRows
			count := min(blockRows, rows-start)
			from, to := cuts[p.group], cuts[p.group+1]
			data := make([]float32, 0, count*(to-from))
			for r := start; r < start+count; r++ {
				for c := from; c < to; c++ {
					data = append(data, float32(r*width+c+1))
				}
			}
			if err := g.put(0, p.block, start, count, from, to, data); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.finish(); err != nil {
			t.Fatal(err)
		}
		for i := range rows * width {
			if v := math.Float32frombits(binary.LittleEndian.Uint32(file.data[offset+4*i:])); v != float32(i+1) || file.writes[offset+4*i] != 1 {
				t.Fatalf("element %d is %v after %d writes", i, v, file.writes[offset+4*i])
			}
		}
	})
}
