// Package kvcache holds keys and values: budgets of memory, which keep what jobs give back for the next, arenas outside the
// heap, shards of pages for jobs, the store of sessions, and the receipts by which two holders know that they hold the same. It
// has no network, no goroutine, and no clock but the one that it is given.
//
// The way of an append to a session: Store.Prepare compares the epoch, the truncations, the length and the hashes that it names
// with those that are there (append.go). It reserves the pages of all groups from the Budget, for which it evicts what nobody
// needs (room.go, evict.go), narrows the rows into them and chains their hashes (encoder.go). Pending.Commit then advances the
// session's length; Pending.Abort leaves the session as it was (pending.go). A View lends the pages of one layer to attention
// and keeps them as they are until it is released.
//
// The other calls on a session have a file each: create, claim, truncate, fork, drop, inspect, export. Store says in which order
// locks are taken.
//
// Pages of one index, over all layers and groups that are held of a session, are a row. A fork, the index of prefixes and a
// view share rows, by one count for each row; who appends to a shared row makes a copy of it first. So a fork costs one count
// for 64 positions, however many layers and groups there are. What a row or a session itself takes of the heap counts in the
// Budget, too.
//
// A page is reserved from the budget before its first use. When the last session lets it go, it stays reserved for the next one,
// until its chunk of a few MiB is empty and unmapped, or until something else needs the room (Store.Reclaim). A few empty chunks
// are kept for a minute; then, where nothing is held any more, nothing is reserved.
package kvcache
