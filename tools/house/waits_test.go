package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"testing"
)

// TestUnboundedLoopsAreTold from those that something ends.
func TestUnboundedLoopsAreTold(t *testing.T) {
	for loop, want := range map[string]bool{
		`for n() < 3 { time.Sleep(1) }`:     true,
		`for n() < 3 { runtime.Gosched() }`: true,
		`for n() < 3 { <-tick.C }`:          true,
		`for n() < 3 {}`:                    true,
		`for missed := 0; missed < 9; { seen(t); missed = n(); time.Sleep(1) }`:              true,
		`for !done() { go func() { return }(); time.Sleep(1) }`:                              true,
		`for n() < 3 { if late() { t.Fatal() }; time.Sleep(1) }`:                             false,
		`for n() < 3 { select { case <-tick.C: case <-late: t.Fatalf("") } }`:                false,
		`for ctx.Err() == nil { time.Sleep(1) }`:                                             false,
		`for end := time.Now().Add(1); time.Now().Before(end) && !done(); { time.Sleep(1) }`: false,
		`for n() < 3 { time.Sleep(1); if over() { break } }`:                                 false,
		`for i := 0; i < 3; i++ { work() }`:                                                  false,
		`for i := 0; i < 3; i++ {}`:                                                          false,
		`for lines.Scan() { work() }`:                                                        false,
		`for len(rest) > 0 { rest = rest[1:] }`:                                              false,
		`for { time.Sleep(1); return }`:                                                      false,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "", "package p; func f() { "+loop+" }", 0)
		if err != nil {
			t.Fatal(err)
		}
		var got []bool
		ast.Inspect(file, func(n ast.Node) bool {
			if loop, ok := n.(*ast.ForStmt); ok {
				got = append(got, unbounded(loop))
			}
			return true
		})
		if len(got) != 1 || got[0] != want {
			t.Errorf("%s: unbounded %v, want %v", loop, got, want)
		}
	}
}
