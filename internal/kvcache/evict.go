package kvcache

import (
	"bytes"
	"cmp"
	"errors"
	"time"
)

// claimant is for whom room is made.
type claimant struct {
	tenant string
	all    bool // what is no tenant's: anyone gives room
}

func (s *session) claimant() claimant { return claimant{tenant: tenantOf(s.shape.config.Tenant)} }

// giving says of whom room is made for a claimant: of itself, and of who has more than an equal part of the whole.
type giving struct {
	by   claimant
	part int64
	has  func(*account) int64
}

// givingLocked is that of tenants by what each has.
func (st *Store) givingLocked(by claimant, whole int64, has func(*account) int64) *giving {
	tenants := int64(len(st.accounts))
	if !by.all && st.accounts[by.tenant] == nil {
		tenants++
	}
	return &giving{by: by, part: whole / max(tenants, 1), has: has}
}

// rank says who gives first: the highest; and no one with less than 0. What was given already is not there any more.
func (g *giving) rank(a *account, given int64) int64 {
	if n := g.has(a) - given; g.by.all || a.tenant == g.by.tenant || n > g.part {
		return max(n, 0)
	}
	return -1
}

func bytesOf(a *account) int64 { return a.bytes }

func sessionsOf(a *account) int64 { return a.held }

// wholeLocked returns the bytes that tenants have and those that are free.
func (st *Store) wholeLocked() int64 {
	whole := st.budget.Total() - st.budget.Used()
	for _, a := range st.accounts {
		whole += a.bytes
	}
	return whole
}

// Reclaim makes room for n bytes in the budget that the store shares with others, and says whether they are free: it gives
// the memory of free pages back, then evicts prefixes, then sessions, as an append does, and none of these in vain. Of tenants, the one
// that has the most gives first.
func (st *Store) Reclaim(n int64) bool { return st.reclaim(n, claimant{all: true}) }

// ReclaimFor is Reclaim for a tenant, to whom no other gives room who has no more than an equal part.
func (st *Store) ReclaimFor(n int64, tenant string) bool {
	return st.reclaim(n, claimant{tenant: tenant})
}

func (st *Store) reclaim(n int64, by claimant) bool {
	st.mu.Lock()
	defer st.unlock()
	free := func() int64 { return st.budget.Total() - st.budget.Used() }
	if left := free(); left < n && !st.freesLocked(n-left, by) {
		return false
	}
	for free() < n {
		if !st.evictLocked(by) {
			return false
		}
	}
	return true
}

// evictForLocked makes some of the room that need bytes of the budget want, for which err found none, and says whether it did. In vain
// nothing is evicted.
func (st *Store) evictForLocked(err error, need int64, by claimant, evicted *bool) bool {
	var full *BudgetError
	if errors.As(err, &full) && (*evicted || st.freesLocked(need-(st.budget.Total()-st.budget.Used()), by)) && st.evictLocked(by) {
		*evicted = true
		return true
	}
	return false
}

// evictLocked frees the cheapest thing first: the memory of idle pages, else a prefix, else a session.
func (st *Store) evictLocked(by claimant) bool {
	trimmed, err := st.pages.trim()
	freed := err == nil && trimmed
	if err == nil && !trimmed {
		gives := st.givingLocked(by, st.wholeLocked(), bytesOf)
		freed = st.evictPrefixLocked(gives) || st.evictSessionLocked(gives)
	}
	settle(st.budget, st.pages.emptied)
	st.pages.emptied = nil
	return freed
}

// evictPrefixLocked frees the least recently used row that only the index has, of who gives room first.
func (st *Store) evictPrefixLocked(gives *giving) bool {
	r := st.prefixes.remove(gives)
	if r == nil {
		return false
	}
	st.releaseLocked(r, nil, 0)
	return true
}

// Expire drops all sessions that have gone unused for their TTL and are not pinned, and says how many. Of memory that nothing
// has been in for a while it gives all back. Others wait for a few rows of one session at most.
func (st *Store) Expire() int {
	st.mu.Lock()
	st.pages.unkeep(st.config.Now().Add(-keepFor))
	st.unlock()
	for n := 0; ; n++ {
		st.mu.Lock()
		s := st.endExpiredLocked()
		st.unlock()
		if s == nil {
			return n
		}
		st.releaseRows(s)
		s.unlock()
	}
}

