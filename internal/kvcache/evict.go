package kvcache

import "errors"

// Reclaim makes room for n bytes in the budget that the store shares with others, and says whether they are free: it gives
// the memory of free pages back, then evicts prefixes, then sessions, as an append does, and none of these in vain.
func (st *Store) Reclaim(n int64) bool {
	st.mu.Lock()
	defer st.unlock()
	free := func() int64 { return st.budget.Total() - st.budget.Used() }
	if left := free(); left < n && !st.freesLocked(n-left) {
		return false
	}
	for free() < n {
		if !st.evictLocked() {
			return false
		}
	}
	return true
}

// evictForLocked makes some of the room that need bytes of the budget want, for which err found none, and says whether it did. In vain
// nothing is evicted.
func (st *Store) evictForLocked(err error, need int64, evicted *bool) bool {
	var full *BudgetError
	if errors.As(err, &full) && (*evicted || st.freesLocked(need-(st.budget.Total()-st.budget.Used()))) && st.evictLocked() {
		*evicted = true
		return true
	}
	return false
}

// evictLocked frees the cheapest thing first: the memory of idle pages, else a prefix, else a session.
func (st *Store) evictLocked() bool {
	trimmed, err := st.pages.trim()
	freed := err == nil && (trimmed || st.evictPrefixLocked() || st.evictSessionLocked())
	settle(st.budget, st.pages.emptied)
	st.pages.emptied = nil
	return freed
}

// evictPrefixLocked frees the least recently used row that only the index has.
func (st *Store) evictPrefixLocked() bool {
	r := st.prefixes.remove()
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

// evictSessionLocked drops the session that has gone unused the longest of those beyond their TTL.
func (st *Store) evictSessionLocked() bool {
	s := st.endExpiredLocked()
	if s == nil {
		return false
	}
	st.releaseRowsLocked(s, len(s.rows))
	s.unlock()
	return true
}

// endExpiredLocked ends the session that has gone unused the longest of those beyond their TTL that are neither pinned nor in
// use, and returns it with its locks held, or nil. Its rows are the caller's to release.
func (st *Store) endExpiredLocked() *session {
	now := st.config.Now()
	var inUse []*session
	defer func() {
		for _, s := range inUse {
			st.expiry.add(s)
		}
	}()
	for s := st.expiry.next(now); s != nil; s = st.expiry.next(now) {
		if !s.tryLock() {
			st.expiry.remove(s)
			inUse = append(inUse, s)
			continue
		}
		if !s.pinned {
			st.endLocked(s)
			st.counters.evicted++
			return s
		}
		st.expiry.remove(s) // until it is pinned no longer
		s.unlock()
	}
	return nil
}

// freesLocked reports whether evictLocked may free n bytes; if not, it certainly can't. Shared pages count for each
// session.
func (st *Store) freesLocked(n int64) bool {
	n -= st.pages.idle + st.prefixes.bytes + st.prefixes.rows + st.lone
	if n <= 0 {
		return true
	}
	now := st.config.Now()
	st.expiry.advance(now)
	for _, s := range st.expiry.due {
		if !s.unusedAt(now) || !s.tryLock() {
			continue // It is in use.
		}
		if !s.pinned {
			// Of rows that were shared there may be more than pageBytes counts.
			n -= s.bytes + s.shape.bytes
			for _, r := range s.rows {
				n -= r.bytes + r.shape.rowBytes
			}
		}
		s.unlock()
		if n <= 0 {
			return true
		}
	}
	return false
}
