package house

import (
	"fmt"
	"go/ast"
	"strings"
)

// The longest that a file and a function may be without a reason.
const (
	maxFileLines     = 800
	maxFunctionLines = 70
)

// Long finds files and functions that are too long to read at once. A function of a test may be as long as its table. A reason
// stands beside the function, as a line of its comment: "Long: …".
func (h *House) Long() []string {
	var found []string
	for _, f := range h.files() {
		test := strings.HasSuffix(f.name, "_test.go")
		if f.lines > maxFileLines && !h.excepted("long", f.name) {
			found = append(found, fmt.Sprintf("%s has %d lines, at most %d are read at once", f.name, f.lines, maxFileLines))
		}
		if test {
			continue
		}
		for _, d := range f.syntax.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil || strings.Contains(fn.Doc.Text(), "Long: ") {
				continue
			}
			from, to := f.set.Position(fn.Pos()), f.set.Position(fn.End())
			if lines := to.Line - from.Line + 1; lines > maxFunctionLines {
				found = append(found, fmt.Sprintf("%s:%d: %s has %d lines, at most %d fit a screen", f.name, from.Line, fn.Name.Name, lines, maxFunctionLines))
			}
		}
	}
	return found
}
