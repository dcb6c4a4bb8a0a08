//go:build !linux

package rpc

import "golang.org/x/sys/unix"

// readNow reads what is there of a descriptor that never blocks.
func readNow(fd int, b []byte) (int, error) { return unix.Read(fd, b) }

// writeNow writes the first of some pieces to a descriptor that never blocks, as far as it takes it.
func writeNow(fd int, pieces [][]byte) (int, error) { return unix.Write(fd, pieces[0]) }
