package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/tensor"
)

// notRun are the beginnings of commands of documents that TestCommandsOfDocumentsRun does not run, and why.
var notRun = []struct {
	command, why string
	found        atomic.Bool
}{
	{command: "make", why: "targets install, measure or test for minutes: CI runs their parts"},
	{command: "go test", why: "is a test or a benchmark itself; TestCommandsInDocuments finds it"},
	{command: "coord serve", why: "serves until it is ended, on ports of the machine: test/network runs it"},
	{command: "worker serve", why: "serves until it is ended, on ports of the machine: test/network runs it"},
	{command: "coord relay", why: "serves until it is ended: test/network runs it"},
	{command: "coord events --watch", why: "goes on until Ctrl-C: the tests of coordinator watch"},
	{command: "coord bench --local", why: "measures for minutes: testdata/bench.txt runs it on less"},
	{command: "coord bench --storage", why: "measures for minutes: testdata/bench.txt runs it on less"},
	{command: "coord bench --send", why: "measures for minutes: testdata/bench.txt runs it on less"},
	{command: "coord learn", why: "teaches for most of a minute: testdata/learn.txt runs it with fewer steps"},
	{command: "coord submit job.safetensors --tls-dir", why: "is for a cluster with certificates: testdata/secure.txt runs it on one"},
	{command: "coord status --tls-dir", why: "is for a cluster with certificates: testdata/secure.txt runs it on one"},
}

// standIns are what stands in a command of a document for what a reader has, and what the test has.
var standIns = [][2]string{
	{"submit job.safetensors --accumulate FILE", "submit lesson.safetensors --accumulate gradients.safetensors"},
	{"jobs show JOB", "jobs show kept"},
	{"restore FILE", "restore alice.snapshot"},
	{"--key-file snapshots.pub", "--key-file snapshots.key"},
	{"snapshot ID FILE", "snapshot ID new.snapshot"},
	{"7c12460567eb4e982cbcc4ec446bf019", "ID"},
	{"drain WORKER", "drain w1"},
	{"rotate NAME", "rotate ann"},
	{"JOB", "job.safetensors"},
	{"RESULT", "context.safetensors"},
}

// exitsWith are the commands of documents that show an error, or have nothing to do here, and the exit code.
var exitsWith = map[string]int{
	"coord sessions restore cut.snapshot -q --coordinator 10.0.0.9:7600": exitRefused,
	"coord sessions drop ID --side WORKER":                               exitRefused, // no session has gone on twice
}

// TestCommandsOfDocumentsRun: each command of coord that a page shows, in the order of the page, on a cluster of two workers. A name
// alone in a sentence is no command to type. What does not run has a mark.
func TestCommandsOfDocumentsRun(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("coord")
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := localcluster.Start(t.Context(), localcluster.Options{Workers: 2, Command: []string{program}, Memory: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	ran := 0
	for name, text := range documents(t) {
		var lines []command
		for _, line := range commands(text) {
			if name != "CHANGELOG.md" && (line.shown || hasArguments(line.words)) && !marked(line) {
				lines = append(lines, line)
			}
		}
		if ran += len(lines); len(lines) > 0 {
			t.Run(name, func(t *testing.T) { runAsShown(t, cluster.Address(), lines) })
		}
	}
	if ran < 20 {
		t.Errorf("%d commands ran: the test finds too few", ran)
	}
	for i := range notRun {
		if !notRun[i].found.Load() {
			t.Errorf("no page shows %s: take its mark away", notRun[i].command)
		}
	}
}

func marked(line command) bool {
	for i := range notRun {
		if strings.HasPrefix(strings.Join(line.words, " ")+" ", notRun[i].command+" ") {
			notRun[i].found.Store(true)
			return true
		}
	}
	return false
}

// hasArguments tells whether a command has more than its name.
func hasArguments(words []string) bool {
	root := (&app{program: words[0]}).tree()
	_, rest, err := root.Find(words[1:])
	return err != nil || len(rest) > 0
}

// runAsShown runs commands in a folder that has what they speak of.
func runAsShown(t *testing.T, address string, lines []command) {
	folder := t.TempDir()
	path := func(name string) string { return filepath.Join(folder, name) }
	writeJob(t, path("job.safetensors"), 0)
	for _, name := range []string{"lesson.safetensors", "first.safetensors", "second.safetensors"} {
		writeTensors(t, path(name), []tensor.Data{waves("q", 0, 4, 4, 8), waves("k", 0, 6, 2, 8), waves("v", 0, 6, 2, 8), waves("d_context", 1, 4, 4, 8)},
			map[string]string{"headwater": `{"kind":"attention_grad"}`})
	}
	data, err := filepath.Abs("../../test/data")
	if err := errors.Join(err, os.Mkdir(path("test"), 0o700), os.Symlink(data, path("test/data"))); err != nil {
		t.Fatal(err)
	}
	run := func(line string, want int) {
		t.Helper()
		cmd := exec.Command("sh", "-c", line)
		cmd.Dir, cmd.Env = folder, append(os.Environ(), "HEADWATER_COORDINATOR="+address, "HOME="+folder)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != want {
			t.Errorf("%s: %v, want exit code %d: %s", line, err, want, out)
		}
	}
	run("coord submit job.safetensors --key kept --out context.safetensors -q", exitOK)
	run("coord submit lesson.safetensors --out gradients.safetensors -q", exitOK)
	run("coord sessions snapshot "+openSession(t, address)+" alice.snapshot -q && head -c 100 alice.snapshot > cut.snapshot", exitOK)
	for _, line := range lines {
		shown := strings.Join(line.words, " ")
		text := quoted(line.words)
		for _, s := range standIns {
			text = strings.ReplaceAll(text, s[0], s[1])
		}
		if strings.Contains(text, "ID") {
			text = strings.ReplaceAll(text, "ID", openSession(t, address))
		}
		for _, other := range []string{"10.0.0.9:7600", "first.example:7600"} {
			text = strings.ReplaceAll(text, other, address)
		}
		run(text, exitsWith[shown])
		if strings.HasPrefix(text, "coord drain w1") {
			run("coord drain w1 --undo", exitOK)
		}
	}
}

// quoted is a command as a shell reads it.
func quoted(words []string) string {
	var line []string
	for _, word := range words {
		if strings.ContainsAny(word, " \"$*&;()<>|") {
			word = "'" + word + "'"
		}
		line = append(line, word)
	}
	return strings.Join(line, " ")
}

// openSession returns the id of a session that was made for one command.
func openSession(t *testing.T, address string) string {
	t.Helper()
	c, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{{Heads: 2, KVHeads: 2, HeadDim: 8}}})
	if err != nil {
		t.Fatal(err)
	}
	s.Keep(true)
	rows := make([]float32, 16)
	if err := s.Do(t.Context(), &client.Step{K: rows, V: rows}); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(s.ID())
}
