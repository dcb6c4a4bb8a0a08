package kvcache

import (
	"time"

	"headwater.example/shard"
)

// LayerState is the state of one layer.
type LayerState struct {
	Layer  shard.Layer
	Length uint64
	// Hashes [groups held] are the chained hashes, see Hasher.
	Hashes []uint64
	// First is the first position that is there, a multiple of attention.PageLen; those before have been freed.
	First uint64
	// Chain names all appends and truncations of the layer; see NextChain.
	Chain uint64
	// AppendID is the id of the newest append, 0 if a truncation came after it. In the state that a truncation names it
	// is the id of one more append that the layer may have; 0 is none.
	AppendID uint64
	// Before is the layer before its newest append or truncation, nil if there was none.
	Before *LayerState
}

// State is a store's state of a session. It shares nothing that changes.
type State struct {
	Session     SessionID
	Epoch       Epoch
	Truncations uint64
	// TruncationID is the id of the newest truncation, 0 if there was none.
	TruncationID uint64
	Layers       []LayerState // that are held, ascending
	Pinned       bool
	// PageBytes are those of all pages that the session refers to, OwnBytes those that nobody shares.
	PageBytes, OwnBytes int64
	Created, Used       time.Time
	// Lineage are the lines through which the state has come, and Served is the one on which a call was accepted last, or a lane took the
	// session, or it was made or adopted.
	Lineage []uint64
	Served  uint64
	Config  *Config
	Held    []HeldLayer
}

// NotBelow refuses if the session has a lower epoch than e: its holder has been left out since.
func (s *State) NotBelow(e Epoch) error {
	if s.Epoch.compare(e) >= 0 {
		return nil
	}
	err := refuse(StaleEpoch, "session %s has epoch %d here, and %d elsewhere: this holder was left out of it", s.Session, s.Epoch.Counter, e.Counter)
	err.Epoch = s.Epoch
	return err
}
