package jobs

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// piece is one message of a submission, with the memory that its data lies in, or the error that came in its place.
type piece struct {
	message *headwaterv1.SubmitRequest
	memory  *rpc.Buffer
	err     error
}

// read receives a submission's messages until ctx ends or there are no more: Recv heeds nothing but the stream's end, so
// that a handler which must hear of a cancellation can't wait for it.
func (q *Queue) read(ctx context.Context, stream submitStream) <-chan piece {
	pieces := make(chan piece)
	q.readers.Go(func() {
		for {
			p := piece{message: &headwaterv1.SubmitRequest{}}
			p.err = rpc.Guard(q.Logger, "reading a submission", func() (err error) {
				p.memory, err = rpc.RecvBulk(stream, p.message)
				return err
			})
			select {
			case pieces <- p:
			case <-ctx.Done():
				p.memory.Free()
				return
			}
			if p.err != nil {
				return
			}
		}
	})
	return pieces
}

// next returns the submission's next message. A submission that is cancelled ends at once, one that stalls after
// Config.UploadStall.
func (u *upload) next() (piece, error) {
	if u.stall == nil {
		u.stall = time.NewTimer(u.UploadStall)
	}
	for {
		select {
		case p := <-u.pieces:
			u.came += len(p.message.GetData())
			return p, p.err
		case <-u.ctx.Done():
			return piece{}, context.Cause(u.ctx)
		case <-u.stall.C:
			if u.came < stallBytes {
				return piece{}, status.Errorf(codes.Aborted, "the submission stalled: %d bytes came in %s: try again", u.came, u.UploadStall)
			}
			u.came = 0
			u.stall.Reset(u.UploadStall)
		}
	}
}

// roomFor refuses what the disk has no room for. Some of it is kept free, for records and for what is under way.
func (q *Queue) roomFor(size int64) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(q.spool(), &stat); err != nil {
		return fmt.Errorf("ask for the disk's room: %w", err)
	}
	unit := uint64(stat.Bsize)
	free, kept := unit*stat.Bavail, min(64<<20, unit*stat.Blocks/20)
	if uint64(size)+kept > free {
		return fmt.Errorf("%d bytes are to be stored and %d are kept free, the disk has %d: %w", size, kept, free, syscall.ENOSPC)
	}
	return nil
}

const (
	// headerFactor is how many bytes of memory a byte of a header, or of options, becomes while it is read.
	headerFactor = 20
	// HeaderMemory bounds that memory for all submissions together.
	HeaderMemory = 256 << 20
)

// headerBudget bounds the memory in which headers of submissions are read.
type headerBudget struct{ room *semaphore.Weighted }

func newHeaderBudget() *headerBudget { return &headerBudget{semaphore.NewWeighted(HeaderMemory)} }

// take waits for room for a header of n bytes, which release gives back. The largest takes all there is.
func (b *headerBudget) take(ctx context.Context, n int) (release func(), err error) {
	weight := min(int64(n)*headerFactor, HeaderMemory)
	if err := b.room.Acquire(ctx, weight); err != nil {
		return nil, context.Cause(ctx)
	}
	return func() { b.room.Release(weight) }, nil
}
