package kvcache

// maxTombstones is how many of the sessions that ended last a store remembers, so that their ids are not used again.
const maxTombstones = 1 << 16

// Drop ends a session, of a lower or another epoch never; nil is whatever its epoch. Of one that ended before it is a success.
func (st *Store) Drop(id SessionID, e *Epoch) error {
	s, err := st.hold(id, false)
	if err != nil {
		st.mu.Lock()
		defer st.mu.Unlock()
		if _, ended := st.tombstones[id]; ended {
			return nil
		}
		return err
	}
	defer s.unlock()
	if e != nil && *e != s.epoch {
		return s.stale(*e)
	}
	st.mu.Lock()
	st.endLocked(s)
	st.unlock()
	st.releaseRows(s)
	return nil
}

// endLocked takes a session out of the store; its rows are the caller's to release.
func (st *Store) endLocked(s *session) {
	s.gone = true
	delete(st.sessions, s.id)
	st.expiry.remove(s)
	st.freeSessionLocked(s)
	if len(st.ended) < maxTombstones {
		st.ended = append(st.ended, s.id)
	} else {
		delete(st.tombstones, st.ended[st.endedAt])
		st.ended[st.endedAt] = s.id
		st.endedAt = (st.endedAt + 1) % maxTombstones
	}
	st.tombstones[s.id] = struct{}{}
}

// releaseRows releases the rows of a session that has ended, a few at a time, so that others do not wait for a long one's.
func (st *Store) releaseRows(s *session) {
	for len(s.rows) > 0 {
		st.mu.Lock()
		st.releaseRowsLocked(s, 16)
		st.unlock()
	}
}

// releaseRowsLocked releases the last rows of a session that has ended, at most n.
func (st *Store) releaseRowsLocked(s *session, n int) {
	for ; n > 0 && len(s.rows) > 0; n-- {
		last := len(s.rows) - 1
		st.releaseLocked(s.rows[last], s, s.end()-1)
		s.rows[last] = nil
		s.rows = s.rows[:last]
	}
}
