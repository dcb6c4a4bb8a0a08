package observe

import (
	"errors"
	"fmt"
	"time"

	"headwater.example/internal/figures/limits"
)

// What the bus is measured with: memory well beyond the last cache, read for a moment.
const (
	busBytes = 256 << 20
	busTime  = 100 * time.Millisecond
)

// MeasureBus returns the bytes a second at which threads read memory. It takes about 0.3 s and 256 MiB, of which room is the most
// that may be taken.
func MeasureBus(threads int, room int64) (_ float64, err error) {
	if room < busBytes {
		return 0, fmt.Errorf("measure the memory bus: %d bytes of memory, %d are needed", room, busBytes)
	}
	all := limits.ISAs()
	if len(all) == 0 {
		return 0, errors.New("measure the memory bus: there are no loops for this processor")
	}
	b, err := limits.NewBuffer(busBytes)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return b.Read(all[0], threads, busTime)
}
