// Package house checks the rules of the house that no linter knows: exported names that nothing uses, limits that stand
// twice, files and functions that have grown too long, packages without a place in the map, and loops of tests that wait without a bound.
//
// Load reads the whole module once, with types. It reads the types of dependencies from the compiler's export data, which is
// three times as fast as to check their sources. Each rule is a function of what was read, and answers with one line for each
// finding. An exception stands in reasons.txt, with its reason; an exception that nothing needs any more is a finding, too.
package house

import (
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/tools/go/packages"
)

// House is a module as it was read.
type House struct {
	// Module is the module's path, Root the folder that has its go.mod.
	Module, Root string

	packages []*packages.Package // with tests
	reasons  map[string]string   // "rule name" → why
	needed   map[string]bool     // those that a rule asked for
}

// Load reads the module in a folder.
func Load(root string) (*House, error) {
	h := &House{Root: root, needed: map[string]bool{}}
	config := &packages.Config{
		Mode: packages.NeedName | packages.NeedFiles | packages.NeedSyntax | packages.NeedTypes | packages.NeedTypesInfo |
			packages.NeedImports | packages.NeedModule,
		Dir:   root,
		Tests: true,
		Env:   append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0"),
	}
	loaded, err := packages.Load(config, "./...")
	if err != nil {
		return nil, fmt.Errorf("read the module: %w", err)
	}
	for _, p := range loaded {
		if len(p.Errors) > 0 {
			return nil, fmt.Errorf("read %s: %w", p.PkgPath, p.Errors[0])
		}
		if p.Module != nil {
			h.Module = p.Module.Path
		}
	}
	h.packages = loaded
	return h, h.readReasons(filepath.Join(root, "tools", "house", "reasons.txt"))
}

// readReasons reads the exceptions: a line each, "rule name: reason".
func (h *House) readReasons(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	h.reasons = map[string]string{}
	for n, line := range strings.Split(string(text), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, reason, ok := strings.Cut(line, ": ")
		if !ok || strings.TrimSpace(reason) == "" || len(strings.Fields(key)) != 2 {
			return fmt.Errorf("%s:%d: want \"rule name: reason\"", path, n+1)
		}
		h.reasons[key] = reason
	}
	return nil
}

// excepted tells whether an exception covers a finding: by its name, or by "package.*".
func (h *House) excepted(rule, name string) bool {
	for _, key := range []string{rule + " " + name, rule + " " + strings.SplitN(name, ".", 2)[0] + ".*"} {
		if h.reasons[key] != "" {
			h.needed[key] = true
			return true
		}
	}
	return false
}

// Unneeded returns the exceptions that no rule has needed. It is called after all rules.
func (h *House) Unneeded() []string {
	var found []string
	for key := range h.reasons {
		if !h.needed[key] {
			found = append(found, fmt.Sprintf("reasons.txt: %q is no exception any more", key))
		}
	}
	slices.Sort(found)
	return found
}

// short is a package's path within the module.
func (h *House) short(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, h.Module), "/")
}

// own returns the packages without those of tests, by path.
func (h *House) own() []*packages.Package {
	var found []*packages.Package
	for _, p := range h.packages {
		if !strings.HasSuffix(p.PkgPath, ".test") && !strings.HasSuffix(p.PkgPath, "_test") && !strings.Contains(p.ID, " [") {
			if !slices.ContainsFunc(found, func(o *packages.Package) bool { return o.PkgPath == p.PkgPath }) {
				found = append(found, p)
			}
		}
	}
	slices.SortFunc(found, func(a, b *packages.Package) int { return strings.Compare(a.PkgPath, b.PkgPath) })
	return found
}

// file is one that people write.
type file struct {
	name   string // within the module
	syntax *ast.File
	lines  int
	set    *token.FileSet
}

// files returns all files but those that are generated, by name.
func (h *House) files() []file {
	seen := map[string]bool{}
	var found []file
	for _, p := range h.packages {
		for _, f := range p.Syntax {
			path := p.Fset.Position(f.FileStart).Filename
			name, err := filepath.Rel(h.Root, path)
			if err != nil || strings.HasPrefix(name, "..") || seen[name] || ast.IsGenerated(f) {
				continue
			}
			seen[name] = true
			found = append(found, file{name, f, p.Fset.File(f.FileStart).LineCount(), p.Fset})
		}
	}
	slices.SortFunc(found, func(a, b file) int { return strings.Compare(a.name, b.name) })
	return found
}
