// Package amx has what is written for AMX, the matrix unit of some processors for x86-64, which holds tiles of bf16 or int8 in
// registers of their own. A routine takes the tiles' configuration at its start and lets go of it at its end: Go's runtime moves
// no goroutine to another thread in the middle of assembly, but may do so after it. Who calls one has asked processor.Tiles.
package amx
