// Package tensor reads and writes tensors: their element types, their shapes, and the files that hold them.
//
// Open takes a safetensors file, a safetensors index with its shards, an .npz archive or an .npy array, tells them apart by
// their first bytes, checks all that their headers claim against the file, and gives a File. ReadAt then fetches any part of a tensor's data with one
// positioned read; no file is read into memory. A Layout does the reverse: it fixes where each tensor of a new
// safetensors file lies before the first byte is written, so that a writer may write pieces in any order.
//
// Everywhere in this package data is little-endian and row-major, whatever the machine. Widen and Narrow convert
// between float32 and the storage types with the roundings of the project's numerics; CheckFinite finds the first
// NaN or infinity.
//
// Every length that a file states is compared with the file before anything is allocated for it, so that a hostile
// header costs no more memory than a small multiple of its own size. What is wrong is said as a *FormatError, which
// names file, tensor, index and rule. The package starts no goroutine and opens no connection.
package tensor
