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

func anyones(*account) bool { return true }

// evictPrefixLocked frees the least recently used row that only the index has.
func (st *Store) evictPrefixLocked() bool {
	r := st.prefixes.remove(anyones)
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

// evictSessionLocked drops the least recently used session of those beyond their TTL, else of those that are idle.
func (st *Store) evictSessionLocked() bool {
	s := st.endExpiredLocked()
	if s == nil {
		s = st.endIdleLocked()
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
	return st.endUnusedLocked(&st.expiry, func(*session) bool { return false })
}

// endIdleLocked does the same of those that are idle: no open lane drives them, and they have gone unused for idleFor.
func (st *Store) endIdleLocked() *session {
	return st.endUnusedLocked(&st.idle, func(s *session) bool {
		lane := st.lanes[s.epoch.Lane]
		if lane != nil {
			st.parkLocked(s, lane)
		}
		return lane != nil
	})
}

// endUnusedLocked ends the first session of x that may be ended. keep takes those out of x that may not.
func (st *Store) endUnusedLocked(x *expiry, keep func(*session) bool) *session {
	now := st.config.Now()
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
		switch {
		case s.pinned:
			x.remove(s) // until it is pinned no longer
		case keep(s):
		default:
			st.endLocked(s)
			st.counters.evicted++
			return s
		}
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
			if !x.unusedAt(s, now) || x == &st.idle && st.expiry.unusedAt(s, now) || !s.tryLock() {
				continue // It is in use, or counted already.
			}
			lane := st.lanes[s.epoch.Lane]
			switch {
			case s.pinned:
			case x == &st.idle && lane != nil:
				driven[s] = lane
			default:
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
	}
	return false
}
