// Package sbom says, as an SPDX document, what a Go binary was built from: its modules with their versions and sums, as the
// linker wrote them into it, and the standard library.
package sbom

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"
)

// unknown is SPDX's word for what a document does not say.
const unknown = "NOASSERTION"

// Write writes the document of a binary, which is of a version and was made at a time. The same binary gives the same document.
func Write(w io.Writer, binary, version string, made time.Time) error {
	doc, err := describe(binary, version, made)
	if err != nil {
		return fmt.Errorf("bill of materials of %s: %w", binary, err)
	}
	return spdxjson.Write(doc, w, spdxjson.Indent("  "))
}

func describe(binary, version string, made time.Time) (*v2_3.Document, error) {
	content, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content)
	digest := hex.EncodeToString(sum[:])
	name := filepath.Base(binary)
	doc := &v2_3.Document{
		SPDXVersion: v2_3.Version, DataLicense: v2_3.DataLicense, SPDXIdentifier: "DOCUMENT", DocumentName: name + " " + version,
		DocumentNamespace: "https://" + info.Main.Path + "/sbom/" + name + "/" + digest,
		CreationInfo: &v2_3.CreationInfo{
			Creators: []common.Creator{{CreatorType: "Tool", Creator: info.Main.Path + "/internal/sbom"}},
			Created:  made.UTC().Format(time.RFC3339),
		},
	}
	program := library("Program", info.Path, version)
	program.PackageName, program.PackageFileName, program.PrimaryPackagePurpose = name, name, "APPLICATION"
	program.PackageLicenseDeclared = "Apache-2.0"
	program.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: digest}}
	add := func(p *v2_3.Package, from, how string) {
		doc.Packages = append(doc.Packages, p)
		doc.Relationships = append(doc.Relationships, &v2_3.Relationship{
			RefA: common.MakeDocElementID("", from), RefB: common.MakeDocElementID("", string(p.PackageSPDXIdentifier)), Relationship: how,
		})
	}
	add(program, "DOCUMENT", "DESCRIBES")
	add(library("Go", "stdlib", strings.TrimPrefix(info.GoVersion, "go")), "Program", "DEPENDS_ON")
	for _, module := range info.Deps {
		if module.Replace != nil {
			module = module.Replace
		}
		p := library("Module-"+notInID.ReplaceAllString(module.Path, "-"), module.Path, module.Version)
		if err := origin(p, module); err != nil {
			return nil, err
		}
		add(p, "Program", "DEPENDS_ON")
	}
	return doc, nil
}

var notInID = regexp.MustCompile(`[^A-Za-z0-9.]+`)

// library is a package of Go by its path and version.
func library(id, at, version string) *v2_3.Package {
	return &v2_3.Package{
		PackageName: at, PackageSPDXIdentifier: common.ElementID(id), PackageVersion: version, PackageDownloadLocation: unknown,
		PackageLicenseConcluded: unknown, PackageLicenseDeclared: unknown, PackageCopyrightText: unknown, IsFilesAnalyzedTagPresent: true,
		PackageExternalReferences: []*v2_3.PackageExternalReference{{
			Category: "PACKAGE-MANAGER", RefType: "purl", Locator: "pkg:golang/" + path.Clean(at) + "@" + version,
		}},
	}
}

// origin says where a module comes from, and what go.sum says of it.
func origin(p *v2_3.Package, module *debug.Module) error {
	p.PackageDownloadLocation = "https://pkg.go.dev/" + module.Path + "@" + module.Version
	if module.Sum == "" {
		return nil
	}
	raw, ok := strings.CutPrefix(module.Sum, "h1:")
	sum, err := base64.StdEncoding.DecodeString(raw)
	if !ok || err != nil {
		return fmt.Errorf("the sum of %s, %q, is not of a known kind", module.Path, module.Sum)
	}
	p.PackageComment = "The sum is Go's h1: SHA-256 over the names and sums of the module's files."
	p.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: hex.EncodeToString(sum)}}
	return nil
}
