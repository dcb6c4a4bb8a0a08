package house

import (
	"fmt"
	"go/doc"
	"slices"
	"strings"

	"golang.org/x/tools/go/packages"
)

// Map draws the rooms and what each of them imports, from the top down: a row for each package with its height (0 imports
// nothing of the house), what it is for and what it stands on. It is Markdown.
func (h *House) Map() string {
	imports, heights := h.imports(), map[string]int{}
	for name := range imports {
		height(name, imports, heights)
	}
	own := h.own()
	slices.SortStableFunc(own, func(a, b *packages.Package) int {
		return heights[h.short(b.PkgPath)] - heights[h.short(a.PkgPath)]
	})
	var b strings.Builder
	b.WriteString("| height | package | what it is for | imports |\n| --: | --- | --- | --- |\n")
	for _, p := range own {
		if len(p.Syntax) == 0 {
			continue // tests alone
		}
		name := h.short(p.PkgPath)
		list := "–"
		if len(imports[name]) > 0 {
			list = "`" + strings.Join(imports[name], "`, `") + "`"
		}
		fmt.Fprintf(&b, "| %d | `%s` | %s | %s |\n", heights[name], name, purpose(p), list)
	}
	return b.String()
}

// imports returns, by package, which others of the house it imports.
func (h *House) imports() map[string][]string {
	all := map[string][]string{}
	for _, p := range h.own() {
		var list []string
		for path := range p.Imports {
			if strings.HasPrefix(path, h.Module+"/") {
				list = append(list, h.short(path))
			}
		}
		slices.Sort(list)
		all[h.short(p.PkgPath)] = list
	}
	return all
}

// height is 0 for a package that imports nothing of the house, else 1 above the highest that it imports.
func height(name string, imports map[string][]string, heights map[string]int) int {
	if n, ok := heights[name]; ok {
		return n
	}
	n := 0
	for _, i := range imports[name] {
		n = max(n, 1+height(i, imports, heights))
	}
	heights[name] = n
	return n
}

// purpose is the first sentence of a package's comment, without its subject.
func purpose(p *packages.Package) string {
	for _, f := range p.Syntax {
		if f.Doc == nil {
			continue
		}
		text := new(doc.Package).Synopsis(f.Doc.Text())
		text = strings.TrimPrefix(strings.TrimPrefix(text, "Package "+p.Name+" "), "Command "+p.Name+" ")
		return strings.ReplaceAll(strings.TrimSuffix(text, "."), "|", "\\|")
	}
	return ""
}

// Lonely finds internal packages that only one other package imports: they need a reason of their own.
func (h *House) Lonely() []string {
	users := map[string][]string{}
	for name, list := range h.imports() {
		for _, i := range list {
			users[i] = append(users[i], name)
		}
	}
	var found []string
	for name, by := range users {
		if len(by) == 1 && strings.Contains(name, "internal/") && !h.excepted("lonely", name) {
			found = append(found, fmt.Sprintf("%s is imported by %s alone; say in reasons.txt why it is a package", name, by[0]))
		}
	}
	slices.Sort(found)
	return found
}

// Undocumented finds packages without a comment that says what they are for; those of tests alone need none.
func (h *House) Undocumented() []string {
	var found []string
	for _, p := range h.own() {
		if len(p.Syntax) > 0 && purpose(p) == "" && !strings.Contains(p.PkgPath, "/proto/") {
			found = append(found, h.short(p.PkgPath)+" has no package comment")
		}
	}
	return found
}
