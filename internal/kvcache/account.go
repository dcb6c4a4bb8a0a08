package kvcache

import (
	"math"
	"strings"

	"headwater.example/internal/quota"
)

// account is what a tenant has in a store, with all of its parts. Store.mu guards it.
type account struct {
	tenant   string
	shapes   int     // that are counted to it
	held     int64   // sessions
	sessions float64 // of these, each as one part of as many as it has holders
	bytes    int64   // of pages, those of prefixes as well
	kept     int64   // of rows that prefixes alone keep, with their pages
}

// tenantOf is the tenant of which a session's is a part.
func tenantOf(name string) string {
	tenant, _, _ := strings.Cut(name, "/")
	return tenant
}

// openAccountLocked counts a shape to its tenant, from its first session on.
func (st *Store) openAccountLocked(sh *shape) {
	if sh.account != nil {
		return
	}
	tenant := tenantOf(sh.config.Tenant)
	a := st.accounts[tenant]
	if a == nil {
		a = &account{tenant: tenant}
		st.accounts[tenant] = a
	}
	a.shapes++
	sh.account = a
}

// closeAccountLocked is for a shape that nothing uses any more.
func (st *Store) closeAccountLocked(sh *shape) {
	if a := sh.account; a != nil {
		if a.shapes--; a.shapes == 0 {
			delete(st.accounts, a.tenant)
		}
		sh.account = nil
	}
}

// partLocked counts a session as one part of as many as its epoch has holders.
func (s *session) partLocked(e Epoch) {
	part := 1 / float64(max(e.Holders, 1))
	s.shape.account.sessions += part - s.part
	s.part = part
}

// Usage is what a tenant has in the store.
type Usage struct {
	Tenant string
	quota.Usage
}

// Usage returns what each tenant has that has anything. Growth and steps are not the store's to know.
func (st *Store) Usage() []Usage {
	st.mu.Lock()
	defer st.mu.Unlock()
	all := make([]Usage, 0, len(st.accounts))
	for _, a := range st.accounts {
		all = append(all, Usage{a.tenant, quota.Usage{Held: a.held, Sessions: a.sessions, Bytes: a.bytes}})
	}
	return all
}

// maySessionLocked refuses one session more than its tenant may have here.
func (st *Store) maySessionLocked(s *session) *Error {
	a := st.accounts[tenantOf(s.shape.config.Tenant)]
	var held int64
	if a != nil {
		held = a.held
	}
	return over(st.config.Quotas.Session(tenantOf(s.shape.config.Tenant), held))
}

// mayTakeLocked refuses more bytes of pages than a tenant may have here. Before that the tenant's own prefixes make way.
func (st *Store) mayTakeLocked(a *account, need int64) *Error {
	for {
		err := over(st.config.Quotas.Take(a.tenant, a.bytes, need))
		if err == nil {
			return nil
		}
		r := st.prefixes.remove(&giving{by: claimant{tenant: a.tenant}, part: math.MaxInt64, has: bytesOf})
		if r == nil {
			return err
		}
		st.releaseLocked(r, nil, 0)
	}
}

// over is a quota as the reason of a refusal, nil for none.
func over(e *quota.Exceeded) *Error {
	if e == nil {
		return nil
	}
	err := refuse(OverBudget, "%v", e)
	err.Quota = e
	return err
}
