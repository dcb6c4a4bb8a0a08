package quota

import (
	"sync"
	"sync/atomic"
	"time"
)

// Terms are what a worker was told of a tenant: its limits and what it has, over the whole cluster, and how much of it is this worker's
// to give.
type Terms struct {
	Share Share
	Limit Limits
	Used  Usage
}

// Book is a worker's: what each tenant may have there, and what it was asked for. A nil Book, and one that was told nothing, bounds
// nothing. Safe for concurrent use.
type Book struct {
	now func() time.Time

	told atomic.Bool // whether anything is bounded

	mu      sync.Mutex // guards what follows
	named   map[string]Terms
	others  Terms // of tenants that are not named
	tenants map[string]*asked
}

// asked is what a tenant has asked for.
type asked struct {
	bucket  bucket
	steps   float64
	refused [len(order)]uint64
}

// order gives the kinds that workers refuse for their places.
var order = [...]Kind{Sessions, Bytes, Steps}

// NewBook makes an empty book.
func NewBook(now func() time.Time) *Book {
	if now == nil {
		now = time.Now
	}
	return &Book{now: now, named: map[string]Terms{}, others: Terms{Share: NoShare}, tenants: map[string]*asked{}}
}

// Tell replaces what was told before.
func (b *Book) Tell(named map[string]Terms, others Terms) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.named, b.others = named, others
	b.told.Store(len(named) > 0 || others.Limit != Limits{})
}

// terms are a tenant's. The lock is held.
func (b *Book) terms(tenant string) Terms {
	if t, ok := b.named[tenant]; ok {
		return t
	}
	return b.others
}

// of is what a tenant has asked for. The lock is held.
func (b *Book) of(tenant string) *asked {
	a := b.tenants[tenant]
	if a == nil {
		a = &asked{}
		b.tenants[tenant] = a
	}
	return a
}

// refuse counts a refusal. The lock is held.
func (b *Book) refuse(tenant string, kind int, limit, used float64, after time.Duration) *Exceeded {
	b.of(tenant).refused[kind]++
	return &Exceeded{Tenant: tenant, Kind: order[kind], Limit: limit, Used: used, RetryAfter: after}
}

// Session says whether a tenant of which so many sessions are held may have one more.
func (b *Book) Session(tenant string, held int64) *Exceeded {
	if b == nil || !b.told.Load() {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.terms(tenant)
	if t.Share.Held < 0 || held < t.Share.Held {
		return nil
	}
	return b.refuse(tenant, 0, float64(t.Limit.Sessions), max(t.Used.Sessions, float64(held)), Every)
}

// Take says whether a tenant that has so many bytes may take more.
func (b *Book) Take(tenant string, has, more int64) *Exceeded {
	if b == nil || !b.told.Load() || more <= 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.terms(tenant)
	if t.Share.Bytes < 0 || has+more <= t.Share.Bytes {
		return nil
	}
	return b.refuse(tenant, 1, float64(t.Limit.Bytes), max(float64(t.Used.Bytes), float64(has)), Every)
}

// Step says whether a tenant may make a step now, of which the worker answers a part, at most 1.
func (b *Book) Step(tenant string, part float64) *Exceeded {
	if b == nil || !b.told.Load() {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t, a := b.terms(tenant), b.of(tenant)
	a.steps += part
	if t.Share.Steps < 0 {
		return nil
	}
	wait := a.bucket.Take(b.now(), t.Share.Steps, part)
	if wait == 0 {
		return nil
	}
	return b.refuse(tenant, 2, t.Limit.Steps, max(t.Used.Steps, t.Share.Steps), wait)
}

// Asked is what a tenant has asked a worker for since the worker started: steps, each as the part that it answers, and refusals by kind.
type Asked struct {
	Tenant  string
	Steps   float64
	Refused map[Kind]uint64
}

// Asked returns what tenants have asked for.
func (b *Book) Asked() []Asked {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []Asked
	for tenant, a := range b.tenants {
		one := Asked{Tenant: tenant, Steps: a.steps, Refused: map[Kind]uint64{}}
		for i, kind := range order {
			if a.refused[i] > 0 {
				one.Refused[kind] = a.refused[i]
			}
		}
		all = append(all, one)
	}
	return all
}
