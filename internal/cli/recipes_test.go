package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestRecipesOfSafetensorsStoreContiguousArrays: save_file does not look at strides, so what is transposed in a document must
// be made contiguous there, in NumPy or PyTorch; clients/python/tests/test_recipes.py runs the one of docs/job-file.md. The
// help of submit says so too, since the file itself can not show it.
func TestRecipesOfSafetensorsStoreContiguousArrays(t *testing.T) {
	found := false
	for name, text := range documents(t) {
		for _, block := range regexp.MustCompile("(?s)```python\n(.*?)```").FindAllStringSubmatch(text, -1) {
			if !strings.Contains(block[1], "save_file") || !strings.Contains(block[1], "transpose") {
				continue
			}
			found = true
			if !strings.Contains(block[1], "ascontiguousarray") && !strings.Contains(block[1], ".contiguous()") {
				t.Errorf("%s stores a transposed array as it is:\n%s", name, block[1])
			}
		}
	}
	if !found {
		t.Error("no document shows how to store a transposed array")
	}
	var help bytes.Buffer
	if code := Coord([]string{"submit", "--help"}, Streams{Out: &help, Err: &help}); code != exitOK || !strings.Contains(help.String(), "numpy.ascontiguousarray(x)") {
		t.Errorf("exit code %d; the help of submit does not speak of contiguous arrays", code)
	}
}

// TestWindowsOfTransformersAreExplained with the one position by which they differ, and a command for an example.
func TestWindowsOfTransformersAreExplained(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(repository, "docs/job-file.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| `sliding_window = W`", "`\"window_left\": W − 1`", "With `sliding_window = 4096`", "--window-left 4095"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("docs/job-file.md does not say %s", want)
		}
	}
}
