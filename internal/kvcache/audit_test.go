package kvcache

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// depth is the page of an entry.
func (e *entry) depth() (p int) {
	for ; e.before != nil; e = e.before {
		p++
	}
	return p
}

// audit counts everything that a store has, anew.
func audit(t interface{ Fatalf(string, ...any) }, st *Store, views []*View) {
	st.mu.Lock()
	defer st.mu.Unlock()
	refs := map[*row]int32{}
	shapes := map[*shape][2]int{} // sessions and rows
	var heap int64
	left := map[*row][]int32{}
	for _, s := range st.sessions {
		heap += s.bytes
		shapes[s.shape] = [2]int{shapes[s.shape][0] + 1}
		end := s.first
		for l, n := range s.lengths {
			if s.begun == nil || n > s.begun[l].first*64 { // else nothing was appended yet
				end = max(end, pagesOf(n))
			}
		}
		if s.end() != end || s.first != min(slices.Min(s.freed), s.end()) && s.first != slices.Min(s.freed) {
			t.Fatalf("rows [%d, %d) for lengths %v, freed %v", s.first, s.end(), s.lengths, s.freed)
		}
		for i, r := range s.rows {
			p := s.first + i
			refs[r]++
			for l, h := range s.shape.layers {
				if s.freed[l] > p {
					if left[r] == nil {
						left[r] = make([]int32, len(s.shape.layers))
					}
					left[r][l]++
				}
				for j := range h.groups {
					has := r.pages[h.first+j] != 0
					if needs := p >= s.freed[l] && p < pagesOf(s.lengths[l]) && h.stores(j, p); needs && !has || r.refs == 1 && has != needs {
						t.Fatalf("page %d of layer %d: there %v, needed %v", p, l, has, needs)
					}
				}
			}
		}
	}
	evictable, prefixBytes, prefixRows := 0, int64(0), int64(0)
	firstRows := map[prefixKey]int{}
	for key, e := range st.prefixes.entries {
		refs[e.row]++
		if e.before == nil {
			firstRows[e.row.shape.root]++
		}
		if e.key != key || e.row.entry != e || e.row.key != key || !e.row.whole(e.depth()) {
			t.Fatalf("an entry that is not its row's")
		}
		if e.row.refs == 1 {
			prefixBytes += e.row.bytes
			prefixRows += e.row.shape.rowBytes
			if e.followers == 0 {
				evictable++
			}
		}
		if (e.at >= 0) != (e.row.refs == 1 && e.followers == 0) {
			t.Fatalf("an entry with %d sharers and %d followers is at %d", e.row.refs, e.followers, e.at)
		}
	}
	counted := 0
	for of, h := range st.prefixes.evictable {
		counted += len(*h)
		for _, e := range *h {
			if e.row.shape.account != of {
				t.Fatalf("an entry is among another tenant's")
			}
		}
	}
	if evictable != counted || prefixBytes != st.prefixes.bytes || prefixRows != st.prefixes.rows {
		t.Fatalf("%d rows, %d bytes and their %d can be evicted, counted are %d, %d and %d", evictable, prefixBytes, prefixRows, counted, st.prefixes.bytes, st.prefixes.rows)
	}
	for _, holdings := range st.prefixes.holdings {
		for root, h := range holdings {
			if firstRows[root] != h.firstRows {
				t.Fatalf("a holding has %d first rows, counted are %d", firstRows[root], h.firstRows)
			}
			delete(firstRows, root)
		}
	}
	if len(firstRows) > 0 {
		t.Fatalf("first rows of %d holdings are not counted", len(firstRows))
	}
	for _, v := range views {
		for _, r := range v.rows {
			refs[r]++
		}
	}
	has := map[string]*account{} // anew
	of := func(sh *shape) *account {
		tenant := strings.SplitN(sh.config.Tenant, "/", 2)[0]
		if has[tenant] == nil {
			has[tenant] = &account{}
		}
		return has[tenant]
	}
	for _, s := range st.sessions {
		of(s.shape).held++
		of(s.shape).sessions += 1 / float64(max(s.epoch.Holders, 1))
	}
	var used, idle, rows int64
	owned := map[string]bool{}
	inUse := map[int]int{} // by size
	for r, n := range refs {
		if r.refs != n {
			t.Fatalf("a row has %d sharers, counted are %d", n, r.refs)
		}
		var size int64
		for l, h := range r.shape.layers {
			var want, have int32
			if left[r] != nil {
				want = left[r][l]
			}
			if r.left != nil {
				have = r.left[l]
			}
			if want != have {
				t.Fatalf("%d sharers have left a layer, counted are %d", want, have)
			}
			for _, id := range r.pages[h.first : h.first+len(h.groups)] {
				if id == 0 {
					continue
				}
				if have == r.refs {
					t.Fatalf("a page is kept that nobody sees")
				}
				name := fmt.Sprint(h.class.size, id)
				if owned[name] {
					t.Fatalf("page %s is in two rows", name)
				}
				owned[name] = true
				inUse[h.class.size]++
				size += int64(h.class.size)
			}
		}
		if size != r.bytes {
			t.Fatalf("a row has %d bytes, counted are %d", size, r.bytes)
		}
		used += size
		of(r.shape).bytes += size
		rows += r.shape.rowBytes
		shapes[r.shape] = [2]int{shapes[r.shape][0], shapes[r.shape][1] + 1}
	}
	for sh := range shapes {
		of(sh).shapes++
	}
	for _, e := range st.prefixes.entries {
		if e.row.refs == 1 {
			of(e.row.shape).kept += e.row.bytes + e.row.shape.rowBytes
		}
	}
	for tenant, want := range has {
		got := st.accounts[tenant]
		if got == nil || got.shapes != want.shapes || got.held != want.held || got.bytes != want.bytes || got.kept != want.kept || math.Abs(got.sessions-want.sessions) > 1e-9 {
			t.Fatalf("tenant %q has %+v, counted is %+v", tenant, want, got)
		}
	}
	if len(has) != len(st.accounts) {
		t.Fatalf("%d tenants have something, counted are %d", len(has), len(st.accounts))
	}
	var lone int64
	for sh, n := range shapes {
		if n != [2]int{sh.sessions, sh.rows} {
			t.Fatalf("a shape has %d sessions and %d rows, counted are %d and %d", n[0], n[1], sh.sessions, sh.rows)
		}
		heap += sh.bytes
		if n[0] == 0 {
			lone += sh.bytes
		}
	}
	if heap != st.heap || lone != st.lone {
		t.Fatalf("sessions take %d bytes and lone shapes %d, counted are %d and %d", heap, lone, st.heap, st.lone)
	}
	kept := int64(0)
	for _, c := range st.pages.classes {
		free, held, mapped := 0, 0, 0
		for _, k := range c.chunks {
			mapped += k.slots
			free += k.slots - k.used
			held += k.idle
			if k.arena != nil && k.used == 0 != k.kept {
				t.Fatalf("a chunk with %d pages in use is mapped, kept %v", k.used, k.kept)
			}
			if k.kept {
				kept += int64(len(k.arena.Bytes()))
			}
		}
		if free != c.vacant || held != c.idle || mapped != c.mapped {
			t.Fatalf("pages of %d bytes: %d free, %d idle, %d mapped, counted are %d, %d, %d", c.size, free, held, mapped, c.vacant, c.idle, c.mapped)
		}
		idle += int64(held) * int64(c.size)
	}
	for _, p := range st.pages.count(0) {
		if p.Used != inUse[p.Bytes] {
			t.Fatalf("%d pages of %d bytes are in use, counted are %d", inUse[p.Bytes], p.Bytes, p.Used)
		}
		delete(inUse, p.Bytes)
	}
	if len(inUse) > 0 {
		t.Fatalf("pages of sizes that are not counted: %v", inUse)
	}
	if kept != st.pages.kept || kept > st.pages.maxKept {
		t.Fatalf("%d bytes of empty chunks are kept, counted are %d", kept, st.pages.kept)
	}
	if used != st.pages.used || idle != st.pages.idle || rows != st.rows || st.budget.Used() != used+idle+rows+heap || len(st.pages.emptied) != 0 {
		t.Fatalf("%d bytes are used and %d idle and %d rows', counted are %d, %d and %d, reserved %d", used, idle, rows, st.pages.used, st.pages.idle, st.rows, st.budget.Used())
	}
}
