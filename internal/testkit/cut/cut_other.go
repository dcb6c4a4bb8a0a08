//go:build !linux

package cut

import (
	"context"
	"errors"
	"math/rand/v2"
)

var errLinux = errors.New("namespaces need Linux")

// Inside reports whether this program was started by Again.
func Inside() bool { return false }

// Again says that it is not possible here.
func Again(context.Context) (code int, err error) { return 0, errLinux }

// Disk says that it is not possible here.
func Disk(string, int64) (remove func() error, err error) { return nil, errLinux }

// Network is this program's own network.
type Network struct{}

// Open says that it is not possible here.
func Open() (*Network, error) { return nil, errLinux }

// Direction says which packets are dropped.
type Direction int

// The directions.
const (
	Both Direction = iota
	To
	From
)

// Drop says that it is not possible here.
func (*Network) Drop(Direction, ...string) error { return errLinux }

// Heal says that it is not possible here.
func (*Network) Heal() error { return errLinux }

// Slows says that it is not possible here.
func (*Network) Slows() error { return errLinux }

// Slow says that it is not possible here.
func (*Network) Slow(int) error { return errLinux }

// Steady says that it is not possible here.
func (*Network) Steady() error { return errLinux }

// Delays says that it is not possible here.
func (*Network) Delays() error { return errLinux }

// Delay says that it is not possible here.
func (*Network) Delay(Lag, *rand.Rand, ...string) (end func() error, err error) { return nil, errLinux }

// Starves says that it is not possible here.
func Starves() error { return errLinux }

// Starve says that it is not possible here.
func Starve(int, int64) (release func() error, err error) { return nil, errLinux }
