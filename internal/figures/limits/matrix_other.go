//go:build !amd64

package limits

import (
	"time"

	"headwater.example/internal/processor"
)

// Matrix says that there is no matrix unit.
func Matrix(time.Duration) (flops float64, err error) { return 0, processor.Tiles() }
