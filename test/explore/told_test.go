package explore

import (
	"fmt"
	"hash/maphash"
	"slices"

	"google.golang.org/protobuf/proto"

	"headwater.example/internal/testkit/stillnet"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// told is what a worker says of the sessions that it holds.
type told struct {
	hash     uint64
	sessions []*headwaterv1.SessionState
}

// ask asks a worker, of which nothing is under way.
func (p *process) ask(net *stillnet.Net) error {
	ctx, cancel := bounded()
	defer cancel()
	service := headwaterv1.NewSessionServiceClient(net.Peek(p.address))
	all, err := service.ListSessions(ctx, &headwaterv1.ListSessionsRequest{})
	if err != nil {
		return fmt.Errorf("look at %s: %w", p.name, err)
	}
	p.told = told{}
	var h maphash.Hash
	h.SetSeed(seed)
	if len(all.GetSessions()) > 0 {
		req := &headwaterv1.ListSessionsRequest{}
		for _, s := range all.GetSessions() {
			req.Sessions = append(req.Sessions, s.GetSession())
		}
		whole, err := service.ListSessions(ctx, req)
		if err != nil {
			return fmt.Errorf("look at %s: %w", p.name, err)
		}
		p.told.sessions = whole.GetSessions()
	}
	for _, s := range p.told.sessions {
		s.Created, s.Used, s.Config = nil, nil, nil
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
		if err != nil {
			return err
		}
		_, _ = h.Write(b)
	}
	p.told.hash = h.Sum64()
	return nil
}

// has returns what the worker holds of a session, or nil.
func (t *told) has(id [16]byte) *headwaterv1.SessionState {
	for _, s := range t.sessions {
		if [16]byte(s.GetSession()) == id {
			return s
		}
	}
	return nil
}

// holds reports whether a holder's state of a session is a content, or begins with it.
func holds(s *headwaterv1.SessionState, content string) bool {
	for _, l := range s.GetLayers() {
		h := hashesOf(content)
		var want []uint64
		for _, held := range s.GetHolders()[0].GetLayers() {
			for _, g := range held.GetGroups() {
				want = append(want, h[g])
			}
		}
		if l.GetLength() != uint64(len(content)/tokenLen) || !slices.Equal(l.GetHashes(), want) {
			return false
		}
	}
	return true
}
