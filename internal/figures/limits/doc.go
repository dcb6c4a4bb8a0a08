// Package limits measures what a core can do at most, so that kernels can be held against it in the same minute on the
// same machine: read memory, write memory, and multiply and add.
//
// The loops are Go assembly, for AVX-512, AVX2 and NEON. Memory is read and written in a Buffer of huge pages, which should
// be a good deal larger than the last-level cache.
package limits
