package membership

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Static returns a view of a list that never changes and announces nothing. It copies members.
func Static(members []Member) View {
	return static{members: sorted(slices.Clone(members)), changed: make(chan struct{})}
}

type static struct {
	members []Member
	changed chan struct{}
}

func (s static) Members() []Member           { return slices.Clone(s.members) }
func (s static) Changed() <-chan struct{}    { return s.changed }
func (s static) Close(context.Context) error { return nil }

func sorted(members []Member) []Member {
	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return members
}

// ParseStatic reads workers, each of weight 1, from "name=host:port,name=host:port".
func ParseStatic(list string) ([]Member, error) {
	var members []Member
	seen := make(map[string]bool)
	for _, item := range strings.Split(list, ",") {
		name, address, ok := strings.Cut(strings.TrimSpace(item), "=")
		if !ok {
			return nil, fmt.Errorf("worker %q is not name=host:port", item)
		}
		if err := validateName(name); err != nil {
			return nil, fmt.Errorf("worker %q: %w", item, err)
		}
		if err := validateAddress(address); err != nil {
			return nil, fmt.Errorf("worker %s: %w", name, err)
		}
		if seen[name] {
			return nil, fmt.Errorf("worker %s is named twice", name)
		}
		seen[name] = true
		members = append(members, Member{Name: name, Role: RoleWorker, Address: address, Weight: 1})
	}
	return sorted(members), nil
}
