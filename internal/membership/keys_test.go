package membership

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"headwater.example/internal/certs"
)

// keyFile writes a file of keys, each of one letter.
func keyFile(t *testing.T, path string, letters ...string) string {
	t.Helper()
	var b strings.Builder
	for _, l := range letters {
		b.WriteString(base64.StdEncoding.EncodeToString([]byte(strings.Repeat(l, 32))) + "\n")
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// note tells of what is refused, as long as somebody may want to know.
func note(refused chan<- certs.Reason) func(certs.Reason) {
	return func(r certs.Reason) {
		select {
		case refused <- r:
		default:
		}
	}
}

// TestWhoHasNoKeyStaysOutside starts one that encrypts, then ones with its key, with another and with none, which all join it.
func TestWhoHasNoKeyStaysOutside(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := keyFile(t, filepath.Join(dir, "ours"), "a"), keyFile(t, filepath.Join(dir, "theirs"), "b")
	refused := make(chan certs.Reason, 1000)
	with := func(name, file string, seeds ...string) View {
		cfg := process(name, seeds...)
		cfg.KeyFile = file
		if name == "w1" {
			cfg.OnRefused = note(refused)
		}
		return start(t, cfg)
	}
	first := with("w1", ours)
	second := with("w2", ours, GossipAddr(first))
	with("w3", theirs, GossipAddr(first))
	with("w4", "", GossipAddr(first))
	awaitNames(t, first, "w1 w2")
	awaitNames(t, second, "w1 w2")
	for seen := map[certs.Reason]bool{}; !seen[certs.GossipPlain] || !seen[certs.GossipKey]; {
		select {
		case r := <-refused:
			seen[r] = true
		case <-time.After(patience):
			t.Fatalf("they are counted as %v", seen)
		}
	}
	awaitNames(t, first, "w1 w2")
}

// TestKeysAreReplacedWhileGossipGoesOn takes two members from one key to another, one after the other, in the steps of a rotation,
// and has a third one join at each.
func TestKeysAreReplacedWhileGossipGoesOn(t *testing.T) {
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "1"), filepath.Join(dir, "2")}
	var views []View
	var seeds []string
	refused := make(chan certs.Reason, 1000)
	for i, name := range []string{"w1", "w2"} {
		cfg := process(name, seeds...)
		cfg.KeyFile, cfg.OnRefused, cfg.tune = keyFile(t, files[i], "a"), note(refused), calm
		views = append(views, start(t, cfg))
		seeds = []string{GossipAddr(views[0])}
	}
	awaitNames(t, views[0], "w1 w2")
	for i, step := range [][]string{{"a", "b"}, {"b", "a"}, {"b"}} {
		for v, view := range views {
			keyFile(t, files[v], step...)
			if changed, err := view.(*gossip).readKeys(); err != nil || !changed {
				t.Fatalf("the keys are read again: %v, %v", changed, err)
			}
			cfg := process("w3", GossipAddr(views[1-v]))
			cfg.KeyFile, cfg.tune = files[v], calm
			joins := start(t, cfg)
			awaitNames(t, joins, "w1 w2 w3")
			if err := joins.Close(t.Context()); err != nil {
				t.Errorf("step %d: %v", i, err)
			}
			awaitNames(t, views[0], "w1 w2")
		}
	}
	for range len(refused) {
		t.Errorf("a member was refused on the way: %v", <-refused)
	}
	if err := os.WriteFile(files[0], []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := views[0].(*gossip)
	if _, err := first.readKeys(); err == nil || len(first.secret.Ring.GetKeys()) != 1 {
		t.Errorf("nonsense as keys: %v, and there are %d", err, len(first.secret.Ring.GetKeys()))
	}
}
