package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math"

	"github.com/klauspost/compress/zstd"

	"headwater.example/shard"
)

// Reader reads a snapshot. It is used by one goroutine.
type Reader struct {
	r       io.Reader
	sum     hash.Hash
	decoder *zstd.Decoder
	version uint32
	header  *Header
	next    progress
	after   [][]uint64
	stored  []byte
	payload []byte
	block   Block
	k, v    []byte
	scales  []float32
	read    int64
	err     error
}

// NewReader reads the beginning of a snapshot. The error is an *Error unless it is the stream's.
func NewReader(r io.Reader) (*Reader, error) {
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPayload))
	if err != nil {
		return nil, fmt.Errorf("read a snapshot: %w", err)
	}
	s := &Reader{r: r, sum: sha256.New(), decoder: decoder}
	if err := s.begin(); err != nil {
		decoder.Close()
		return nil, err
	}
	return s, nil
}

func (s *Reader) begin() error {
	var head [len(magic) + 4]byte
	n, err := io.ReadFull(s.r, head[:])
	s.read += int64(n)
	switch {
	case (err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) && string(head[:min(n, len(magic))]) != magic:
		return refuse(NotASnapshot, "it is no snapshot of a session, as coord sessions snapshot writes them")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return truncated()
	case err != nil:
		return fmt.Errorf("read the snapshot: %w", err)
	}
	s.version = binary.LittleEndian.Uint32(head[len(magic):])
	if s.version < 1 || s.version > formatVersion {
		return refuse(OtherVersion, "it is a snapshot of version %d, this program reads versions 1 to %d: restore it with the program that it is of", s.version, formatVersion)
	}
	s.sum.Write(head[:])
	kind, err := s.getRecord()
	if err != nil {
		return err
	}
	if kind != kindHeader {
		return refuse(Invalid, "the snapshot begins with a record of kind %d, not with its header", kind)
	}
	h, bad := parseHeader(s.payload, s.version)
	if bad != nil {
		return bad
	}
	s.header, s.next = h, newProgress(h)
	return nil
}

// Close frees what the reader works with. It does not close the stream below.
func (s *Reader) Close() { s.decoder.Close() }

// Header returns what the session was made with. It is not to be changed.
func (s *Reader) Header() *Header { return s.header }

// After returns the chained hashes [layers][n_kv_heads] at the session's end, once Next has returned io.EOF.
func (s *Reader) After() [][]uint64 { return s.after }

// Next returns the next block, which is valid until the next call. io.EOF says that all was there, has its checksums, and is
// followed by nothing. Any other error is an *Error unless it is the stream's.
func (s *Reader) Next() (*Block, error) {
	if s.err != nil {
		return nil, s.err
	}
	b, err := s.get()
	s.err = err
	return b, err
}

func (s *Reader) get() (*Block, error) {
	kind, err := s.getRecord()
	if err != nil {
		return nil, err
	}
	switch kind {
	case kindBlock:
		b, err := s.parseBlock()
		if err != nil {
			return nil, err
		}
		return b, nil
	case kindEnd:
		return nil, s.end()
	}
	return nil, refuse(Invalid, "a record of kind %d, which version %d does not know", kind, s.version)
}

func truncated() *Error {
	return refuse(Truncated, "the snapshot ends early, it was not written or copied to its end: copy it again, or take another")
}

func damaged(what string, at int64) *Error {
	return refuse(Damaged, "the snapshot is damaged, %s at byte %d is not that of its checksum: copy it again, or take another", what, at)
}

// full reads exactly len(b) bytes.
func (s *Reader) full(b []byte) error {
	n, err := io.ReadFull(s.r, b)
	s.read += int64(n)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return truncated()
	case err != nil:
		return fmt.Errorf("read the snapshot: %w", err)
	}
	return nil
}

// getRecord reads a record and decodes its payload.
func (s *Reader) getRecord() (kind byte, _ error) {
	at := s.read
	var head [recordHead]byte
	if err := s.full(head[:]); err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	stored, decoded := le.Uint32(head[4:]), le.Uint32(head[8:])
	if stored > maxPayload || decoded > maxPayload {
		return 0, refuse(Damaged, "the snapshot is damaged: a record at byte %d has %d bytes, and %d decoded; at most %d are allowed", at, stored, decoded, maxPayload)
	}
	// A stream that is shorter than it says must not cost the memory that it names.
	s.stored = s.stored[:0]
	for n := int(stored); len(s.stored) < n; {
		piece := min(n-len(s.stored), max(len(s.stored), 1<<20))
		from := len(s.stored)
		s.stored = resize(s.stored, from+piece)
		if err := s.full(s.stored[from:]); err != nil {
			return 0, err
		}
	}
	if crc32.Update(crc32.Checksum(head[:12], castagnoli), castagnoli, s.stored) != le.Uint32(head[12:]) {
		return 0, damaged("a record", at)
	}
	s.sum.Write(head[:])
	s.sum.Write(s.stored)
	switch {
	case head[2] != 0 || head[3] != 0 || head[1] > codingZstd:
		return 0, refuse(Invalid, "a record at byte %d has a coding that version %d does not know", at, s.version)
	case head[1] == codingPlain && stored != decoded:
		return 0, refuse(Invalid, "a record at byte %d of %d bytes is said to have %d", at, stored, decoded)
	case head[1] == codingPlain:
		s.payload = append(s.payload[:0], s.stored...)
		return head[0], nil
	}
	var frame zstd.Header
	if err := frame.Decode(s.stored); err != nil || frame.Skippable || !frame.HasFCS || frame.FrameContentSize != uint64(decoded) || !ends(s.stored, &frame) {
		return 0, refuse(Invalid, "a record at byte %d is no zstd frame of %d bytes", at, decoded)
	}
	var err error
	if s.payload, err = s.decoder.DecodeAll(s.stored, resize(s.payload, int(decoded))[:0]); err != nil || len(s.payload) != int(decoded) {
		return 0, refuse(Invalid, "a record at byte %d is no zstd frame of %d bytes", at, decoded)
	}
	return head[0], nil
}

