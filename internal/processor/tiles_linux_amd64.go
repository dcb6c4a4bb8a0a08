package processor

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// What arch_prctl(2) is asked about states of the processor that a program must ask for.
const (
	archGetSupported = 0x1021
	archRequest      = 0x1023
)

func supportedStates() (states uint64, err error) {
	if _, _, e := unix.RawSyscall(unix.SYS_ARCH_PRCTL, archGetSupported, uintptr(unsafe.Pointer(&states)), 0); e != 0 {
		return 0, e
	}
	return states, nil
}

func askForTiles() error {
	if _, _, e := unix.RawSyscall(unix.SYS_ARCH_PRCTL, archRequest, tileData, 0); e != 0 {
		return e
	}
	return nil
}
