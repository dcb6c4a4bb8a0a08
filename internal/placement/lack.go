package placement

import (
	"cmp"
	"slices"
)

// Lacking returns who is to hold more of a session, with all groups that it is to hold then, by layer. Held has the names of those
// that hold each group of each layer, groupBytes how many bytes one group of each layer takes, and each group is to be held so many
// times, or as often as there are workers. Rooms are the workers that may be given more. The one with the most room comes first;
// before any of them one in a zone where nobody has what it is given. A part of each worker's memory stays free, unless the session
// must move. The name is empty if nothing lacks, or if no worker has the room.
func Lacking(held [][][]string, groupBytes []uint64, times int, rooms []Room, must bool) (worker string, groups [][]int) {
	rooms = slices.SortedFunc(slices.Values(rooms), func(a, b Room) int {
		return cmp.Or(cmp.Compare(b.Free, a.Free), cmp.Compare(a.Name, b.Name))
	})
	zones := make(map[string]string, len(rooms))
	for _, r := range rooms {
		zones[r.Name] = r.Zone
	}
	times = min(times, len(rooms))
	for _, apart := range []bool{true, false} {
		for _, r := range rooms {
			groups, more := make([][]int, len(held)), false
			bytes := uint64(0)
			for l := range held {
				for g, by := range held[l] {
					has := slices.Contains(by, r.Name)
					lacks := !has && len(by) < times
					if apart && slices.ContainsFunc(by, func(name string) bool { return zones[name] == r.Zone }) {
						lacks = false
					}
					if more = more || lacks; has || lacks {
						groups[l] = append(groups[l], g)
					}
				}
				bytes += uint64(len(groups[l])) * groupBytes[l]
			}
			free := r.Free
			if !must {
				free -= min(free, r.Budget/headroom)
			}
			if more && free >= bytes {
				return r.Name, groups
			}
		}
	}
	return "", nil
}
