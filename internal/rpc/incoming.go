package rpc

import (
	"io"

	"google.golang.org/grpc/mem"
)

// Incoming is one message as it comes, in pieces, as a SelfCoded message reads it once from the front to the end. After an error of the
// stream nothing more comes, and what was read is of no use.
type Incoming struct {
	transport pieceReader // nil if all is here
	share     *Share
	pieces    mem.BufferSlice
	at        int   // of pieces
	left      int   // bytes that have not come yet
	over      error // why its large part is to be passed over
	err       error
}

// pieceReader is a stream of which the next bytes of a message are read.
type pieceReader interface {
	Read(n int) (mem.BufferSlice, error)
}

// straightReader is a stream that reads the next bytes of a message to where they belong.
type straightReader interface{ ReadFull(dst []byte) error }

// headPiece is how much is read at first of a message that is longer than a piece, if its large part can then be read straight.
const headPiece = 4 << 10

// NewIncoming is a message that is here.
func NewIncoming(data mem.BufferSlice) *Incoming { return &Incoming{pieces: data} }

// Len returns how many bytes are left, of those that Next has not returned.
func (in *Incoming) Len() int {
	n := in.left
	for _, p := range in.pieces[in.at:] {
		n += p.Len()
	}
	return n
}

// Over says why there is no room for the message's payload, and nil if there is.
func (in *Incoming) Over() error { return in.over }

// Next returns the next bytes, which hold until it is called again; nil at the end or after an error.
func (in *Incoming) Next() []byte {
	for {
		if in.at < len(in.pieces) {
			in.at++
			if b := in.pieces[in.at-1].ReadOnlyData(); len(b) > 0 {
				return b
			}
			continue
		}
		if in.left == 0 || in.err != nil {
			return nil
		}
		in.more()
	}
}

// more reads the next piece.
func (in *Incoming) more() {
	in.free()
	n := min(in.left, receivePiece)
	if _, straight := in.transport.(straightReader); straight && n > plainBuffer {
		n = headPiece
	}
	in.pieces, in.err = in.transport.Read(n)
	in.at = 0
	in.came(n)
}

// came notes that n bytes were read, or not.
func (in *Incoming) came(n int) {
	if in.err == io.EOF {
		in.err = io.ErrUnexpectedEOF
	}
	if in.err == nil {
		in.left -= n
		if in.left > 0 {
			in.share.receiving(true)
		}
	}
}

// Straight reads the next bytes to the front of dst, as a plain stream can without a copy if they are many. It returns how many; 0 means
// that Next has them. All that Next has returned is used up then.
func (in *Incoming) Straight(dst []byte) int {
	s, straight := in.transport.(straightReader)
	n := min(len(dst), receivePiece)
	if !straight || in.at < len(in.pieces) || in.err != nil || n <= headPiece || n > in.left {
		return 0
	}
	in.free()
	in.err = s.ReadFull(dst[:n])
	if in.came(n); in.err != nil {
		return 0
	}
	return n
}

// free frees the pieces that were read from a stream.
func (in *Incoming) free() {
	if in.transport != nil {
		in.pieces.Free()
	}
	in.pieces, in.at = nil, 0
}

// copyTo fills dst with the next bytes, and says whether there were as many.
func (in *Incoming) copyTo(dst []byte) bool {
	for len(dst) > 0 {
		b := in.Next()
		if b == nil {
			return false
		}
		n := copy(dst, b)
		dst = dst[n:]
	}
	return true
}

// all returns all that is left as one slice, which holds until free.
func (in *Incoming) all() ([]byte, error) {
	if in.left > 0 && in.left <= receivePiece && in.at == len(in.pieces) {
		in.more()
		if in.err != nil {
			return nil, in.err
		}
	}
	if in.left == 0 && len(in.pieces)-in.at == 1 {
		in.at++
		return in.pieces[in.at-1].ReadOnlyData(), nil
	}
	b := make([]byte, in.Len())
	if !in.copyTo(b) {
		return nil, in.err
	}
	return b, nil
}