// evictSessionLocked drops the least recently used session of those beyond their TTL, whosever it is, else of those that are idle.
func (st *Store) evictSessionLocked(gives *giving) bool {
	s := st.endExpiredLocked()
	if s == nil {
		s = st.endIdleLocked(gives)
	}
	if s == nil {
		return false
	}
	st.releaseRowsLocked(s, len(s.rows))
	s.unlock()
	return true
}

// endExpiredLocked ends the least recently used session of those beyond their TTL that are neither pinned nor in use, and
// returns it with its locks held, or nil. Its rows are the caller's to release.
func (st *Store) endExpiredLocked() *session {
	now, x := st.config.Now(), &st.expiry
	var inUse []*session
	defer func() {
		for _, s := range inUse {
			x.add(s)
		}
	}()
	for s := x.next(now); s != nil; s = x.next(now) {
		if !s.tryLock() {
			x.remove(s)
			inUse = append(inUse, s)
			continue
		}
		if !s.pinned {
			st.endLocked(s)
			st.counters.evicted++
			return s
		}
		x.remove(s) // until it is pinned no longer
		s.unlock()
	}
	return nil
}

// endIdleLocked does the same of those that are idle: no open lane drives them, and they have gone unused for idleFor.
func (st *Store) endIdleLocked(gives *giving) *session {
	now := st.config.Now()
	st.idle.advance(now)
	inUse := map[*session]bool{}
	for s := st.idlestLocked(now, gives, inUse); s != nil; s = st.idlestLocked(now, gives, inUse) {
		if !s.tryLock() {
			inUse[s] = true
			continue
		}
		switch lane := st.lanes[s.epoch.Lane]; {
		case s.pinned:
			st.idle.remove(s)
		case lane != nil:
			st.parkLocked(s, lane)
		default:
			st.endLocked(s)
			st.counters.evicted++
			return s
		}
		s.unlock()
	}
	return nil
}

// idlestLocked returns the least recently used of the sessions that may be idle, of who gives room first.
func (st *Store) idlestLocked(now time.Time, gives *giving, not map[*session]bool) (least *session) {
	var used []*session
	first := int64(0)
	for _, p := range st.idle.due {
		s := p.session
		if !st.idle.unusedAt(s, now) {
			used = append(used, s)
			continue
		}
		switch of := gives.rank(s.shape.account, 0); {
		case of < 0 || not[s]:
		case least == nil || of > first, of == first && cmp.Or(s.used.Compare(least.used), bytes.Compare(s.id[:], least.id[:])) < 0:
			least, first = s, of
		}
	}
	for _, s := range used {
		st.idle.remove(s)
		st.idle.add(s)
	}
	return least
}

// freesLocked reports whether evictLocked may free n bytes; if not, it certainly can't, but for a row or a session more of each tenant.
// Shared pages count for each session.
func (st *Store) freesLocked(n int64, by claimant) bool {
	gives, given := st.givingLocked(by, st.wholeLocked(), bytesOf), map[*account]int64{}
	n -= st.pages.idle + st.lone
	for a, rows := range st.prefixes.evictable {
		if most := gives.rank(a, 0); most >= 0 {
			if !by.all && a.tenant != by.tenant {
				most = min(most-gives.part+(*rows)[0].row.bytes, a.kept)
			} else {
				most = a.kept
			}
			given[a] = most
			n -= most
		}
	}
	if n <= 0 {
		return true
	}
	now := st.config.Now()
	st.expiry.advance(now)
	st.idle.advance(now)
	driven := map[*session]*openLane{}
	defer func() {
		for s, l := range driven {
			st.parkLocked(s, l)
		}
	}()
	for _, x := range []*expiry{&st.expiry, &st.idle} {
		for _, p := range x.due {
			s := p.session
			if !x.unusedAt(s, now) || x == &st.idle && (st.expiry.unusedAt(s, now) || gives.rank(s.shape.account, given[s.shape.account]) < 0) || !s.tryLock() {
				continue // It is in use, or another's, or counted already.
			}
			lane := st.lanes[s.epoch.Lane]
			switch {
			case s.pinned:
			case x == &st.idle && lane != nil:
				driven[s] = lane
			default:
				// Of rows that were shared there may be more than pageBytes counts.
				frees := s.bytes + s.shape.bytes
				for _, r := range s.rows {
					frees += r.bytes + r.shape.rowBytes
				}
				given[s.shape.account] += frees
				n -= frees
			}
			s.unlock()
			if n <= 0 {
				return true
			}
		}
	}
	return false
}
