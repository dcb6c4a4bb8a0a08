package house

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestArchitectureNamesWhatIsThere finds every path in docs/architecture.md and docs/decisions.
func TestArchitectureNamesWhatIsThere(t *testing.T) {
	const root = "../.."
	pages, err := filepath.Glob(root + "/docs/decisions/*.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([A-Za-z_]+(?:/[A-Za-z0-9_.]+)+)`")
	count := 0
	for _, page := range append(pages, root+"/docs/architecture.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			count++
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
				t.Errorf("%s names %s, which is not there", strings.TrimPrefix(page, root+"/"), m[1])
			}
		}
	}
	if count < 40 {
		t.Errorf("the pages name %d paths: the test reads too little", count)
	}
}
