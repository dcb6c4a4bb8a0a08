package rpc

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"headwater.example/internal/capability"
	"headwater.example/internal/certs"
)

// capabilityKey is the metadata by which a client shows a worker its capability.
const capabilityKey = "headwater-capability-bin"

// maxVerified bounds the capabilities that a worker remembers to have verified.
const maxVerified = 4096

// Grant makes a capability for a caller: whoever has the key, which is named by its SHA-256, is the caller to workers. Of a session, it
// is for that one alone. Life is how long it holds at most, 0 is capability.Life. The error is a status.
func (s *Security) Grant(who Caller, key, session []byte, life time.Duration) (signed []byte, holds time.Duration, err error) {
	c := capability.Capability{Admin: who.Holder.Role == certs.Admin}
	switch {
	case !s.secured():
		return nil, 0, status.Error(codes.FailedPrecondition, "this cluster has no certificates: workers let everyone in, and there are no capabilities")
	case len(who.Holder.Names) == 0 || !c.Admin && (who.Holder.Role != certs.Client || who.Unbound):
		return nil, 0, status.Error(codes.PermissionDenied, "a capability is for tenants and admins, and the caller has not shown who it is")
	case len(key) != len(c.Key):
		return nil, 0, status.Errorf(codes.InvalidArgument, "a key is named by the %d bytes of its SHA-256, not by %d", len(c.Key), len(key))
	case len(session) != 0 && len(session) != 16:
		return nil, 0, status.Errorf(codes.InvalidArgument, "a session's id has %d bytes, not 16", len(session))
	case life != 0 && (life < time.Second || life > capability.Life):
		return nil, 0, status.Errorf(codes.InvalidArgument, "a capability holds for 1s to %v, not for %v", capability.Life, life)
	}
	if len(session) > 0 {
		c.Session = (*[16]byte)(session)
	}
	own, now := s.current(), s.cfg.Now().Truncate(time.Second)
	c.Tenant, c.Key, c.Issued, c.Expires = who.Holder.Names[0], [sha256.Size]byte(key), now, now.Add(cmp.Or(life, capability.Life))
	if until := own.Expires(); c.Expires.After(until) {
		c.Expires = until
	}
	if signed, err = c.Sign(own); err != nil {
		return nil, 0, status.Errorf(codes.FailedPrecondition, "this coordinator makes no capabilities: %v", err)
	}
	return signed, c.Expires.Sub(now), nil
}

// capabilityOf returns the capability that a call shows, and whether it shows any.
func capabilityOf(header metadata.MD) (shown string, is bool) {
	said := header.Get(capabilityKey)
	if len(said) != 1 {
		return "", len(said) > 0 // nobody's
	}
	return said[0], true
}

// takesCapabilities tells whether the server lets in whom a coordinator has signed a capability for: a worker, which knows no tenants.
func (s *Security) takesCapabilities() bool { return s.current().Holder.Role == certs.Worker }

// grant is for whom a connection is, by the capabilities that its calls have shown, which are all of one kind.
type grant struct {
	holder  string
	session string
	chain   []*x509.Certificate // who has signed the newest
	until   time.Time           // when that one expires
}

// guardCapability is guard for a call that shows a capability.
func (s *Security) guardCapability(ctx context.Context, p *peer.Peer, c caller, call *tap.Info, shown string) (context.Context, error) {
	signed, refusal := s.verified(shown, c.key)
	if refusal != nil {
		s.refuse(p.Addr.String(), refusal.Reason, refusal.Why)
		return ctx, status.Error(codes.Unauthenticated, "the caller is refused: "+refusal.Why)
	}
	who := Caller{Tenant: signed.Tenant, Unbound: signed.Admin, Holder: signed.Holder(), Session: signed.Session, heldBy: s}
	if signed.Admin {
		who.Tenant = ""
	}
	if err := authorize(certs.Worker, who.Holder.Role, call.FullMethodName); err != nil {
		s.refuse(p.Addr.String(), certs.WrongRole, err.Error())
		return ctx, status.Error(codes.PermissionDenied, err.Error())
	}
	if err := s.extend(c.conn, signed); err != nil {
		return ctx, err
	}
	return As(ctx, who), nil
}

// verified returns a capability that holds now, for who has proven a key. What was verified once is not verified again.
func (s *Security) verified(shown string, key *[sha256.Size]byte) (*capability.Signed, *certs.Error) {
	trust, now, hash := s.current().Trust, s.cfg.Now(), sha256.Sum256([]byte(shown))
	s.mu.Lock()
	known := s.verifiedOnes[hash]
	s.mu.Unlock()
	if known != nil && key != nil && known.Key == *key {
		return known, known.Check(now)
	}
	signed, err := capability.Parse([]byte(shown))
	if err != nil {
		return nil, &certs.Error{Reason: certs.BadCapability, Why: "the capability is none: " + err.Error()}
	}
	if refusal := signed.Verify(trust, key, now); refusal != nil {
		return nil, refusal
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own.Trust == trust { // else it is verified anew
		s.remember(hash, signed, now)
	}
	return signed, nil
}

// remember keeps a verified capability. The lock is held.
func (s *Security) remember(hash [sha256.Size]byte, signed *capability.Signed, now time.Time) {
	if len(s.verifiedOnes) >= maxVerified {
		for h, other := range s.verifiedOnes {
			if other.Check(now) != nil {
				delete(s.verifiedOnes, h)
			}
		}
	}
	for h := range s.verifiedOnes {
		if len(s.verifiedOnes) < maxVerified {
			break
		}
		delete(s.verifiedOnes, h)
	}
	s.verifiedOnes[hash] = signed
}

// extend lets a connection stay until a capability expires that was shown on it. A later one for the same lets it stay for longer, and
// what runs on it goes on.
func (s *Security) extend(c *securedConn, signed *capability.Signed) error {
	if c == nil {
		return nil
	}
	next := &grant{holder: signed.Holder().String(), chain: signed.Chain, until: signed.Expires}
	if signed.Session != nil {
		next.session = string(signed.Session[:])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if was := c.grant; was != nil {
		if was.holder != next.holder || was.session != next.session {
			return status.Errorf(codes.PermissionDenied, "the connection is for %s, and the capability is for another, or for another session: use a connection for each", was.holder)
		}
		if !next.until.After(was.until) {
			return nil
		}
	}
	if err := s.settle(c); err != nil {
		return err
	}
	c.grant = next
	c.timer.Reset(c.left(next.until))
	return nil
}

// Restrict refuses a session that is not the one that the caller's capability is for. The error is a status.
func (c Caller) Restrict(session [16]byte) error {
	if c.Session == nil || *c.Session == session {
		return nil
	}
	why := fmt.Sprintf("the capability of %s is for session %x, and not for %x", c.Holder, *c.Session, session)
	if c.heldBy != nil {
		c.heldBy.refuse(c.Holder.String(), certs.WrongSession, why)
	}
	return status.Error(codes.PermissionDenied, why)
}
