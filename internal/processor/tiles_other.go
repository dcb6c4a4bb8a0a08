//go:build !amd64

package processor

import "errors"

// Tiles says whether this process may use AMX tiles of bf16: they are of another architecture.
func Tiles() error { return errors.New("the processor has no AMX") }
