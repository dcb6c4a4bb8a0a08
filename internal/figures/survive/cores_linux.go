package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// keep lets all threads of a process run on one core alone, and those that they start.
func keep(process, core int) error {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", process))
	if err != nil {
		return err
	}
	var set unix.CPUSet
	set.Set(core)
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, &set); err != nil {
			return fmt.Errorf("keep process %d on core %d: %w", process, core, err)
		}
	}
	return nil
}

// processorTime returns the seconds that the threads of a process have run for so far.
func processorTime(process int) (seconds float64, err error) {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", process))
	if err != nil {
		return 0, err
	}
	for _, t := range threads {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", process, t.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return 0, err
		}
		nanos, err := strconv.ParseFloat(strings.Fields(string(text) + " 0")[0], 64)
		if err != nil {
			return 0, err
		}
		seconds += nanos / 1e9
	}
	return seconds, nil
}
