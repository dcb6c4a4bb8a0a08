package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"headwater.example/internal/certs"
	"headwater.example/internal/localcluster"
)

// encrypted measures what TLS costs a step of a direct client, at 16,384 and at 128 positions: two clusters take turns.
func encrypted(ctx context.Context, f *figures) (err error) {
	folder, err := os.MkdirTemp("", "headwater-figures-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	program, err := filepath.Abs(filepath.Join(f.bin, "coord"))
	if err != nil {
		return err
	}
	issued := filepath.Join(folder, "certs")
	authority, err := certs.Init(issued, certs.AuthorityLife, time.Now)
	if err != nil {
		return err
	}
	for _, id := range []certs.Identity{{Role: certs.Coordinator, Name: "local"}, {Role: certs.Worker, Name: "*"}, {Role: certs.Client, Name: "local"}} {
		if _, err := authority.Issue(id, authority.FolderOf(id), certs.CertificateLife); err != nil {
			return err
		}
	}
	for _, c := range []struct {
		name                   string
		positions, pairs, each int
	}{{"mtls_step", 16384, 12, 4}, {"mtls_step_128", 128, 60, 16}} {
		if err := encryptedSteps(ctx, f, c.name, issued, program, c.positions, c.pairs, c.each); err != nil {
			return err
		}
	}
	return nil
}

func encryptedSteps(ctx context.Context, f *figures, name, issued, program string, positions, pairs, each int) (err error) {
	m := newModel(positions)
	var ways [2]*way
	for i := range ways {
		o := localcluster.Options{Command: []string{program}}
		if i == 1 {
			o.TLS = issued
		}
		if ways[i], err = startWay(ctx, o, m, positions, true); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, ways[i].stop(ctx)) }()
	}
	return takeTurns(ctx, f, name, ways, f.rounds, positions, pairs, each)
}
