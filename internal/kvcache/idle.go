package kvcache

import "time"

// idleFor is how long a session must go unused before it may be dropped for want of room, if no open lane drives it. A client
// whose connection broke is back before that.
const idleFor = time.Minute

// openLane is a lane that is open: its sessions are not idle.
type openLane struct {
	streams int
	parked  map[*session]struct{} // that it drives, and that Store.idle therefore need not look at again before it is closed
}

// OpenLane tells the store that a lane is open, until close is called.
func (st *Store) OpenLane(id LaneID) (close func()) {
	st.mu.Lock()
	defer st.mu.Unlock()
	l := st.lanes[id]
	if l == nil {
		l = &openLane{parked: make(map[*session]struct{})}
		st.lanes[id] = l
	}
	l.streams++
	return func() {
		st.mu.Lock()
		defer st.mu.Unlock()
		if l.streams--; l.streams > 0 {
			return
		}
		delete(st.lanes, id)
		for s := range l.parked {
			s.parked = nil
			st.idle.add(s)
		}
	}
}

// parkLocked takes a session out of Store.idle that an open lane drives.
func (st *Store) parkLocked(s *session, l *openLane) {
	st.idle.remove(s)
	s.parked = l
	l.parked[s] = struct{}{}
}

// unparkLocked puts a session back that another lane drives from now on.
func (st *Store) unparkLocked(s *session) {
	if s.parked != nil {
		delete(s.parked.parked, s)
		s.parked = nil
		st.idle.add(s)
	}
}
