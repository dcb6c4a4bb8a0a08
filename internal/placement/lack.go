package placement

import (
	"container/heap"
	"slices"
)

// byRoom is a heap of workers, the one with the most room first.
type byRoom []*Room

func (h byRoom) Len() int { return len(h) }
func (h byRoom) Less(i, j int) bool {
	return h[i].Free > h[j].Free || h[i].Free == h[j].Free && h[i].Name < h[j].Name
}
func (h byRoom) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *byRoom) Push(any)     { panic("placement: no worker comes while one is chosen") }
func (h *byRoom) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// Lacking returns who is to hold more of a session, with all groups that it is to hold then, by layer. Held has the names of those
// that hold each group of each layer, groupBytes how many bytes one group of each layer takes, and each group is to be held so many
// times, or as often as there are workers. Rooms are the workers that may be given more. The one with the most room comes first;
// before any of them one in a zone where nobody has what it is given. A part of each worker's memory stays free, unless the session
// must move. The name is empty if nothing lacks, or if no worker has the room.
func Lacking(held [][][]string, groupBytes []uint64, times int, rooms []Room, must bool) (worker string, groups [][]int) {
	zones := make(map[string]string, len(rooms))
	for _, r := range rooms {
		zones[r.Name] = r.Zone
	}
	times = min(times, len(rooms))
	for _, apart := range []bool{true, false} {
		order := make(byRoom, len(rooms))
		for i := range rooms {
			order[i] = &rooms[i]
		}
		heap.Init(&order)
		for len(order) > 0 {
			r := heap.Pop(&order).(*Room)
			groups, more := r.lacks(held, times, func(by []string) bool {
				return apart && slices.ContainsFunc(by, func(name string) bool { return zones[name] == r.Zone })
			})
			bytes := uint64(0)
			for l := range groups {
				bytes += uint64(len(groups[l])) * groupBytes[l]
			}
			free := r.Free
			if !must {
				free -= min(free, r.Budget/Headroom)
			}
			if more && free >= bytes {
				return r.Name, groups
			}
		}
	}
	return "", nil
}

// lacks returns what a worker is to hold by layer: what it has, and what has too few holders and none that are too near. More is
// false if that is what it has.
func (r *Room) lacks(held [][][]string, times int, near func(by []string) bool) (groups [][]int, more bool) {
	groups = make([][]int, len(held))
	for l := range held {
		for g, by := range held[l] {
			has := slices.Contains(by, r.Name)
			lacks := !has && len(by) < times && !near(by)
			if more = more || lacks; has || lacks {
				groups[l] = append(groups[l], g)
			}
		}
	}
	return groups, more
}
