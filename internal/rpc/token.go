package rpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/internal/certs"
	"headwater.example/internal/quota"
	"headwater.example/internal/tenants"
)

// A tenant's token is in the metadata of each call, as tools of other languages send it.
const (
	tokenKey = "authorization"
	bearer   = "Bearer "
)

// maxProven bounds the connections whose clients have a token, or a capability, and no certificate.
const maxProven = 4096

// Sign makes the calls of a connection to a coordinator, or to a relay, show the client's token, if it has one. Those to a worker show
// the capability that it has for it: workers never see a token.
func (s *Security) Sign(to Expectation) grpc.DialOption {
	switch {
	case s == nil || s.cfg.Token == nil:
		return grpc.EmptyDialOption{}
	case to.Worker != "":
		return grpc.WithPerRPCCredentials(capabilityCredentials{s.wallet})
	}
	return grpc.WithPerRPCCredentials(tokenCredentials{s.cfg.Token})
}

type tokenCredentials struct{ token func() (string, error) }

func (t tokenCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := t.token()
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return map[string]string{tokenKey: bearer + token}, nil
}

func (tokenCredentials) RequireTransportSecurity() bool { return true }

// takesTokens tells whether the server knows tenants by their tokens.
func (s *Security) takesTokens() bool {
	s.current()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tenants != nil
}

// Limits returns what tenants may have of the cluster, by name, and what each other tenant may: as the file of tenants says now. The map
// is not to be changed.
func (s *Security) Limits() (named map[string]quota.Limits, others quota.Limits) {
	if !s.secured() {
		return nil, others
	}
	s.current()
	s.mu.Lock()
	table := s.tenants
	s.mu.Unlock()
	if table == nil {
		return nil, others
	}
	if table.Limits != nil {
		others = *table.Limits
	}
	named = map[string]quota.Limits{}
	for _, t := range table.Tenants { // a table does not change once it was read
		if !t.Admin && t.Limits != nil {
			named[t.Name] = *t.Limits
		}
	}
	return named, others
}

// tokenOf returns the token that a call shows, and whether it shows any.
func tokenOf(header metadata.MD) (token string, shown bool) {
	said := header.Get(tokenKey)
	if len(said) == 0 {
		return "", false
	}
	if len(said) > 1 || len(said[0]) <= len(bearer) || said[0][:len(bearer)] != bearer {
		return "", true // nobody's
	}
	return said[0][len(bearer):], true
}

// prove says whose a token is, and lets its connection stay.
func (s *Security) prove(c caller, peer, token string) (tenants.Tenant, error) {
	hash := tenants.Hash(token)
	s.current()
	s.mu.Lock()
	if s.tenants == nil {
		s.mu.Unlock()
		return tenants.Tenant{}, s.untrue(peer, "this server takes no tokens: it was started without --tenants, or it is no coordinator")
	}
	found, ok := s.tenants.Find(hash)
	if !ok {
		s.mu.Unlock()
		return found, s.untrue(peer, "its token is no tenant's: it is wrong, or it was rotated or removed")
	}
	defer s.mu.Unlock()
	if c.conn == nil {
		return found, nil
	}
	if c.conn.stranger {
		if err := s.settle(c.conn); err != nil {
			return found, err
		}
		c.conn.timer.Reset(c.conn.left(never))
	}
	if c.conn.tokens == nil {
		c.conn.tokens = map[string]struct{}{}
	}
	c.conn.tokens[hash] = struct{}{}
	return found, nil
}

// settle makes a connection of a stranger one of somebody who is known. The lock is held.
func (s *Security) settle(c *securedConn) error {
	if !c.stranger {
		return nil
	}
	if s.proven >= maxProven {
		return Full("%d connections have clients with tokens or capabilities, the most that are allowed", s.proven)
	}
	c.stranger = false
	s.crowd--
	s.proven++
	s.live[c] = struct{}{}
	return nil
}

// untrue refuses a call for its token.
func (s *Security) untrue(peer, why string) error {
	s.refuse(peer, certs.BadToken, why)
	return status.Error(codes.Unauthenticated, "the caller is refused: "+why)
}
