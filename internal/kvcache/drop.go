package kvcache

import "context"

// maxTombstones is how many of the sessions that ended last a store remembers, so that their ids are not used again.
const maxTombstones = 1 << 16

// Drop ends a session. It refuses an epoch that is not the session's; a nil epoch fits every session. Dropping a session that has
// ended is a success. If call is not 0, Drop ends only a session that this call has made, and if the call comes later, it
// makes none. If served is not 0, Drop ends only a session for which no call was accepted on a later line; see State.
func (st *Store) Drop(ctx context.Context, id SessionID, e *Epoch, call, served uint64) error {
	s, err := st.hold(ctx, id, false)
	if refused, ok := err.(*Error); ok && refused.Reason == Unknown {
		return st.dropUnheld(id, call, refused)
	}
	if err != nil {
		return err
	}
	defer s.unlock()
	switch {
	case e != nil && !s.knownTo(*e):
		return s.stale(*e)
	case served != 0 && served != s.served:
		return s.stale(s.epoch)
	case call != 0 && call != s.call:
		return refuse(Exists, "session %s was made by another call, which it outlives", id)
	}
	st.mu.Lock()
	st.endLocked(s)
	st.unlock()
	st.releaseRows(s)
	return nil
}

// dropUnheld drops a session that is not held, or not yet.
func (st *Store) dropUnheld(id SessionID, call uint64, unknown *Error) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	_, ended := st.tombstones[id]
	switch _, held := st.sessions[id]; {
	case ended:
	case held: // The call that makes it was in between: it is asked again.
		return refuse(Exists, "session %s is being made", id)
	case call == 0:
		return unknown
	default:
		st.buryLocked(id)
	}
	return nil
}

// endLocked takes a session out of the store; its rows are the caller's to release.
func (st *Store) endLocked(s *session) {
	st.forgetLocked(s)
	st.buryLocked(s.id)
}

// buryLocked remembers that the id of a session is not used again.
func (st *Store) buryLocked(id SessionID) {
	if len(st.ended) < maxTombstones {
		st.ended = append(st.ended, id)
	} else {
		delete(st.tombstones, st.ended[st.endedAt])
		st.ended[st.endedAt] = id
		st.endedAt = (st.endedAt + 1) % maxTombstones
	}
	st.tombstones[id] = struct{}{}
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
