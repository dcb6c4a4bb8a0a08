package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"headwater.example/coordinator/sessions"
	"headwater.example/internal/atomicfile"
	"headwater.example/internal/membership"
	"headwater.example/shard"
)

// knownWorkers is the file in the data folder that names the workers of the cluster. A coordinator that starts again reads there
// whom it does not know yet: until they have joined, or a minute has passed, it calls no session gone that they may hold.
const knownWorkers = "workers.json"

// maxKnownBytes bounds what is read of that file: more than the names and addresses of all workers take.
const maxKnownBytes = shard.MaxWorkers * 1024

type knownFile struct {
	Workers []knownWorker `json:"workers"`
}

type knownWorker struct {
	Name    string `json:"name"`
	Address string `json:"address"`
}

// readKnown reads the workers that were known when the coordinator ended. No file is no worker.
func readKnown(folder string) (known []membership.Member, err error) {
	f, err := os.Open(filepath.Join(folder, knownWorkers))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := io.ReadAll(io.LimitReader(f, maxKnownBytes))
	if err != nil {
		return nil, err
	}
	var file knownFile
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	for _, w := range file.Workers {
		known = append(known, membership.Member{Name: w.Name, Address: w.Address, Role: membership.RoleWorker})
	}
	return known, nil
}

// keepKnown writes the workers of a view, and those that are awaited, at each change until ctx ends. What could not be written, as on a
// full disk, is written again after a pause.
func keepKnown(ctx context.Context, folder string, pause time.Duration, view membership.View, relay *sessions.Relay, log *slog.Logger) {
	var before []knownWorker
	for written, said := false, false; ; {
		changed := view.Changed()
		var now []knownWorker
		for _, m := range append(view.Members(), relay.Awaited()...) {
			if m.Role == membership.RoleWorker {
				now = append(now, knownWorker{m.Name, m.Address})
			}
		}
		if !written || !slices.Equal(before, now) {
			err := writeKnown(folder, now)
			if err != nil && !said {
				log.Warn("the cluster's workers are not kept for the next start", "error", err)
			}
			before, written, said = now, err == nil, err != nil
		}
		var again <-chan time.Time
		if !written {
			again = time.After(pause)
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

func writeKnown(folder string, workers []knownWorker) error {
	b, err := json.Marshal(knownFile{Workers: workers})
	if err != nil {
		return err
	}
	f, err := atomicfile.Create(filepath.Join(folder, knownWorkers), int64(len(b)))
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return errors.Join(err, f.Abort())
	}
	return f.Commit()
}
