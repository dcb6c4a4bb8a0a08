package sessions

import (
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
)

// TestListsAreBounded names one session of many layers many times, and asks for more than an answer may hold.
func TestListsAreBounded(t *testing.T) {
	p := serveSessions(t, machine.Config{})
	d := p.lane(t, 1)
	wide := slices.Repeat([]*headwaterv1.SessionLayer{simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32)}, 1000)
	s := newSequence(1, wide...)
	s.create(t, p, d)
	list, err := p.sessions.ListSessions(t.Context(), &headwaterv1.ListSessionsRequest{Sessions: slices.Repeat([][]byte{s.id}, 20_000)})
	if err != nil || len(list.GetSessions()) != 1 {
		t.Fatalf("%d sessions: %v", len(list.GetSessions()), err)
	}
	if _, err := p.sessions.ListSessions(t.Context(), &headwaterv1.ListSessionsRequest{Sessions: slices.Repeat([][]byte{s.id}, maxListed+1)}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("got %v", err)
	}
	var ids [][]byte
	for i := range uint64(450) {
		other := newSequence(i+2, wide...)
		other.create(t, p, d)
		ids = append(ids, other.id)
	}
	for name, m := range map[string]*headwaterv1.ListSessionsRequest{"named": {Sessions: ids}} {
		if _, err := p.sessions.ListSessions(t.Context(), m); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "fewer") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// Pages are whole, and together all.
	var after []byte
	n := 0
	for {
		page, err := p.sessions.ListSessions(t.Context(), &headwaterv1.ListSessionsRequest{After: after, Limit: 30})
		if err != nil {
			t.Fatal(err)
		}
		n += len(page.GetSessions())
		if len(page.GetSessions()) < 30 {
			break
		}
		after = page.GetSessions()[29].GetSession()
	}
	if n != 451 {
		t.Errorf("pages have %d sessions of 451", n)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.service.ListSessions(gone, &headwaterv1.ListSessionsRequest{}); status.Code(err) != codes.Canceled {
		t.Errorf("for a caller that is gone: %v", err)
	}
	d.end(t)
}
