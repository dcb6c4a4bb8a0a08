//go:build !linux && !darwin

package cli

import "errors"

// usableMemory is not known how to ask for.
func usableMemory() (int64, error) { return 0, errors.ErrUnsupported }
