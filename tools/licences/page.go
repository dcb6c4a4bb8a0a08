package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// platforms are those for which programs are packed: packages, images and wheels.
var platforms = []string{"linux/amd64", "linux/arm64", "darwin/arm64"}

const head = `# Licences of what is linked into the programs

Written by ` + "`make licences`" + `, from the modules' own files; the linter checks that it is up to date, and that each licence is one of
those that are allowed: %s. Headwater itself is under [Apache-2.0](../LICENSE).

The texts go with the programs: as ` + "`LICENSES.txt`" + ` in images, tarballs and wheels, as ` + "`/usr/share/doc/headwater/copyright`" + ` in Debian
packages. Nothing in them was changed: the source of a module is what ` + "`go mod download`" + ` brings, in the version that
` + "`LICENSES.txt`" + ` names.

| module | licence |
| --- | --- |
`

// list returns the page of the modules of all platforms, or what is wrong with them.
func list(root string) ([]byte, error) {
	licences := make(map[string]string)
	var errs []error
	for _, platform := range platforms {
		modules, err := linked(root, platform, programs...)
		if err != nil {
			return nil, err
		}
		for _, m := range modules {
			if _, done := licences[m.path]; done {
				continue
			}
			ids, err := judge(m)
			if err != nil {
				errs = append(errs, err)
			}
			licences[m.path] = strings.Join(ids, ", ")
		}
	}
	var page bytes.Buffer
	fmt.Fprintf(&page, head, strings.Join(allowed, ", "))
	for _, path := range slices.Sorted(maps.Keys(licences)) {
		fmt.Fprintf(&page, "| %s | %s |\n", path, licences[path])
	}
	return page.Bytes(), errors.Join(errs...)
}

// together returns the texts that go with the programs: the project's own, those of modules, of which equal ones are there once, and
// those of Go.
func together(root string, modules []module) ([]byte, error) {
	own, err := os.ReadFile(filepath.Join(root, "LICENSE"))
	if err != nil {
		return nil, err
	}
	type text struct {
		of      []string
		content []byte
	}
	var texts []*text
	add := func(of string, content []byte) {
		content = bytes.TrimSpace(bytes.ReplaceAll(content, []byte("\r\n"), []byte("\n")))
		for _, t := range texts {
			if bytes.Equal(t.content, content) {
				t.of = append(t.of, of)
				return
			}
		}
		texts = append(texts, &text{[]string{of}, content})
	}
	for _, m := range modules {
		if _, err := judge(m); err != nil {
			return nil, err
		}
		for _, f := range m.files {
			add(m.String()+", "+f.name, f.text)
		}
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	for _, name := range []string{"LICENSE", "PATENTS"} {
		content, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(goroot)), name))
		if err != nil {
			return nil, err
		}
		add("Go, "+name, content)
	}
	var out bytes.Buffer
	out.Write(own)
	for _, t := range texts {
		fmt.Fprintf(&out, "\n==== %s ====\n\n%s\n", strings.Join(t.of, "\n==== "), t.content)
	}
	return out.Bytes(), nil
}
