// Package session runs the scripts of this folder: every script against reference holders and workers, through a coordinator
// and directly, with the same output.
package session

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"headwater.example/internal/testkit/script"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ways are those in which each script runs. The first is the one that -rewrite asks.
var ways = []struct {
	name          string
	plain, direct bool
}{
	{"reference/relayed", true, false},
	{"reference/direct", true, true},
	{"workers/relayed", false, false},
	{"workers/direct", false, true},
}

func each(t *testing.T, start func(testing.TB, string, bool) script.Driver) {
	all, errA := filepath.Glob("*.txt")
	workers, errW := filepath.Glob("workers/*.txt") // what the reference holder has not: shared prefixes, budgets
	if err := errors.Join(errA, errW); err != nil || len(all) == 0 || len(workers) == 0 {
		t.Fatalf("there are no scripts: %v", err)
	}
	for _, way := range ways {
		paths := all
		if !way.plain {
			paths = slices.Concat(all, workers)
		}
		for _, path := range paths {
			t.Run(way.name+"/"+path, func(t *testing.T) {
				script.Run(t, path, script.Way{Plain: way.plain, Direct: way.direct, Start: start})
			})
		}
	}
}

// TestScriptsInGo runs the scripts by the Go client.
func TestScriptsInGo(t *testing.T) { each(t, script.Go) }

// TestScriptsInPython runs them by the Python client, if HEADWATER_PYTHON names an interpreter that has it.
func TestScriptsInPython(t *testing.T) {
	python := os.Getenv("HEADWATER_PYTHON")
	if python == "" {
		t.Skip("HEADWATER_PYTHON names no interpreter with the Python client; make test-python does")
	}
	each(t, script.Program(python, "../../clients/python/tests/script_driver.py"))
}
