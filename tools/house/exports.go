package house

import (
	"go/types"
	"slices"
	"strings"
)

// Unused finds exported names that nothing outside their package uses. Fields, types of errors, values of a type of which
// others are used, and methods that an interface asks
// for, are left out: what uses them can't be seen.
func (h *House) Unused() []string {
	used := map[string]bool{}
	interfaces := map[string][]*types.Interface{} // by the name of a method
	seen := map[*types.Package]bool{}
	for _, p := range h.packages {
		for _, i := range p.Imports {
			collect(i.Types, interfaces, seen)
		}
		collect(p.Types, interfaces, seen)
		// Tests of other packages count: what they need has to be exported.
		for _, o := range p.TypesInfo.Uses {
			if o.Pkg() != nil && o.Pkg().Path() != strings.TrimSuffix(p.PkgPath, "_test") {
				used[key(o)] = true
				if c, ok := o.(*types.Const); ok {
					used["values of "+c.Type().String()] = true
				}
			}
		}
		// A type that another package's declaration mentions is used by whoever uses that declaration.
		for _, o := range p.TypesInfo.Defs {
			if o != nil && o.Exported() {
				mention(o.Type(), used, 0)
			}
		}
	}
	var found []string
	for _, p := range h.own() {
		if p.Name == "main" || strings.Contains(p.PkgPath, "/proto/") || strings.Contains(p.PkgPath, "/testkit") {
			continue
		}
		for _, name := range p.Types.Scope().Names() {
			o := p.Types.Scope().Lookup(name)
			if !o.Exported() {
				continue
			}
			found = append(found, h.unusedOf(p.PkgPath, o, used, interfaces)...)
		}
	}
	slices.Sort(found)
	return found
}

func (h *House) unusedOf(path string, o types.Object, used map[string]bool, interfaces map[string][]*types.Interface) []string {
	var found []string
	report := func(name string) {
		if full := h.short(path) + "." + name; !h.excepted("unused", full) {
			found = append(found, full+" is exported, and nothing outside of its package uses it")
		}
	}
	c, isConst := o.(*types.Const)
	enum := isConst && used["values of "+c.Type().String()] && strings.Contains(c.Type().String(), ".")
	if !used[key(o)] && !enum && !isError(o) {
		report(o.Name())
	}
	named, ok := o.Type().(*types.Named)
	if _, isType := o.(*types.TypeName); !ok || !isType {
		return found
	}
	for m := range named.Methods() {
		if m.Exported() && !used[key(m)] && !asked(named, m.Name(), interfaces) {
			report(o.Name() + "." + m.Name())
		}
	}
	return found
}

// isError tells whether an object is a type of errors, or one of them: callers may ask for it.
func isError(o types.Object) bool {
	e := types.Universe.Lookup("error").Type().Underlying().(*types.Interface)
	return types.Implements(o.Type(), e) || types.Implements(types.NewPointer(o.Type()), e)
}

// key names an object over several loads of the same package.
func key(o types.Object) string {
	name := o.Name()
	if f, ok := o.(*types.Func); ok {
		if r := f.Signature().Recv(); r != nil {
			t := r.Type()
			if p, ok := t.(*types.Pointer); ok {
				t = p.Elem()
			}
			if n, ok := t.(*types.Named); ok {
				name = n.Obj().Name() + "." + name
			}
		}
	}
	return o.Pkg().Path() + "." + name
}

// mention marks the named types that a type of another package is made of.
func mention(t types.Type, used map[string]bool, depth int) {
	if depth > 4 {
		return
	}
	switch t := t.(type) {
	case *types.Named:
		if t.Obj().Pkg() != nil {
			used[key(t.Obj())] = used[key(t.Obj())] || depth > 0
		}
		for a := range t.TypeArgs().Types() {
			mention(a, used, depth+1)
		}
	case *types.Pointer:
		mention(t.Elem(), used, depth+1)
	case *types.Slice:
		mention(t.Elem(), used, depth+1)
	case *types.Array:
		mention(t.Elem(), used, depth+1)
	case *types.Map:
		mention(t.Key(), used, depth+1)
		mention(t.Elem(), used, depth+1)
	case *types.Chan:
		mention(t.Elem(), used, depth+1)
	case *types.Signature:
		for v := range t.Params().Variables() {
			mention(v.Type(), used, depth+1)
		}
		for v := range t.Results().Variables() {
			mention(v.Type(), used, depth+1)
		}
	}
}

// collect finds the interfaces of a package and of all that it imports, by the methods that they ask for.
func collect(p *types.Package, into map[string][]*types.Interface, seen map[*types.Package]bool) {
	if p == nil || seen[p] {
		return
	}
	seen[p] = true
	for _, name := range p.Scope().Names() {
		if _, ok := p.Scope().Lookup(name).(*types.TypeName); !ok {
			continue
		}
		if i, ok := p.Scope().Lookup(name).Type().Underlying().(*types.Interface); ok {
			for m := range i.Methods() {
				into[m.Name()] = append(into[m.Name()], i)
			}
		}
	}
	for _, i := range p.Imports() {
		collect(i, into, seen)
	}
}

// asked tells whether some interface asks a type for a method. Names of parameters' packages differ from load to load, so
// names and counts of methods are compared, not their types.
func asked(t *types.Named, method string, interfaces map[string][]*types.Interface) bool {
	methods := types.NewMethodSet(types.NewPointer(t))
	for _, i := range interfaces[method] {
		all := true
		for m := range i.Methods() {
			all = all && methods.Lookup(m.Pkg(), m.Name()) != nil
		}
		if all {
			return true
		}
	}
	return slices.Contains([]string{"Error", "String", "Unwrap", "Is", "As", "GRPCStatus"}, method)
}
