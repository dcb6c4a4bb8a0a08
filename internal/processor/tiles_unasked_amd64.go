//go:build !linux

package processor

import "errors"

var errNotAsked = errors.New("on this system no one asks for them")

func supportedStates() (uint64, error) { return 0, errNotAsked }

func askForTiles() error { return errNotAsked }
