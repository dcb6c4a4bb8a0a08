package tenants

import (
	"fmt"
	"testing"
	"time"

	"headwater.example/internal/quota"
)

// TestWhatHasChanged: each tenant is named for what of it is different, and by nothing that is secret.
func TestWhatHasChanged(t *testing.T) {
	t.Parallel()
	var before, now Table
	add := func(to *Table, names ...string) {
		for _, name := range names {
			if _, err := to.Add(name, name == "ops", time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(&before, "ann", "bob", "cleo", "dan", "ops", "same")
	now.Tenants = append(now.Tenants, before.Tenants...)
	if err := now.index(); err != nil {
		t.Fatal(err)
	}
	if got := now.Since(&before); got.Any() {
		t.Errorf("a table differs from itself: %+v", got)
	}
	if err := now.Remove("bob"); err != nil {
		t.Fatal(err)
	}
	add(&now, "eve")
	if _, err := now.Rotate("cleo", true); err != nil {
		t.Fatal(err)
	}
	if err := now.Limit("dan", &quota.Limits{Sessions: 3}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := now.LimitOthers(&quota.Limits{Jobs: 3}); err != nil {
		t.Fatal(err)
	}
	now.Tenants[now.at("ops")].Admin = false
	if got, want := fmt.Sprintf("%q", now.Since(&before)), `{["eve"] ["bob"] ["cleo"] ["ops"] ["" "dan"]}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := fmt.Sprintf("%q", before.Since(nil).Added), `["ann" "bob" "cleo" "dan" "ops" "same"]`; got != want {
		t.Errorf("of none, %s, want %s", got, want)
	}
}
