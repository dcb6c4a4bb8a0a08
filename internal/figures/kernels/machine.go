package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// lastLevelCache returns the size of the largest cache that the first core has a share in, in bytes, and 32 MiB where the
// system does not say.
func lastLevelCache() int64 {
	var most int64
	files, _ := filepath.Glob("/sys/devices/system/cpu/cpu0/cache/index*/size") // the pattern is well formed
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if n, err := parseSize(string(bytes.TrimSpace(text))); err == nil {
			most = max(most, n)
		}
	}
	if most == 0 {
		return 32 << 20
	}
	return most
}

// secondCache returns the size of the first core's cache of the second level, in bytes, and 512 KiB where the system does not
// say.
func secondCache() int64 {
	files, _ := filepath.Glob("/sys/devices/system/cpu/cpu0/cache/index*/level") // the pattern is well formed
	for _, file := range files {
		level, err := os.ReadFile(file)
		if err != nil || string(bytes.TrimSpace(level)) != "2" {
			continue
		}
		if text, err := os.ReadFile(filepath.Join(filepath.Dir(file), "size")); err == nil {
			if n, err := parseSize(string(bytes.TrimSpace(text))); err == nil && n > 0 {
				return n
			}
		}
	}
	return 512 << 10
}

// parseSize reads a number with K, M or G behind it, or nothing.
func parseSize(s string) (int64, error) {
	shift := 0
	if i := strings.IndexAny(s, "KMG"); i >= 0 && i == len(s)-1 {
		shift = 10 * (strings.IndexByte("KMG", s[i]) + 1)
		s = s[:i]
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is no size", s)
	}
	return n << shift, nil
}

// field returns what the first line of a file with that label says.
func field(file, label string) (string, bool) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == label {
			return strings.TrimSpace(value), true
		}
	}
	return "", false
}

func processor() string {
	name, ok := field("/proc/cpuinfo", "model name")
	if !ok {
		return "unknown processor"
	}
	return name
}

// availableMemory returns what can be had without swapping, ok false where the system does not say.
func availableMemory() (n int64, ok bool) {
	text, ok := field("/proc/meminfo", "MemAvailable")
	if !ok {
		return 0, false
	}
	kib, err := strconv.ParseInt(strings.TrimSuffix(text, " kB"), 10, 64)
	return kib << 10, err == nil
}
