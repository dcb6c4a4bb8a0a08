package limits

import "golang.org/x/sys/unix"

// hugePages asks for huge pages; a system without them measures without.
func hugePages(b []byte) { _ = unix.Madvise(b, unix.MADV_HUGEPAGE) }
