package house

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const mapBegin, mapEnd = "<!-- map: written by make map -->\n", "<!-- map ends -->\n"

// TestHouse holds the module to its rules. With HEADWATER_MAP=write it draws the map anew.
func TestHouse(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	h, err := Load(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, rule := range map[string]func() []string{
		"long": h.Long, "unused": h.Unused, "twice": h.Twice, "lonely": h.Lonely, "undocumented": h.Undocumented, "limits": h.Limits, "unbounded": h.Unbounded,
	} {
		t.Run(name, func(t *testing.T) {
			for _, finding := range rule() {
				t.Error(finding)
			}
		})
	}
	t.Run("exceptions", func(t *testing.T) {
		for _, finding := range h.Unneeded() {
			t.Error(finding)
		}
	})
	t.Run("map", func(t *testing.T) { checkMap(t, filepath.Join(root, "CONTRIBUTING.md"), h.Map()) })
}

func checkMap(t *testing.T, path, drawn string) {
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), mapBegin)
	old, after, ok2 := strings.Cut(rest, mapEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the map", path)
	}
	if old == drawn {
		return
	}
	if os.Getenv("HEADWATER_MAP") == "write" {
		if err := os.WriteFile(path, []byte(before+mapBegin+drawn+mapEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("the map in %s is not what the imports say; make map draws it anew", path)
}
