package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// count is a flag for a number of things: 1000, or 16k.
type count int64

// Type implements pflag.Value.
func (c *count) Type() string { return "count" }

func (c *count) String() string { return strconv.FormatInt(int64(*c), 10) }

// Set implements pflag.Value.
func (c *count) Set(s string) error {
	n, err := parseCount(s)
	*c = count(n)
	return err
}

// counts reads a list of counts that are at least least; 1k is 1024, and 1m 1024 of these.
func counts(name, list string, least int64) ([]int64, error) {
	if strings.TrimSpace(list) == "" {
		return nil, usage("--%s is empty", name)
	}
	var all []int64
	for _, word := range strings.Split(list, ",") {
		n, err := parseCount(word)
		if err != nil {
			return nil, usage("--%s: %w", name, err)
		}
		if n < least || n > 1<<30 {
			return nil, usage("--%s: %d is not in %d to %d", name, n, least, 1<<30)
		}
		all = append(all, n)
	}
	return all, nil
}

// parseCount reads a whole number: 1000, or 16k, which is 16 · 1024, or 1m.
func parseCount(word string) (int64, error) {
	digits, unit := strings.ToLower(strings.TrimSpace(word)), int64(1)
	for suffix, n := range map[string]int64{"k": 1 << 10, "m": 1 << 20} {
		if short, ok := strings.CutSuffix(digits, suffix); ok {
			digits, unit = short, n
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > math.MaxInt64/unit || n < math.MinInt64/unit {
		return 0, fmt.Errorf("%q is not a whole number, such as 1000 or 16k", word)
	}
	return n * unit, nil
}
