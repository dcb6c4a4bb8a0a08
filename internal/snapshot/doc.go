// Package snapshot is the file, or stream, that holds a session: what it was made with, and the keys and values of each layer
// exactly as they are stored. It knows layers, groups and positions and nothing of who holds them, so that a session is
// restored onto any number of workers. docs/snapshot.md has the format byte by byte.
//
// The way of a snapshot: a Writer is made with the Header; Next names the block that the order wants, Write takes it, and
// Close adds the hashes that the session has at its end. A Reader gives the same in the same order, and io.EOF only once all of
// it was there and had its checksums. Both hold one block at a time, which is a few MiB.
//
// The package opens no file and no connection, and makes no goroutine.
package snapshot
