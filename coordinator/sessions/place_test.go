package sessions

import (
	"slices"
	"testing"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Sessions go together where they may find each other's prefix, and only there.
func TestPlaceKeyIsThePrefix(t *testing.T) {
	request := func(id byte, tenant, model string, tokens ...uint32) uint64 {
		return placeKey(&headwaterv1.CreateSessionRequest{
			Session: []byte{15: id}, Config: &headwaterv1.SessionConfig{Tenant: tenant, Model: []byte(model)}, Tokens: tokens,
		})
	}
	page := make([]uint32, 64)
	longer := append(slices.Clone(page), 1, 2)
	other := append(slices.Clone(page), 3)
	same := request(1, "a", "b", longer...)
	if request(2, "a", "b", other...) != same {
		t.Error("two sessions that begin with the same page are drawn apart")
	}
	other[63] = 9
	for name, key := range map[string]uint64{
		"another page": request(1, "a", "b", other...), "tenant": request(1, "ab", "", longer...), "model": request(1, "a", "c", longer...),
		"no whole page": request(1, "a", "b", page...),
	} {
		if key == same {
			t.Errorf("%s: drawn as another session is", name)
		}
	}
	if request(1, "a", "b", page...) == request(2, "a", "b", page...) {
		t.Error("sessions without a prefix are drawn alike")
	}
}
