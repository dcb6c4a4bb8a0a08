package kvcache

// CacheState is how full a store is. Sizes are in bytes.
type CacheState struct {
	// UsedBytes are the pages in use by sessions, prefixes and views, FreeBytes those that are reserved and in no use.
	UsedBytes, FreeBytes, BudgetBytes int64
	// RowBytes is reserved for the rows of pages, SessionBytes for sessions themselves.
	RowBytes, SessionBytes int64
	// PrefixBytes are pages that only prefixes hold.
	PrefixBytes int64
	// PrefixAsked are the positions asked for in prefixes, PrefixHits those of them that were there, and PrefixSavedBytes
	// their keys and values.
	PrefixAsked, PrefixHits, PrefixSavedBytes uint64
	// Evicted are the sessions that were dropped for want of room or use.
	Evicted  uint64
	Sessions int
	// RoomBytes can be taken for pages, and for their rows, before anything is dropped: those free, and what nobody has reserved
	// of the budget.
	RoomBytes int64
	// Pages are those of each size that was in use, ascending by size.
	Pages []PageState
}

// PageState is the pages of one size.
type PageState struct {
	Bytes int // of a page
	Used  int
	// Free is how many can be taken before anything is dropped: those reserved and in no use, and as many as the budget has
	// room for, which sizes share, and the rows that pages stand in.
	Free int
}

// Cache returns how full the store is.
func (st *Store) Cache() CacheState {
	st.mu.Lock()
	defer st.mu.Unlock()
	left := st.budget.Total() - st.budget.Used()
	return CacheState{
		UsedBytes: st.pages.used, FreeBytes: st.pages.idle, BudgetBytes: st.budget.Total(), RowBytes: st.rows, SessionBytes: st.heap, PrefixBytes: st.prefixes.bytes,
		PrefixAsked: st.counters.asked, PrefixHits: st.counters.hits, PrefixSavedBytes: st.counters.saved,
		Evicted: st.counters.evicted, Sessions: len(st.sessions),
		RoomBytes: st.pages.idle + left, Pages: st.pages.count(left),
	}
}
