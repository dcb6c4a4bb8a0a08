package kvcache

import (
	"bytes"
	"testing"
	"time"
)

// TestPagesAreClearedForAnotherTenant: what a tenant has left in a page is its own to find again, and nobody else's.
func TestPagesAreClearedForAnotherTenant(t *testing.T) {
	t.Parallel()
	const size, n = 4096, 5
	p := newPages(NewBudget(1<<20), time.Now)
	c := p.class(size)
	left := bytes.Repeat([]byte{0xaa}, size)
	ids := make([]pageID, n)
	for _, k := range []struct {
		as    string
		clear bool
	}{{"ann", true}, {"ann", false}, {"bob", true}, {"ann", true}, {"ann/evening", true}, {"", true}, {"", false}} {
		if err := p.take(c, ids, nil, OwnerOf(k.as)); err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			page := c.page(id)
			if got := bytes.Equal(page, make([]byte, size)); got != k.clear || !got && !bytes.Equal(page, left) {
				t.Fatalf("tenant %q: a page is clear: %v, want %v", k.as, got, k.clear)
			}
			copy(page, left)
		}
		for _, id := range ids {
			p.give(c, id)
		}
	}
}

// TestMemoryOfJobsIsClearedForAnotherTenant: kept memory is as its owner has left it for that owner alone, and nobody's is cleared even
// for nobody.
func TestMemoryOfJobsIsClearedForAnotherTenant(t *testing.T) {
	t.Parallel()
	b := NewBudget(2 * leastKept)
	defer b.Trim()
	left := bytes.Repeat([]byte{0xaa}, leastKept)
	for i, k := range []struct {
		as    Owner
		clear bool
	}{{OwnerOf("ann"), true}, {OwnerOf("ann"), false}, {OwnerOf("bob"), true}, {Nobody, true}, {Nobody, true}, {OwnerOf("ann"), true}, {OwnerOf(""), true}, {OwnerOf(""), false}} {
		if i > 0 && b.Kept() != leastKept {
			t.Fatalf("%d bytes are kept", b.Kept())
		}
		a, err := b.Map(leastKept, k.as)
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Equal(a.Bytes(), make([]byte, leastKept)); got != k.clear || !got && !bytes.Equal(a.Bytes(), left) {
			t.Errorf("use %d: the memory is clear: %v, want %v", i, got, k.clear)
		}
		copy(a.Bytes(), left)
		b.Unmap(a)
	}
}
