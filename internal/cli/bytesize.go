package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// byteSize is a flag for a number of bytes: 4GiB, 512MiB, 1.5GB, or plain bytes.
type byteSize int64

var byteUnits = []struct {
	name  string
	bytes float64
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"Ki", 1 << 10},
	{"Mi", 1 << 20},
	{"Gi", 1 << 30},
	{"Ti", 1 << 40},
	{"kB", 1e3},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"B", 1},
}

// Type implements pflag.Value.
func (b *byteSize) Type() string { return "size" }

func (b *byteSize) String() string {
	if *b == 0 {
		return "0"
	}
	return sizeOf(int64(*b))
}

// Set implements pflag.Value.
func (b *byteSize) Set(s string) error {
	number, unit := strings.TrimSpace(s), 1.0
	for _, u := range byteUnits {
		if head, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = strings.TrimSpace(head), u.bytes
			break
		}
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil && unit == 1 && n >= 0 {
		*b = byteSize(n)
		return nil
	}
	n, err := strconv.ParseFloat(number, 64)
	// The comparison is false for NaN as well.
	if err != nil || !(n >= 0 && n*unit < math.MaxInt64) {
		return fmt.Errorf("%q is not a size: want a number of bytes, KiB, MiB, GiB or TiB", s)
	}
	*b = byteSize(n * unit)
	return nil
}

// leastMemory is the smallest budget of a worker: one that is smaller is a number without its unit.
const leastMemory = 1 << 20

// memorySize is a flag for a worker's budget. Unset it is 0.
type memorySize struct{ byteSize }

// Set implements pflag.Value.
func (m *memorySize) Set(s string) error {
	var size byteSize
	if err := size.Set(s); err != nil {
		return err
	}
	if size < leastMemory {
		return fmt.Errorf("%q is %s, less than the %s that a worker needs: want a size with its unit, such as 4GiB", s, sizeOf(int64(size)), sizeOf(leastMemory))
	}
	m.byteSize = size
	return nil
}

// positive refuses flags that are 0 or less, where a 0 would silently be the default.
func positive(flags *pflag.FlagSet, names ...string) error {
	for _, name := range names {
		f := flags.Lookup(name)
		if v := f.Value.String(); f.Changed && (v == "0" || v == "0s" || strings.HasPrefix(v, "-")) {
			return usage("--%s is %s, must be more than 0 (default %s)", name, v, f.DefValue)
		}
	}
	return nil
}

// sizeOf prints a number of bytes for people.
func sizeOf(n int64) string {
	switch {
	case n < 0:
		return strconv.FormatInt(n, 10) + " B"
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n < 1<<40:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%.2f TiB", float64(n)/(1<<40))
}
