package rpc

import (
	"testing"
	"unsafe"
)

func TestBuffers(t *testing.T) {
	for _, n := range []int{1, 3, 63, 2048, 2049, 5000, 1 << 20, 1<<25 + 1} {
		b := NewBuffer(n)
		if len(b.Bytes()) != n || uintptr(unsafe.Pointer(&b.Bytes()[0]))%align != 0 && n <= 1<<maxShift || len(b.Floats()) != n/4 {
			t.Fatalf("a buffer of %d bytes has %d at %p", n, len(b.Bytes()), &b.Bytes()[0])
		}
		b.Free()
		func() {
			defer func() {
				if recover() == nil {
					t.Fatal("a buffer was freed twice")
				}
			}()
			b.Free()
		}()
	}
	var none *Buffer
	none.Free()
	if NewBuffer(0) != nil || none.Bytes() != nil || none.Floats() != nil {
		t.Fatal("an empty buffer holds something")
	}
}
