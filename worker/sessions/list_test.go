package sessions

import (
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
)

// TestListsAreBounded names one session of many layers many times, and asks for more than an answer may hold.
func TestListsAreBounded(t *testing.T) {
	p := serveSessions(t, machine.Config{})
	d := p.lane(t, 1)
	// A state has its session's options: 4 KiB of sinks a layer, 400 KiB a session.
	layer := simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32)
	layer.NHeads, layer.Sinks = 1024, make([]float32, 1024)
	wide := slices.Repeat([]*headwaterv1.SessionLayer{layer}, 100)
	const sessions = 45
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
	for i := range uint64(sessions - 1) {
		other := newSequence(i+2, wide...)
		other.create(t, p, d)
		ids = append(ids, other.id)
	}
	if _, err := p.sessions.ListSessions(t.Context(), &headwaterv1.ListSessionsRequest{Sessions: ids}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "fewer") {
		t.Errorf("got %v", err)
	}
	// Pages are whole, and together all.
	var after []byte
	n := 0
	for {
		page, err := p.sessions.ListSessions(t.Context(), &headwaterv1.ListSessionsRequest{After: after, Limit: 7})
		if err != nil {
			t.Fatal(err)
		}
		n += len(page.GetSessions())
		if len(page.GetSessions()) < 7 {
			break
		}
		after = page.GetSessions()[6].GetSession()
	}
	if n != sessions {
		t.Errorf("pages have %d sessions of %d", n, sessions)
	}
	gone, cancel := context.WithCancel(rpc.As(t.Context(), rpc.Anyone))
	cancel()
	if _, err := p.service.ListSessions(gone, &headwaterv1.ListSessionsRequest{}); status.Code(err) != codes.Canceled {
		t.Errorf("for a caller that is gone: %v", err)
	}
	d.end(t)
}

// TestAWorkerSaysWhereTheOthersAre: who asks for them is told the names and addresses of those that the session's epoch names, as the
// membership has them, and of nobody else.
func TestAWorkerSaysWhereTheOthersAre(t *testing.T) {
	p := serveSessions(t, machine.Config{})
	d := p.lane(t, 1)
	s := newSequence(1, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32))
	s.create(t, p, d)
	if _, err := p.sessions.TakeSession(t.Context(), &headwaterv1.TakeSessionRequest{
		Session: s.id, Epoch: &headwaterv1.Epoch{Counter: s.epoch + 1, Lane: d.id[:], Holders: 4, Members: []string{"w1", "w2", "w3", "c1"}},
	}); err != nil {
		t.Fatal(err)
	}
	others := func(req *headwaterv1.ListSessionsRequest) (told string) {
		t.Helper()
		list, err := p.sessions.ListSessions(t.Context(), req)
		if err != nil || len(list.GetSessions()) != 1 {
			t.Fatalf("%d sessions: %v", len(list.GetSessions()), err)
		}
		for _, o := range list.GetSessions()[0].GetOthers() {
			told += o.GetName() + " at " + o.GetAddress() + " "
		}
		return told
	}
	asked := &headwaterv1.ListSessionsRequest{Sessions: [][]byte{s.id}, HoldersOnly: true, Others: true}
	if told := others(asked); told != "" {
		t.Errorf("a worker that knows nobody says %q", told)
	}
	p.service.members = func() []membership.Member {
		return []membership.Member{
			{Name: "c1", Role: membership.RoleCoordinator, Address: "c1:1"},
			{Name: "w1", Role: membership.RoleWorker, Address: "w1:1"},
			{Name: "w2", Role: membership.RoleWorker, Address: "w2:1"},
			{Name: "w4", Role: membership.RoleWorker, Address: "w4:1"},
		}
	}
	if told := others(asked); told != "w2 at w2:1 " {
		t.Errorf("it says %q", told)
	}
	for _, req := range []*headwaterv1.ListSessionsRequest{{Sessions: [][]byte{s.id}, HoldersOnly: true}, {Sessions: [][]byte{s.id}, Others: true}, {Others: true}} {
		if told := others(req); told != "" {
			t.Errorf("asked %v it says %q", req, told)
		}
	}
	d.end(t)
}
