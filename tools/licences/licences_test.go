package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTheTextsGoWithTheProgram looks for what licences ask to be passed on: each text, and each notice.
func TestTheTextsGoWithTheProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "LICENSES.txt")
	if err := run("../..", false, path, "linux/arm64"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile("../../LICENSE")
	if err != nil || !bytes.HasPrefix(got, own) {
		t.Errorf("it does not begin with the project's own: %v", err)
	}
	modules, err := linked("../..", "linux/arm64", programs...)
	if err != nil || len(modules) < 50 {
		t.Fatalf("%d modules: %v", len(modules), err)
	}
	notices := 0
	for _, m := range modules {
		for _, f := range m.files {
			if !bytes.Contains(got, []byte("==== "+m.String()+", "+f.name)) || !bytes.Contains(got, bytes.TrimSpace(bytes.ReplaceAll(f.text, []byte("\r\n"), []byte("\n")))) {
				t.Errorf("%s of %s is not there", f.name, m)
			}
			if strings.HasPrefix(f.name, "NOTICE") {
				notices++
			}
		}
	}
	if notices == 0 || !bytes.Contains(got, []byte("==== Go, LICENSE")) {
		t.Errorf("%d notices", notices)
	}
}

const (
	mit = `Copyright (c) 2026 Somebody

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the
"Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to
the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR
ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
`
	gpl = `This program is free software; you can redistribute it and/or modify it under the terms of the GNU General Public License as published
by the Free Software Foundation; either version 2 of the License, or (at your option) any later version.

This program is distributed in the hope that it will be useful, but WITHOUT ANY WARRANTY; without even the implied warranty of
MERCHANTABILITY or FITNESS FOR A PARTICULAR PURPOSE. See the GNU General Public License for more details.
`
	own = "Whoever has paid the fee may use this software on one machine, on working days. It may not be passed on, and nobody may read it."
)

// TestWhatIsNotAllowedIsRefused links modules of every kind into a program of a module that is made for this.
func TestWhatIsNotAllowedIsRefused(t *testing.T) {
	for name, k := range map[string]struct {
		files map[string]string // of the module that is linked
		says  string            // "" if it is allowed
	}{
		"a licence that is allowed":       {map[string]string{"LICENSE": mit}, ""},
		"one by another name":             {map[string]string{"COPYING.md": mit}, ""},
		"one with a notice":               {map[string]string{"LICENSE": mit, "NOTICE": "Made by Somebody."}, ""},
		"one that is not":                 {map[string]string{"LICENSE": gpl}, "other.example v1.0.0: LICENSE is GPL-2.0"},
		"no licence":                      {nil, "other.example v1.0.0: no file says under which licence it is"},
		"a notice alone":                  {map[string]string{"NOTICE": mit}, "no file says"},
		"one that nobody knows":           {map[string]string{"LICENSE": own}, "0 % of LICENSE is of known licences"},
		"a known one with other words":    {map[string]string{"LICENSE": mit + strings.Repeat(own, 4)}, "% of LICENSE is of known licences"},
		"another one of a folder":         {map[string]string{"LICENSE": mit, "inner/LICENSE": gpl}, "inner/LICENSE is GPL-2.0"},
		"another one of a folder unused":  {map[string]string{"LICENSE": mit, "unused/LICENSE": gpl, "unused/unused.go": "package unused\n"}, ""},
		"a folder's own, and none at all": {map[string]string{"inner/LICENSE": mit}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			files := map[string]string{
				"go.mod":           "module program.example\n\ngo 1.26\n\nrequire other.example v1.0.0\n\nreplace other.example => ./other\n",
				"main.go":          "package main\n\nimport _ \"other.example/inner\"\n\nfunc main() {}\n",
				"other/go.mod":     "module other.example\n\ngo 1.26\n",
				"other/inner/a.go": "package inner\n",
			}
			for path, text := range k.files {
				files["other/"+path] = text
			}
			for path, text := range files {
				path = filepath.Join(root, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			modules, err := linked(root, "linux/amd64", ".")
			if err != nil || len(modules) != 1 {
				t.Fatalf("%v: %v", modules, err)
			}
			_, err = judge(modules[0])
			if k.says == "" && err != nil || k.says != "" && (err == nil || !strings.Contains(err.Error(), k.says)) {
				t.Errorf("%v, want %q", err, k.says)
			}
		})
	}
}
