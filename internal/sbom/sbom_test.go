package sbom

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdxlib"
)

// TestTheBillNamesEveryModule holds the document of a binary against what Go's own program says of it.
func TestTheBillNamesEveryModule(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "pack")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../image/cmd").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var out, again bytes.Buffer
	made := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, w := range []*bytes.Buffer{&out, &again} {
		if err := Write(w, binary, "1.2.3", made); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(out.Bytes(), again.Bytes()) {
		t.Error("two documents of one binary differ")
	}
	doc, err := spdxjson.Read(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if err := spdxlib.ValidateDocument(doc); err != nil {
		t.Error(err)
	}
	if doc.CreationInfo.Created != "2026-03-01T12:00:00Z" {
		t.Errorf("created at %s", doc.CreationInfo.Created)
	}
	described, err := spdxlib.GetDescribedPackageIDs(doc)
	if err != nil || len(described) != 1 {
		t.Fatalf("it describes %v, %v", described, err)
	}
	versions := make(map[string]string)
	ids := make(map[common.ElementID]bool)
	for _, p := range doc.Packages {
		versions[p.PackageName] = p.PackageVersion
		if ids[p.PackageSPDXIdentifier] {
			t.Errorf("%s is there twice", p.PackageSPDXIdentifier)
		}
		ids[p.PackageSPDXIdentifier] = true
		if p.PackageSPDXIdentifier == described[0] && p.PackageName != filepath.Base(binary) {
			t.Errorf("it describes %s", p.PackageName)
		}
	}
	said, err := exec.CommandContext(t.Context(), "go", "version", "-m", binary).Output()
	if err != nil {
		t.Fatal(err)
	}
	modules := regexp.MustCompile(`(?m)^\tdep\t(\S+)\t(\S+)`).FindAllStringSubmatch(string(said), -1)
	for _, m := range modules {
		if versions[m[1]] != m[2] {
			t.Errorf("%s is of %q, not %q", m[1], versions[m[1]], m[2])
		}
	}
	if want := len(modules) + 2; len(modules) == 0 || len(doc.Packages) != want || !strings.Contains(string(said), ": go"+versions["stdlib"]+"\n") {
		t.Errorf("%d packages, not %d; Go %s", len(doc.Packages), want, versions["stdlib"])
	}
}

func TestOnlyBinariesOfGoHaveABill(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{script, script + "none"} {
		if err := Write(&bytes.Buffer{}, path, "1", time.Time{}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
