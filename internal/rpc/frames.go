package rpc

import (
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"
)

// bulkWindow is what a peer may send on a call of BulkDialOptions that is not read yet: two blocks.
const bulkWindow = 2 * BlockBytes

// BulkDialOptions returns DialOptions for connections on which blocks come. Their windows are open from the first byte on; gRPC's own
// estimate of the way to a peer begins with 64 KiB.
func BulkDialOptions() []grpc.DialOption {
	return append(DialOptions(), grpc.WithInitialWindowSize(bulkWindow), grpc.WithInitialConnWindowSize(connWindow), experimental.WithBufferPool(&frames))
}

// frameBytes is the length of a full frame of data of gRPC's.
const frameBytes = 16 << 10

// framePool is a pool for gRPC, which reads frames of data to what it gets. gRPC's own pool clears a frame before that, a twelfth of what
// the receiver of a copy spent.
type framePool struct{ full sync.Pool }

var frames framePool

// Get implements mem.BufferPool.
func (p *framePool) Get(n int) *[]byte {
	if n <= frameBytes/2 || n > frameBytes {
		return mem.DefaultBufferPool().Get(n)
	}
	b, ok := p.full.Get().(*[]byte)
	if !ok {
		made := make([]byte, frameBytes)
		b = &made
	}
	*b = (*b)[:n]
	return b
}

// Put implements mem.BufferPool.
func (p *framePool) Put(b *[]byte) {
	if cap(*b) == frameBytes {
		p.full.Put(b)
		return
	}
	mem.DefaultBufferPool().Put(b)
}
