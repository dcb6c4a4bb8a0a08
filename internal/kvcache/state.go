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
}

// State is what a store has of a session. It shares nothing that changes.
type State struct {
	Session     SessionID
	Epoch       Epoch
	Truncations uint64
	Layers      []LayerState // that are held, ascending
	Pinned      bool
	// PageBytes are those of all pages that the session refers to, OwnBytes those that nobody shares.
	PageBytes, OwnBytes int64
	Created, Used       time.Time
	Config              *Config
	Held                []HeldLayer
}