// ends says whether b ends with its first frame: the decoder would pass over empty frames and skippable ones after it.
func ends(b []byte, frame *zstd.Header) bool {
	at := frame.HeaderSize
	for last := false; !last; {
		if at+3 > len(b) {
			return false
		}
		block := uint32(b[at]) | uint32(b[at+1])<<8 | uint32(b[at+2])<<16
		const repeated = 1 // one byte, as many times as the size says
		last, at = block&1 == 1, at+3
		if block>>1&3 == repeated {
			at++
		} else {
			at += int(block >> 3)
		}
	}
	if frame.HasCheckSum {
		at += 4
	}
	return at == len(b)
}

// resize returns b with n bytes, of which those that it had are kept.
func resize(b []byte, n int) []byte {
	if n <= cap(b) {
		return b[:n]
	}
	return append(b[:len(b):len(b)], make([]byte, n-len(b))...)
}

func (s *Reader) parseBlock() (*Block, *Error) {
	c := &cursor{b: s.payload}
	layer, positions, start, tokens, reserved := c.u32(), c.u32(), c.u64(), c.u32(), c.u32()
	if c.short || reserved != 0 || layer >= uint32(len(s.header.Layers)) || positions > shard.MaxStepTokens || tokens > shard.MaxStepTokens {
		return nil, refuse(Invalid, "a block of layer %d of %d: %d positions with %d ids of tokens, in %d bytes", layer, len(s.header.Layers), positions, tokens, len(s.payload))
	}
	if err := s.next.take(int(layer), start, int(positions), int(tokens)); err != nil {
		return nil, err
	}
	l := &s.header.Layers[layer]
	n := int(positions)
	if want := 4*int(tokens) + n*l.rowBytes(); len(c.b) != want {
		return nil, refuse(Invalid, "layer %d: %d bytes for %d positions from %d on, which have %d", layer, len(c.b), n, start, want)
	}
	b := &s.block
	*b = Block{Layer: int(layer), Start: start, Positions: n, Tokens: b.Tokens[:0]}
	for range tokens {
		b.Tokens = append(b.Tokens, c.u32())
	}
	size := l.Layout.DType().Size()
	s.k, s.v = resize(s.k[:0], l.KVHeads*n*l.Layout.KRowBytes()), resize(s.v[:0], l.KVHeads*n*l.Layout.VRowBytes())
	joinPlanes(s.k, c.bytes(len(s.k)), size)
	joinPlanes(s.v, c.bytes(len(s.v)), size)
	b.K, b.V = s.k, s.v
	if l.scaled() {
		scales := 2 * l.KVHeads * n
		if cap(s.scales) < scales {
			s.scales = make([]float32, scales)
		}
		all := s.scales[:scales]
		for i := range all {
			all[i] = math.Float32frombits(c.u32())
		}
		b.KScale, b.VScale = all[:scales/2:scales/2], all[scales/2:]
	}
	return b, nil
}

// end reads what follows the last block.
func (s *Reader) end() error {
	if layer, at, length, ok := s.next.next(); ok {
		return refuse(Invalid, "the snapshot ends at position %d of %d of layer %d", at, length, layer)
	}
	c := &cursor{b: s.payload}
	var after [][]uint64
	for i := range s.header.Layers {
		after = append(after, c.hashes(s.header.Layers[i].KVHeads))
	}
	if c.short || len(c.b) != 0 {
		return refuse(Invalid, "the snapshot's end has %d bytes, which are not the hashes of its layers", len(s.payload))
	}
	if err := s.header.checkHashes(after); err != nil {
		return err
	}
	at := s.read
	want := s.sum.Sum(nil)
	var sum [sha256.Size]byte
	if err := s.full(sum[:]); err != nil {
		return err
	}
	if !bytes.Equal(sum[:], want) {
		return damaged("what is before the SHA-256", at)
	}
	switch n, err := io.ReadFull(s.r, sum[:1]); {
	case n > 0:
		return refuse(Invalid, "more bytes follow the snapshot's end at byte %d", s.read)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("read the snapshot: %w", err)
	}
	s.after = after
	return io.EOF
}
