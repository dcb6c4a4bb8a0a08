package shard

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Limits of the workers of a plan. With maxShards they keep every product in the planning below 2⁶³.
const (
	MaxWorkers    = 1024
	MaxWeight     = 1 << 30
	maxNameLength = 63
)

// Worker is one that may own shards. Its share of them is in proportion to its weight.
type Worker struct {
	Name   string `json:"name"`
	Weight int    `json:"weight"`
}

// WorkerError says which worker can not be in a plan, and why. Name is empty when it is about the list.
type WorkerError struct {
	Name string
	Rule string
}

func (e *WorkerError) Error() string {
	if e.Name == "" {
		return "workers: " + e.Rule
	}
	return fmt.Sprintf("workers: %.80q: %s", e.Name, e.Rule)
}

// ParseWorkers reads a list such as "a,b:2,c": names, each with its weight after a colon where that is not 1. The
// order is kept. Any error is a *WorkerError.
func ParseWorkers(list string) ([]Worker, error) {
	if list == "" {
		return nil, &WorkerError{Rule: "the list is empty"}
	}
	if n := strings.Count(list, ",") + 1; n > MaxWorkers {
		return nil, &WorkerError{Rule: fmt.Sprintf("there are %d, at most %d are allowed", n, MaxWorkers)}
	}
	var workers []Worker
	for item := range strings.SplitSeq(list, ",") {
		name, weight, given := strings.Cut(item, ":")
		w := Worker{Name: name, Weight: 1}
		if given {
			n, err := strconv.ParseUint(weight, 10, 31)
			if err != nil {
				return nil, &WorkerError{name, fmt.Sprintf("weight %.40q is not a whole number from 1 to %d", weight, MaxWeight)}
			}
			w.Weight = int(n)
		}
		workers = append(workers, w)
	}
	if _, err := sortedWorkers(workers); err != nil {
		return nil, err
	}
	return workers, nil
}

// sortedWorkers checks the workers and returns a copy, sorted by name.
func sortedWorkers(workers []Worker) ([]Worker, error) {
	if len(workers) == 0 {
		return nil, &WorkerError{Rule: "the list is empty"}
	}
	if len(workers) > MaxWorkers {
		return nil, &WorkerError{Rule: fmt.Sprintf("there are %d, at most %d are allowed", len(workers), MaxWorkers)}
	}
	for i, w := range workers {
		switch {
		case w.Name == "":
			return nil, &WorkerError{Rule: fmt.Sprintf("number %d has no name", i+1)}
		case len(w.Name) > maxNameLength:
			return nil, &WorkerError{w.Name, fmt.Sprintf("the name has %d bytes, at most %d are allowed", len(w.Name), maxNameLength)}
		case strings.ContainsFunc(w.Name, notInName):
			return nil, &WorkerError{w.Name, "a name is made of letters, digits, '-', '_' and '.'"}
		case w.Weight < 1 || w.Weight > MaxWeight:
			return nil, &WorkerError{w.Name, fmt.Sprintf("weight %d is not in 1 to %d", w.Weight, MaxWeight)}
		}
	}
	sorted := slices.Clone(workers)
	slices.SortFunc(sorted, func(a, b Worker) int { return cmp.Compare(a.Name, b.Name) })
	for i := range sorted[1:] {
		if sorted[i].Name == sorted[i+1].Name {
			return nil, &WorkerError{sorted[i].Name, "is named twice"}
		}
	}
	return sorted, nil
}

func notInName(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
}
