package kvcache

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// flags returns the kernel's flags of the mapping that holds b.
func flags(t *testing.T, b []byte) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	at := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	inside := false
	for line := range strings.Lines(string(text)) {
		var from, to uint64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			inside = from <= at && at < to
		}
		if all, ok := strings.CutPrefix(line, "VmFlags:"); ok && inside {
			return strings.Fields(all)
		}
	}
	t.Fatal("the mapping is not found")
	return nil
}

func TestLargeArenasAskForHugePages(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err != nil {
		t.Skip("this kernel has no transparent huge pages")
	}
	for size, want := range map[int64]bool{hugeBytes - 1: false, hugeBytes: true} {
		a, err := MapArena(size)
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Contains(flags(t, a.Bytes()), "hg"); got != want {
			t.Errorf("%d bytes ask for huge pages: %t, want %t", size, got, want)
		}
		a.Close()
	}
}
