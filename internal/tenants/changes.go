package tenants

import (
	"reflect"
	"slices"
)

// Changes are the names of tenants that differ in two tables: no token and no hash. "" is all that have no limits of their own.
type Changes struct {
	Added, Removed []string
	Tokens         []string // whose tokens are others
	Admin          []string // who is an admin now, or is no longer
	Limits         []string
}

// Any tells whether anything differs.
func (c Changes) Any() bool {
	return len(c.Added)+len(c.Removed)+len(c.Tokens)+len(c.Admin)+len(c.Limits) > 0
}

// Since says what is different from a table of before; nil is an empty one.
func (t *Table) Since(before *Table) (c Changes) {
	if before == nil {
		before = &Table{}
	}
	if !reflect.DeepEqual(t.Limits, before.Limits) {
		c.Limits = append(c.Limits, "")
	}
	for _, now := range t.Tenants {
		i := before.at(now.Name)
		if i < 0 {
			c.Added = append(c.Added, now.Name)
			continue
		}
		was := &before.Tenants[i]
		if !slices.Equal(now.Tokens, was.Tokens) {
			c.Tokens = append(c.Tokens, now.Name)
		}
		if now.Admin != was.Admin {
			c.Admin = append(c.Admin, now.Name)
		}
		if !reflect.DeepEqual(now.Limits, was.Limits) {
			c.Limits = append(c.Limits, now.Name)
		}
	}
	for _, was := range before.Tenants {
		if t.at(was.Name) < 0 {
			c.Removed = append(c.Removed, was.Name)
		}
	}
	return c
}
