package kvcache

import (
	"time"

	"headwater.example/shard"
)

// LayerState is what is held of one layer.
type LayerState struct {
	Layer  shard.Layer
	Length uint64
	// Hashes [groups held] are the chained hashes, see Hasher.
	Hashes []uint64
	// First is the first position that is there, a multiple of attention.PageLen; those before have been freed.
	First uint64
	// Chain names the appends and truncations that have made the layer what it is; see NextChain.
	Chain uint64
	// AppendID is that of the newest append, 0 if what came last was a truncation. Where a truncation names what it starts
	// from, it is the id of one append more that the layer may have, 0 is none.
	AppendID uint64
	// Before is the layer before its newest append or truncation, nil if there was none.
	Before *LayerState
}

// State is what a store has of a session. It shares nothing that changes.
type State struct {
	Session     SessionID
	Epoch       Epoch
	Truncations uint64
	// TruncationID is that of the newest truncation, 0 if there was none.
	TruncationID uint64
	Layers       []LayerState // that are held, ascending
	Pinned       bool
	// PageBytes are those of all pages that the session refers to, OwnBytes those that nobody shares.
	PageBytes, OwnBytes int64
	Created, Used       time.Time
	Config              *Config
	Held                []HeldLayer
}
