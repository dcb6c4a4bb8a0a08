package jobs

import (
	"testing"

	"headwater.example/internal/certs"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/rpc"
)

// TestARunIsItsTenants: memory is shared without clearing within one tenant, or where there are none, and nowhere else.
func TestARunIsItsTenants(t *testing.T) {
	t.Parallel()
	coordinator := certs.Holder{Role: certs.Coordinator, Names: []string{"c1"}}
	for _, k := range []struct {
		by   rpc.Caller
		want kvcache.Owner
	}{
		{rpc.Caller{Tenant: "ann", Holder: coordinator}, kvcache.OwnerOf("ann")},
		{rpc.Anyone, kvcache.OwnerOf("")},
		{rpc.Caller{Unbound: true, Holder: coordinator}, kvcache.Nobody},
		{rpc.Caller{}, kvcache.Nobody},
	} {
		if got := ownerOf(k.by); got != k.want {
			t.Errorf("a run by %+v is %d's, not %d's", k.by, got, k.want)
		}
	}
}
