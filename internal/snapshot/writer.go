package snapshot

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Writer writes a snapshot. It is used by one goroutine.
type Writer struct {
	w       io.Writer
	sum     hash.Hash
	header  *Header
	next    progress
	encoder *zstd.Encoder // nil: payloads stay as they are
	payload []byte
	record  []byte
	err     error
}

// NewWriter begins a snapshot. The error is an *Error where no session can have the header.
func NewWriter(w io.Writer, header *Header) (*Writer, error) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	if err != nil {
		return nil, fmt.Errorf("begin a snapshot: %w", err)
	}
	return newWriter(w, header, encoder)
}

func newWriter(w io.Writer, header *Header, encoder *zstd.Encoder) (*Writer, error) {
	if err := header.check(); err != nil {
		return nil, err
	}
	s := &Writer{w: w, sum: sha256.New(), header: header, next: newProgress(header), encoder: encoder}
	s.payload = appendHeader(nil, header)
	if len(s.payload) > maxPayload {
		return nil, refuse(Invalid, "a header of %d bytes, at most %d are allowed", len(s.payload), maxPayload)
	}
	if s.err = s.put(binary.LittleEndian.AppendUint32([]byte(magic), header.version())); s.err == nil {
		s.err = s.putRecord(kindHeader)
	}
	return s, s.err
}

// Next says what the next block is to be: positions, at most, of a layer from start on. false is the end.
func (s *Writer) Next() (layer int, start uint64, positions int, ok bool) {
	layer, start, length, ok := s.next.next()
	if !ok {
		return 0, 0, 0, false
	}
	return layer, start, int(min(length-start, uint64(s.header.Layers[layer].blockPositions()))), true
}

// Write writes a block, which may have fewer positions than Next says; it keeps none of it. After an error that is no *Error
// the snapshot can not go on.
func (s *Writer) Write(b *Block) error {
	if s.err != nil {
		return s.err
	}
	next := s.next
	if err := next.take(b.Layer, b.Start, b.Positions, len(b.Tokens)); err != nil {
		return err
	}
	l := &s.header.Layers[b.Layer]
	if err := b.check(l); err != nil {
		return err
	}
	if size := blockHead + 4*len(b.Tokens) + b.Bytes(); size > maxPayload {
		return refuse(Invalid, "layer %d: a block of %d bytes, at most %d are allowed", b.Layer, size, maxPayload)
	}
	s.next = next
	s.payload = appendBlock(s.payload[:0], b, l)
	s.err = s.putRecord(kindBlock)
	return s.err
}

// Close ends a snapshot, all of whose positions are written, with the chained hashes [layers][n_kv_heads] after them. It
// does not close the stream below.
func (s *Writer) Close(after [][]uint64) error {
	if s.err != nil {
		return s.err
	}
	if layer, at, length, ok := s.next.next(); ok {
		return refuse(Invalid, "the snapshot ends at position %d of %d of layer %d", at, length, layer)
	}
	if err := s.header.checkHashes(after); err != nil {
		return err
	}
	s.payload = s.payload[:0]
	for _, hashes := range after {
		for _, h := range hashes {
			s.payload = binary.LittleEndian.AppendUint64(s.payload, h)
		}
	}
	if s.err = s.putRecord(kindEnd); s.err == nil {
		s.err = s.put(s.sum.Sum(nil))
	}
	if s.err != nil {
		return s.err
	}
	s.err = errors.New("the snapshot has ended")
	return nil
}

// putRecord writes the payload as a record, compressed where it becomes smaller.
func (s *Writer) putRecord(kind byte) error {
	s.record = append(s.record[:0], make([]byte, recordHead)...)
	coding := codingPlain
	if s.encoder != nil {
		s.record = s.encoder.EncodeAll(s.payload, s.record)
		coding = codingZstd
	}
	if coding == codingPlain || len(s.record)-recordHead >= len(s.payload) {
		s.record = append(s.record[:recordHead], s.payload...)
		coding = codingPlain
	}
	le := binary.LittleEndian
	s.record[0], s.record[1] = kind, coding
	le.PutUint32(s.record[4:], uint32(len(s.record)-recordHead))
	le.PutUint32(s.record[8:], uint32(len(s.payload)))
	le.PutUint32(s.record[12:], crc32.Update(crc32.Checksum(s.record[:12], castagnoli), castagnoli, s.record[recordHead:]))
	return s.put(s.record)
}

func (s *Writer) put(b []byte) error {
	n, err := s.w.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("write the snapshot: %w", err)
	}
	s.sum.Write(b)
	return nil
}
