package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestUnitsStartWhatIsThere reads the lines of the units that start the programs with the programs' own flags, and finds every setting
// of the files that they name, also those that are commented out, among these.
func TestUnitsStartWhatIsThere(t *testing.T) {
	started := regexp.MustCompile(`(?m)^ExecStart=/usr/bin/(coord|headwater-worker) (.*)$`)
	for unit, settings := range map[string]string{"headwater-coordinator.service": "coordinator.yaml", "headwater-worker.service": "worker.yaml"} {
		text, err := os.ReadFile(filepath.Join(repository, "packaging", unit))
		if err != nil {
			t.Fatal(err)
		}
		m := started.FindStringSubmatch(string(text))
		if m == nil || !strings.Contains(m[2], "--config /etc/headwater/"+settings) {
			t.Fatalf("%s starts %q", unit, m)
		}
		program := strings.TrimPrefix(m[1], "headwater-")
		if err := readByProgram(append([]string{program}, strings.Fields(m[2])...)); err != nil {
			t.Errorf("%s: %v", unit, err)
		}
		file, err := os.ReadFile(filepath.Join(repository, "packaging", settings))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.SplitN(string(file), "\n", 2)[1] // without what it begins with
		var values map[string]any
		if err := yaml.Unmarshal([]byte(strings.ReplaceAll(lines, "# ", "")), &values); err != nil && !strings.Contains(err.Error(), "already defined") {
			t.Fatalf("%s: %v", settings, err)
		}
		for line := range strings.Lines(lines) {
			name, _, _ := strings.Cut(strings.TrimPrefix(line, "# "), ":")
			if err := readByProgram([]string{program, "serve", "--" + name, "1"}); err != nil && !strings.Contains(err.Error(), "invalid argument") {
				t.Errorf("%s: %s: %v", settings, name, err)
			}
		}
	}
}

// TestUnitsAreUnits asks systemd, where it is.
func TestUnitsAreUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not here")
	}
	for _, unit := range []string{"headwater-coordinator.service", "headwater-worker.service"} {
		text, err := os.ReadFile(filepath.Join(repository, "packaging", unit))
		if err != nil {
			t.Fatal(err)
		}
		// A program that is there, in the place of one that is to be.
		path := filepath.Join(t.TempDir(), unit)
		if err := os.WriteFile(path, regexp.MustCompile(`/usr/bin/\S+`).ReplaceAll(text, []byte("/bin/true")), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", path).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v: %s", unit, err, out)
		}
	}
}
