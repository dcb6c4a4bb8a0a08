package sessions

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"headwater.example/attention"
	"headwater.example/internal/session"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
	"headwater.example/worker/internal/workertest"
)

func TestSessionCalls(t *testing.T) {
	now := time.Unix(1e9, 0)
	p := serveSessions(t, machine.Config{Now: func() time.Time { return now }, SessionTTL: time.Minute, MaxSessions: 2})
	ctx := t.Context()
	d := p.lane(t, 9)
	s := newSequence(3, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_I8))
	state := s.create(t, p, d)
	h := state.GetHolders()
	if len(h) != 1 || h[0].GetName() != "w1" || len(h[0].GetBoot()) != 16 || len(h[0].GetLayers()) != 1 || len(h[0].GetLayers()[0].GetGroups()) != 2 {
		t.Fatalf("held by %v", h)
	}
	want := proto.CloneOf(s.config)
	want.Layers[0].Scale = attention.DefaultScale(8)
	if !proto.Equal(state.GetConfig(), want) || state.GetName() != "test" || !state.GetCreated().AsTime().Equal(now) {
		t.Fatalf("made with %v", state)
	}
	m := s.draw(t, 0, 150, 0, false)
	r := d.ask(t, m.step, m.payload)
	s.apply(m)
	s.check(t, m, r)

	// Export gives back what was stored.
	layout := s.layout(t, 0)
	for g := range uint32(2) {
		stream, err := p.sessions.ExportSession(ctx, &headwaterv1.ExportSessionRequest{Session: s.id, Start: 3, Count: 140})
		if err != nil {
			t.Fatal(err)
		}
		var k, v, kScale, vScale []byte
		hash := s.hashes(t, 0, 3)[g]
		for {
			e, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if e.GetGroup() == g {
				k, v = append(k, e.GetK()...), append(v, e.GetV()...)
				kScale, vScale = append(kScale, e.GetKScale()...), append(vScale, e.GetVScale()...)
				if e.GetHashBefore() != hash || len(e.GetTokens()) != 0 {
					t.Fatalf("group %d from %d: hash %x, want %x; tokens %v", g, e.GetStart(), e.GetHashBefore(), hash, e.GetTokens())
				}
				hash = e.GetHashAfter()
			}
		}
		rows := workertest.Cut(s.rows[0][g], layout, 3, 143)
		if !bytes.Equal(k, rows.K) || !bytes.Equal(v, rows.V) || !bytes.Equal(kScale, workertest.LittleEndian(rows.KScale)) || !bytes.Equal(vScale, workertest.LittleEndian(rows.VScale)) {
			t.Fatalf("group %d: other rows came back", g)
		}
		if want := s.hashes(t, 0, 143)[g]; hash != want {
			t.Fatalf("group %d: hash %x at the end, want %x", g, hash, want)
		}
	}

	list, err := p.sessions.ListSessions(ctx, &headwaterv1.ListSessionsRequest{})
	if err != nil || len(list.GetSessions()) != 1 || list.GetSessions()[0].GetConfig() != nil || list.GetCaches()[0].GetWorker() != "w1" || list.GetCaches()[0].GetLanes() != 1 {
		t.Fatalf("got %v: %v", list, err)
	}
	if list, err = p.sessions.ListSessions(ctx, &headwaterv1.ListSessionsRequest{After: s.id}); err != nil || len(list.GetSessions()) != 0 {
		t.Fatalf("after the last: %v: %v", list, err)
	}
	if list, err = p.sessions.ListSessions(ctx, &headwaterv1.ListSessionsRequest{After: make([]byte, 16), Limit: 1}); err != nil || len(list.GetSessions()) != 1 {
		t.Fatalf("got %v: %v", list, err)
	}
	if _, err = p.sessions.ListSessions(ctx, &headwaterv1.ListSessionsRequest{After: []byte{1}}); status.Code(err) != codes.InvalidArgument {
		t.Fatalf("after an id of a byte: %v", err)
	}
	if list, err = p.sessions.ListSessions(ctx, &headwaterv1.ListSessionsRequest{CachesOnly: true}); err != nil || len(list.GetSessions()) != 0 || list.GetCaches()[0].GetUsedBytes() == 0 {
		t.Fatalf("got %v: %v", list, err)
	}
	if list, err = p.sessions.ListSessions(ctx, &headwaterv1.ListSessionsRequest{Sessions: [][]byte{make([]byte, 16), s.id}}); err != nil || len(list.GetSessions()) != 1 || list.GetSessions()[0].GetConfig() == nil {
		t.Fatalf("got %v: %v", list, err)
	}

	// Another lane takes the session over; the first drives it no more.
	other := p.lane(t, 10)
	taken, err := p.sessions.TakeSession(ctx, &headwaterv1.TakeSessionRequest{
		Session: s.id, Epoch: &headwaterv1.Epoch{Counter: 2, Lane: other.id[:]}, Expect: []*headwaterv1.LayerState{{Length: 150, Hashes: s.hashes(t, 0, 150)}},
	})
	if err != nil || taken.GetState().GetEpoch().GetCounter() != 2 {
		t.Fatalf("got %v: %v", taken, err)
	}
	m = s.draw(t, 0, 1, 1, false)
	if e := d.ask(t, m.step, m.payload).GetResult().GetError(); e.GetProblem() != session.StaleEpoch {
		t.Fatalf("got %v", e)
	}
	s.epoch = 2
	m = s.draw(t, 0, 1, 1, false)
	r = other.ask(t, m.step, m.payload)
	s.apply(m)
	s.check(t, m, r)

	// Errors of calls are typed.
	_, err = p.sessions.TakeSession(ctx, &headwaterv1.TakeSessionRequest{Session: s.id, Epoch: &headwaterv1.Epoch{Counter: 1, Lane: d.id[:]}})
	if e, ok := session.FromError(err); !ok || e.Reason() != session.StaleEpoch || e.Why.GetEpoch().GetCounter() != 2 {
		t.Fatalf("got %v", err)
	}
	for name, call := range map[string]func() error{
		"an id has 16 bytes": func() error {
			_, err := p.sessions.PinSession(ctx, &headwaterv1.PinSessionRequest{Session: []byte("x")})
			return err
		},
		"id of a lane has 16 bytes": func() error {
			_, err := p.sessions.CreateSession(ctx, &headwaterv1.CreateSessionRequest{Session: make([]byte, 16), Config: s.config, Held: s.held})
			return err
		},
		"0 layers": func() error {
			_, err := p.sessions.CreateSession(ctx, &headwaterv1.CreateSessionRequest{Session: make([]byte, 16), Epoch: &headwaterv1.Epoch{Counter: 1, Lane: d.id[:]}})
			return err
		},
		"layer 0: storage type 0": func() error {
			_, err := p.sessions.CreateSession(ctx, &headwaterv1.CreateSessionRequest{
				Session: make([]byte, 16), Epoch: &headwaterv1.Epoch{Counter: 1, Lane: d.id[:]}, Held: s.held,
				Config: &headwaterv1.SessionConfig{Layers: []*headwaterv1.SessionLayer{{NHeads: 1, NKvHeads: 1, HeadDim: 1, VDim: 1}}},
			})
			return err
		},
		"from 100 on": func() error {
			stream, err := p.sessions.ExportSession(ctx, &headwaterv1.ExportSessionRequest{Session: s.id, Start: 100, Count: 1000})
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		},
	} {
		err := call()
		if e, ok := session.FromError(err); !ok || e.Reason() != problemInvalid || !strings.Contains(e.Error(), name) || status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: got %v", name, err)
		}
	}

	// What goes unused ends at a tick after its time, but for what is pinned; a session more than are allowed is refused.
	unused := newSequence(4, s.config.Layers...)
	unused.create(t, p, d)
	if _, err := p.sessions.PinSession(ctx, &headwaterv1.PinSessionRequest{Session: s.id, Pinned: true}); err != nil {
		t.Fatal(err)
	}
	_, err = p.sessions.CreateSession(ctx, &headwaterv1.CreateSessionRequest{Session: make([]byte, 16), Epoch: &headwaterv1.Epoch{Counter: 1, Lane: d.id[:]}, Config: s.config, Held: s.held})
	if e, ok := session.FromError(err); !ok || e.Reason() != problemOver {
		t.Fatalf("got %v", err)
	}
	now = now.Add(time.Minute)
	ticks, expired := make(chan time.Time), make(chan struct{})
	expiring, stop := context.WithCancel(ctx)
	go func() { defer close(expired); p.m.Expire(expiring, ticks) }()
	ticks <- now
	ticks <- now // the first has been handled
	stop()
	await.One(t, expired, "the end of expiring")
	list, err = p.sessions.ListSessions(ctx, &headwaterv1.ListSessionsRequest{})
	if err != nil || len(list.GetSessions()) != 1 || !bytes.Equal(list.GetSessions()[0].GetSession(), s.id) || list.GetCaches()[0].GetEvicted() != 1 {
		t.Fatalf("got %v: %v", list, err)
	}
	d.end(t)
	other.end(t)
}
