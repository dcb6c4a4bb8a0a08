package kvcache

import (
	"slices"

	"headwater.example/shard"
)

// ForkRequest asks for a session that begins as another one.
type ForkRequest struct {
	Session     SessionID
	Epoch       Epoch
	Truncations uint64
	Child       SessionID
	ChildEpoch  Epoch
	// Position is how many positions the child begins with, at most what every layer has; less than 0 is all.
	Position int64
}

// Fork makes a session that shares the rows of another, which does not change, or answers for the one that the same request
// made before. Whoever appends to a shared row first copies it.
func (st *Store) Fork(req ForkRequest) (State, error) {
	if req.ChildEpoch.Counter < 1 {
		return State{}, refuse(Invalid, "session %s: epoch 0: epochs start at 1", req.Child)
	}
	how := made{forked: true, from: req.Session, position: max(req.Position, -1)}
	st.mu.Lock()
	before := st.sessions[req.Child]
	st.mu.Unlock()
	if before != nil && before.made == how {
		return st.again(before, req.ChildEpoch)
	}
	s, err := st.drive(req.Session, req.Epoch)
	if err != nil {
		return State{}, err
	}
	child, before, err := st.fork(s, req, how)
	s.unlock()
	switch {
	case err != nil:
		return State{}, err
	case before != nil:
		return st.again(before, req.ChildEpoch)
	}
	defer child.mu.Unlock()
	return st.state(child), nil
}

// fork returns the new session, locked, or the one that was made before.
func (st *Store) fork(s *session, req ForkRequest, how made) (child, before *session, err *Error) {
	if req.Truncations != s.truncations {
		return nil, nil, s.otherTruncations(req.Truncations)
	}
	n := slices.Max(s.lengths)
	if req.Position >= 0 {
		n = int(min(req.Position, shard.MaxPositions))
		for l, length := range s.lengths {
			if n > length {
				layer := s.shape.layers[l].layer
				return nil, nil, refuse(Behind, "session %s: layer %d has %d positions, the fork is at %d", s.id, layer, length, n).at(layer, length)
			}
		}
	}
	hashes, err := st.cutHashes(s, s.all(n))
	if err != nil {
		return nil, nil, err
	}
	child = &session{
		id: req.Child, shape: s.shape, epoch: req.ChildEpoch,
		lengths: slices.Clone(s.lengths), freed: slices.Clone(s.freed), hashes: hashes,
		rows: slices.Clone(s.rows), first: s.first, edge: s.edge, tokens: s.tokens[:len(s.tokens):len(s.tokens)], keyed: s.keyed,
		begun: s.begun,
	}
	child.mu.Lock()
	st.mu.Lock()
	defer st.unlock()
	before, err = st.admitLocked(child, how)
	if err != nil || before != nil {
		child.mu.Unlock()
		return child, before, err
	}
	for i, r := range child.rows {
		st.shareLocked(r)
		for l, freed := range child.freed {
			if freed > child.first+i {
				r.left[l]++
			}
		}
	}
	st.shortenLocked(child, child.all(n))
	return child, nil, nil
}
