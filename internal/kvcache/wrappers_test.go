package kvcache

import "context"

// What tests of contents say to a store: they leave it to these to name the appends and truncations that have made what is there.

// identify fills in the identity of an append, as of one that follows, or that repeats, what is there.
func (st *Store) identify(a *Append) {
	if a.ID == 0 {
		a.ID = 1
	}
	state, err := st.Peek(a.Session)
	if err != nil {
		return
	}
	for _, l := range state.Layers {
		if l.Layer != a.Layer {
			continue
		}
		if a.Chain = l.Chain; l.Before != nil && a.Positions > 0 && l.Length == a.Length+uint64(a.Positions) {
			a.Chain, a.ID = l.Before.Chain, l.AppendID
		}
	}
}

func (st *Store) put(a *Append, hashes []uint64) (uint64, []uint64, error) {
	st.identify(a)
	return st.Append(context.Background(), a, hashes)
}

func (st *Store) putPending(p *Pending, a *Append, hashes []uint64) (uint64, []uint64, error) {
	st.identify(a)
	return st.Prepare(context.Background(), p, a, hashes)
}

// cut truncates a session to a position, or its layers to lengths, from where it is.
func (st *Store) cut(id SessionID, e Epoch, truncations, position uint64, lengths []uint64) (State, error) {
	state, _ := st.Peek(id)
	return st.Truncate(context.Background(), &TruncateRequest{
		Session: id, Epoch: e, Truncations: truncations, ID: truncations + 1, Expect: state.Layers, Position: position, Lengths: lengths,
	})
}

// branch forks a session as it is.
func (st *Store) branch(req ForkRequest) (State, error) {
	state, _ := st.Peek(req.Session)
	req.Expect = state.Layers
	return st.Fork(context.Background(), req)
}

func (st *Store) look(id SessionID) (State, error) { return st.Peek(id) }

func (st *Store) end(id SessionID, e *Epoch) error { return st.Drop(context.Background(), id, e, 0, 0) }
