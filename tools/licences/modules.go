package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// programs are the packages that are built for users, of the module at the root.
var programs = []string{"./cmd/coord", "./cmd/worker"}

// module is one that packages of the programs come from.
type module struct {
	path, version, folder string
	files                 []file
}

// file is a text on licences in a module.
type file struct {
	name string // relative to the module's folder
	text []byte
}

// named are the files that say how a module, or a folder of it, may be used, or that have to be passed on with it.
var named = regexp.MustCompile(`(?i)^((un)?licen[cs]e|copying|copyright|notice|patents)([.-].*)?$`)

// grants tells whether a file says under which licence something is. Notices, names of authors and grants of patents go with one that does.
func (f file) grants() bool {
	return granting.MatchString(filepath.Base(f.name))
}

var granting = regexp.MustCompile(`(?i)^((un)?licen[cs]e|copying)`)

// linked returns the modules whose packages are linked on a platform, in the order of their paths. Of each it has the files on the way
// from a linked package's folder up to the module's: a folder may be under a licence of its own.
func linked(root, platform string, packages ...string) ([]module, error) {
	goos, goarch, ok := strings.Cut(platform, "/")
	if !ok {
		return nil, fmt.Errorf("platform %q is not GOOS/GOARCH", platform)
	}
	cmd := exec.Command("go", append([]string{"list", "-deps", "-json=ImportPath,Dir,Standard,Module"}, packages...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list for %s: %w: %s", platform, err, &stderr)
	}
	found := make(map[string]*module)
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Dir string
			Standard        bool
			Module          *struct {
				Path, Version, Dir string
				Main               bool
			}
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list for %s: %w", platform, err)
		}
		if p.Standard || p.Module != nil && p.Module.Main {
			continue
		}
		if p.Module == nil {
			return nil, fmt.Errorf("package %s is of no module", p.ImportPath)
		}
		m := found[p.Module.Path]
		if m == nil {
			m = &module{path: p.Module.Path, version: p.Module.Version, folder: p.Module.Dir}
			found[p.Module.Path] = m
		}
		if err := m.add(p.Dir); err != nil {
			return nil, fmt.Errorf("%s %s: %w", m.path, m.version, err)
		}
	}
	var all []module
	for _, m := range found {
		slices.SortFunc(m.files, func(a, b file) int { return cmp.Compare(a.name, b.name) })
		all = append(all, *m)
	}
	slices.SortFunc(all, func(a, b module) int { return cmp.Compare(a.path, b.path) })
	return all, nil
}

// add reads the files of a package's folder and of those above it, up to the module's.
func (m *module) add(folder string) error {
	for at := folder; ; at = filepath.Dir(at) {
		entries, err := os.ReadDir(at)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.IsDir() || !named.MatchString(e.Name()) || strings.HasSuffix(e.Name(), ".go") {
				continue
			}
			name, err := filepath.Rel(m.folder, filepath.Join(at, e.Name()))
			if err != nil {
				return err
			}
			if slices.ContainsFunc(m.files, func(f file) bool { return f.name == name }) {
				continue
			}
			text, err := os.ReadFile(filepath.Join(at, e.Name()))
			if err != nil {
				return err
			}
			m.files = append(m.files, file{filepath.ToSlash(name), text})
		}
		if at == m.folder || at == filepath.Dir(at) {
			return nil
		}
	}
}
