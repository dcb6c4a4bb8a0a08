package house

import (
	"fmt"
	"go/ast"
	"go/token"
	"strings"
)

// Unbounded finds loops in tests that wait until a condition holds, and that nothing ends if it never does: the whole package's time passes
// then, and nobody is told what has not come. Only the clear forms are found: loops on a condition that do nothing but ask again, or that
// sleep, let others run or take a tick, without a way out.
func (h *House) Unbounded() []string {
	var found []string
	for _, f := range h.files() {
		if !strings.HasSuffix(f.name, "_test.go") && !strings.Contains(f.name, "/testkit/") {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if loop, ok := n.(*ast.ForStmt); ok && unbounded(loop) {
				at := f.set.Position(loop.Pos())
				found = append(found, fmt.Sprintf("%s:%d: the loop waits without a bound: internal/testkit/await has one, and says what has not come", f.name, at.Line))
			}
			return true
		})
	}
	return found
}

// unbounded tells whether a loop waits for its condition alone.
func unbounded(loop *ast.ForStmt) bool {
	if loop.Cond == nil {
		return false
	}
	waits, ends := len(loop.Body.List) == 0 && loop.Post == nil, false
	look := func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.ReturnStmt:
			ends = true
		case *ast.BranchStmt:
			ends = ends || n.Tok == token.BREAK || n.Tok == token.GOTO
		case *ast.UnaryExpr:
			if of, ok := n.X.(*ast.SelectorExpr); ok && n.Op == token.ARROW && of.Sel.Name == "C" {
				waits = true
			}
		case *ast.CallExpr:
			switch called(n.Fun) {
			case "time.Sleep", "runtime.Gosched":
				waits = true
			case "panic", "Fatal", "Fatalf", "FailNow", "Now", "Since", "Until", "Err", "Scan", "Next":
				ends = true
			}
		}
		return true
	}
	for _, part := range []ast.Node{loop.Cond, loop.Post, loop.Body} {
		if part != nil {
			ast.Inspect(part, look)
		}
	}
	return waits && !ends
}

// called is what a call is of: a function of packages time and runtime with its package, another one without.
func called(fun ast.Expr) string {
	switch fun := fun.(type) {
	case *ast.Ident:
		return fun.Name
	case *ast.SelectorExpr:
		if of, ok := fun.X.(*ast.Ident); ok && (of.Name == "time" && fun.Sel.Name == "Sleep" || of.Name == "runtime") {
			return of.Name + "." + fun.Sel.Name
		}
		return fun.Sel.Name
	}
	return ""
}
