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
		if err := p.take(c, ids, ownerOf(k.as)); err != nil {
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
