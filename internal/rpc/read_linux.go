package rpc

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// What these functions ask of the system never blocks, so Go's scheduler is not told of it. If it is told, in a process that was idle, it
// wakes a thread of its own, which then looks every 20 µs for some milliseconds what the process does: on a processor on which a worker
// computes, or on the one that was free for it.

// readNow reads what is there of a descriptor that never blocks.
func readNow(fd int, b []byte) (int, error) {
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// writeNow writes the first of some pieces, at most mostPieces, to a descriptor that never blocks, as far as it takes them.
func writeNow(fd int, pieces [][]byte) (int, error) {
	var all [mostPieces]unix.Iovec
	n := 0
	for _, p := range pieces[:min(len(pieces), mostPieces)] {
		if len(p) > 0 {
			all[n] = unix.Iovec{Base: &p[0]}
			all[n].SetLen(len(p))
			n++
		}
	}
	took, _, e := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&all)), uintptr(n))
	if e != 0 {
		return 0, e
	}
	return int(took), nil
}

const mostPieces = 4
