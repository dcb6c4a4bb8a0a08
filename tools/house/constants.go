package house

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/types"
	"slices"
	"strings"
)

// Twice finds limits and words of the protocol that are written down in two packages: constants of equal name and value, the
// case of the name aside, and texts of eight bytes or more that two packages name.
func (h *House) Twice() []string {
	type place struct{ pkg, name string }
	limits, texts := map[string][]place{}, map[string][]place{}
	for _, p := range h.own() {
		if strings.Contains(p.PkgPath, "/proto/") {
			continue
		}
		for id, o := range p.TypesInfo.Defs {
			c, ok := o.(*types.Const)
			if !ok || c.Parent() != p.Types.Scope() || !isLiteral(p.Syntax, id) {
				continue
			}
			at := place{h.short(p.PkgPath), c.Name()}
			switch c.Val().Kind() {
			case constant.Int:
				if strings.HasPrefix(strings.ToLower(c.Name()), "max") {
					k := strings.ToLower(c.Name()) + " = " + c.Val().ExactString()
					limits[k] = append(limits[k], at)
				}
			case constant.String:
				if text := constant.StringVal(c.Val()); len(text) >= 8 {
					texts[text] = append(texts[text], at)
				}
			}
		}
	}
	var found []string
	for _, set := range []map[string][]place{limits, texts} {
		for k, places := range set {
			if len(places) < 2 {
				continue
			}
			slices.SortFunc(places, func(a, b place) int { return strings.Compare(a.pkg, b.pkg) })
			if !h.excepted("twice", places[0].pkg+"."+places[0].name) {
				found = append(found, fmt.Sprintf("%q stands in %s and in %s", k, places[0].pkg, places[1].pkg))
			}
		}
	}
	slices.Sort(found)
	return found
}

// isLiteral tells whether a constant is written as a value, and does not refer to another one.
func isLiteral(files []*ast.File, id *ast.Ident) bool {
	for _, f := range files {
		if f.FileStart > id.Pos() || id.Pos() > f.FileEnd {
			continue
		}
		literal := true
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			for i, name := range spec.Names {
				if name == id && i < len(spec.Values) {
					ast.Inspect(spec.Values[i], func(v ast.Node) bool {
						_, refers := v.(*ast.SelectorExpr)
						literal = literal && !refers
						return true
					})
				}
			}
			return true
		})
		return literal
	}
	return false
}
