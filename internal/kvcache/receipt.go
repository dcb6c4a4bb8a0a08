package kvcache

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/zeebo/xxh3"

	"headwater.example/attention"
	"headwater.example/tensor"
)

// Receipt says what a shard holds: the number of positions, and the chained hash of everything that was appended. Two
// holders with equal receipts hold the same logical bytes.
type Receipt struct {
	Length uint64
	Hash   uint64
}

func (r Receipt) String() string { return fmt.Sprintf("%d positions, hash %016x", r.Length, r.Hash) }

// Hasher computes a receipt from the logical rows of a shard in turn: over nothing the hash is 0, and each position makes
//
//	hash = xxh3(hash ‖ position ‖ k ‖ v ‖ k_scale ‖ v_scale)
//
// with hash and position as 8 and scales as 4 little-endian bytes, the scales in int8 storage only. A shard of stripes passes over the
// positions that it does not have. So a receipt does not
// depend on how the positions were cut into blocks, nor on how pages are laid out. The zero value is ready for use.
type Hasher struct {
	receipt Receipt
	buf     []byte
}

// Update hashes rows of exactly n positions, which follow those hashed before. It refuses rows of another size.
func (h *Hasher) Update(rows attention.Rows, n int, layout attention.Layout) error {
	if err := checkRows(rows, n, layout); err != nil {
		return err
	}
	kb, vb := layout.KRowBytes(), layout.VRowBytes()
	scaled := layout.DType() == tensor.I8
	for i := range n {
		b := binary.LittleEndian.AppendUint64(h.buf[:0], h.receipt.Hash)
		b = binary.LittleEndian.AppendUint64(b, h.receipt.Length)
		b = append(b, rows.K[i*kb:(i+1)*kb]...)
		b = append(b, rows.V[i*vb:(i+1)*vb]...)
		if scaled {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(rows.KScale[i]))
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(rows.VScale[i]))
		}
		h.receipt = Receipt{Length: h.receipt.Length + 1, Hash: xxh3.Hash(b)}
		h.buf = b
	}
	return nil
}

// Pass passes over the positions up to one, which another stripe has.
func (h *Hasher) Pass(to uint64) { h.receipt.Length = to }

// Receipt returns the receipt of all that was hashed.
func (h *Hasher) Receipt() Receipt { return h.receipt }
