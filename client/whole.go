package client

import (
	"context"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// askedAtOnce bounds the sessions of one call that returns their layers.
const askedAtOnce = 64

// WholeSessions reports for each listed session whether the workers that answer have all groups of all of its layers. A
// session that has ended since is not in the map. Arithmetics, which a list leaves out, are filled in.
func (c *Client) WholeSessions(ctx context.Context, listed []SessionState) (map[SessionID]bool, error) {
	found := make(map[SessionID]bool, len(listed))
	for len(listed) > 0 {
		n := min(len(listed), askedAtOnce)
		req, named := &headwaterv1.ListSessionsRequest{}, map[SessionID]*SessionState{}
		for i := range listed[:n] {
			s := &listed[i]
			req.Sessions = append(req.Sessions, s.ID[:])
			named[s.ID] = s
		}
		listed = listed[n:]
		resp, err := c.conns.List(ctx, c.address, c.address, req)
		if err != nil {
			return nil, c.sessionError("ask for the holders of sessions", SessionID{}, err)
		}
		for _, s := range resp.GetSessions() {
			if id := s.GetSession(); len(id) == len(SessionID{}) {
				found[SessionID(id)] = whole(s)
				if one := named[SessionID(id)]; one != nil {
					one.Arithmetics = readArithmetics(s.GetConfig())
				}
			}
		}
	}
	return found, nil
}
