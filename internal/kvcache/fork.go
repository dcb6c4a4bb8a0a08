package kvcache

import (
	"context"
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
	// Expect [layers held, ascending] is the state that the fork names. The session may have more.
	Expect []LayerState
	// Position is how many of these positions the child begins with, at most what every layer has; less than 0 is all.
	Position int64
	// Call is a random id of the call; see CreateRequest.
	Call uint64
	// Metered is of a tenant's own call: its quota holds.
	Metered bool
}

// Fork makes a session that shares the rows of another, which does not change, or answers for the one that the same request
// made before. An append to a shared row first copies it.
func (st *Store) Fork(ctx context.Context, req ForkRequest) (State, error) {
	if req.ChildEpoch.Counter < 1 {
		return State{}, refuse(Invalid, "session %s: epoch 0: epochs start at 1", req.Child)
	}
	how := made{forked: true, from: req.Session, position: max(req.Position, -1)}
	st.mu.Lock()
	before, parent := st.sessions[req.Child], st.sessions[req.Session]
	st.mu.Unlock()
	if before != nil && before.adopted && parent != nil && parent.shape.equal(before.shape) {
		return st.again(before, req.ChildEpoch) // it was copied here before all holders of the parent had made it
	}
	if before != nil && before.made == how && (parent == nil || parent.shape == before.shape) {
		return st.again(before, req.ChildEpoch)
	}
	s, err := st.drive(ctx, req.Session, req.Epoch)
	if err != nil {
		return State{}, err
	}
	if before != nil && before.made == how {
		// The session has got other groups since: so does its child.
		if err := st.forget(ctx, before); err != nil {
			s.unlock()
			return State{}, err
		}
	}
	child, before, refused := st.fork(s, &req, how)
	s.unlock()
	switch {
	case refused != nil:
		return State{}, refused
	case before != nil:
		return st.again(before, req.ChildEpoch)
	}
	defer child.mu.Unlock()
	return st.state(child), nil
}

// fork returns the new session, locked, or the one that was made before.
func (st *Store) fork(s *session, req *ForkRequest, how made) (child, before *session, err *Error) {
	if req.Truncations != s.truncations {
		return nil, nil, s.otherTruncations(req.Truncations)
	}
	if len(req.Expect) != len(s.lengths) {
		return nil, nil, refuse(Invalid, "session %s: a fork names %d layers, %d are held", s.id, len(req.Expect), len(s.lengths))
	}
	to := make([]int, len(s.lengths))
	for l := range to {
		if err := st.has(s, l, &req.Expect[l]); err != nil {
			return nil, nil, err
		}
		to[l] = int(req.Expect[l].Length)
		if n := int(min(req.Position, shard.MaxPositions)); req.Position >= 0 {
			if n > to[l] {
				layer := s.shape.layers[l].layer
				return nil, nil, refuse(Behind, "session %s: layer %d has %d positions, the fork is at %d", s.id, layer, to[l], n).at(layer, to[l])
			}
			to[l] = n
		}
	}
	hashes, err := st.cutHashes(s, to)
	if err != nil {
		return nil, nil, err
	}
	child = &session{
		id: req.Child, shape: s.shape, call: req.Call, busy: newGate(),
		identities: make([]identity, len(s.lengths)), before: make([]uint64, len(s.hashes)),
		lengths: slices.Clone(s.lengths), freed: slices.Clone(s.freed), hashes: hashes,
		rows: slices.Clone(s.rows), first: s.first, edge: s.edge, tokens: s.tokens[:len(s.tokens):len(s.tokens)], keyed: s.keyed,
		begun: s.begun,
	}
	child.start(req.ChildEpoch)
	child.mu.Lock()
	st.mu.Lock()
	defer st.unlock()
	before, err = st.admitLocked(child, how, req.Metered)
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
	st.shortenLocked(child, to)
	return child, nil, nil
}
