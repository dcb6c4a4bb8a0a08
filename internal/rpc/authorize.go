package rpc

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"headwater.example/internal/certs"
)

// allowed says which roles may use which services and methods of a server of a role; of several that fit, the longest holds. Health
// is for everyone with a certificate.
var allowed = map[certs.Role]map[string][]certs.Role{
	certs.Coordinator: {
		coordinatorService:        {certs.Client, certs.Relay, certs.Coordinator, certs.Admin},
		sessionService:            {certs.Client, certs.Relay, certs.Coordinator, certs.Admin},
		clusterService:            {certs.Admin, certs.Coordinator},
		clusterService + "Copies": {certs.Client, certs.Relay, certs.Coordinator, certs.Admin, certs.Worker},
		// Of workers itself alone, as the coordinator sees to.
		clusterService + "DrainWorker":     {certs.Admin, certs.Coordinator, certs.Worker},
		clusterService + "GrantCapability": {certs.Client, certs.Admin},
		reflectionService:                  {certs.Admin},
	},
	certs.Worker: {
		workerService:     {certs.Coordinator},
		fillService:       {certs.Coordinator},
		sessionService:    {certs.Client, certs.Relay, certs.Coordinator, certs.Worker, certs.Admin},
		reflectionService: {certs.Admin},
	},
	certs.Relay: {
		sessionService:    {certs.Client, certs.Admin},
		reflectionService: {certs.Admin},
	},
}

// authorize refuses a caller that may not use a method of a server of a role.
func authorize(own, role certs.Role, method string) error {
	at := ""
	for service := range allowed[own] {
		if strings.HasPrefix(method, service) && len(service) > len(at) {
			at = service
		}
	}
	roles := allowed[own][at]
	if at == "" || slices.Contains(roles, role) {
		return nil
	}
	words := make([]string, len(roles))
	for i, r := range roles {
		words[i] = string(r) + "s"
	}
	return fmt.Errorf("%s of a %s is for %s, and the caller's certificate is that of a %s", strings.Trim(at, "/"), own, strings.Join(words, ", "), role)
}

// begins notes that a call has come on a connection, and refuses one with too much metadata.
func (s *Security) begins(ctx context.Context, call *tap.Info) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.Unauthenticated, "the call has no peer")
	}
	if counted, ok := p.AuthInfo.(connInfo); ok {
		counted.conn.called.Store(true)
	} else if c := callerOf(p); c.conn != nil {
		c.conn.called.Store(true)
	}
	n := len(call.FullMethodName)
	for name, values := range call.Header {
		for _, value := range values {
			n += len(name) + len(value) + headerBytes
		}
	}
	if n <= maxHeaderBytes {
		return nil
	}
	err := status.Errorf(codes.ResourceExhausted, "the call has %d bytes of metadata, and at most %d are allowed", n, maxHeaderBytes)
	if s != nil {
		s.refuse(p.Addr.String(), certs.Metadata, err.Error())
	}
	return err
}

// headerBytes is what a header counts beside its name and value (RFC 9113, section 6.5.2).
const headerBytes = 32

// guard refuses calls of strangers, and those that a caller's role may not make, before a byte of them is read.
func (s *Security) guard(ctx context.Context, call *tap.Info) (context.Context, error) {
	if err := s.begins(ctx, call); err != nil {
		return ctx, err
	}
	p, _ := peer.FromContext(ctx)
	own := s.current().Holder.Role
	c := callerOf(p)
	token, shown := tokenOf(call.Header)
	granted, is := capabilityOf(call.Header)
	switch {
	case is && own == certs.Worker && (c.refusal != nil && c.refusal.Reason == certs.NoCertificate || c.holder.Role == certs.Client):
		return s.guardCapability(ctx, p, c, call, granted)
	case shown && (c.refusal != nil && c.refusal.Reason == certs.NoCertificate || c.holder.Role == certs.Client):
		return s.guardToken(ctx, p, c, call, token)
	case c.refusal != nil:
		if (c.key != nil || s.takesTokens()) && c.refusal.Reason == certs.NoCertificate {
			s.refuse(p.Addr.String(), c.refusal.Reason, c.refusal.Why) // not before: it might have shown a token or a capability
		}
		return ctx, status.Errorf(codes.Unauthenticated, "the %s refuses this client: %s", own, c.refusal.Why)
	case c.holder.Role == "": // over a Unix socket
		return As(ctx, Anyone), nil
	}
	if err := authorize(own, c.holder.Role, call.FullMethodName); err != nil {
		s.refuse(p.Addr.String(), certs.WrongRole, err.Error())
		return ctx, status.Error(codes.PermissionDenied, err.Error())
	}
	who, err := callerFor(c.holder, call.Header)
	if err != nil {
		return ctx, status.Error(codes.InvalidArgument, err.Error())
	}
	return As(ctx, who), nil
}

// guardToken is guard for a call that shows a token, which says more than a client's certificate.
func (s *Security) guardToken(ctx context.Context, p *peer.Peer, c caller, call *tap.Info, token string) (context.Context, error) {
	tenant, err := s.prove(c, p.Addr.String(), token)
	if err != nil {
		return ctx, err
	}
	who := Caller{Tenant: tenant.Name, Unbound: tenant.Admin, Holder: certs.Holder{Role: certs.Client, Names: []string{tenant.Name}}}
	if tenant.Admin {
		who.Tenant, who.Holder.Role = "", certs.Admin
	}
	if err := authorize(s.current().Holder.Role, who.Holder.Role, call.FullMethodName); err != nil {
		s.refuse(p.Addr.String(), certs.WrongRole, err.Error())
		return ctx, status.Error(codes.PermissionDenied, err.Error())
	}
	return As(ctx, who), nil
}

// callerOf is what is known of the connection of a call.
func callerOf(p *peer.Peer) caller {
	info := p.AuthInfo
	if counted, ok := info.(connInfo); ok {
		info = counted.AuthInfo
	}
	c, _ := info.(caller)
	return c
}

// serverOptions are the options of a server by its security. One without certificates says of each call that anyone may make it.
func (s *Security) serverOptions() []grpc.ServerOption {
	if !s.secured() {
		return []grpc.ServerOption{grpc.InTapHandle(func(ctx context.Context, call *tap.Info) (context.Context, error) {
			return As(ctx, Anyone), s.begins(ctx, call)
		})}
	}
	return []grpc.ServerOption{grpc.Creds(serverCredentials{s: s}), grpc.InTapHandle(s.guard)}
}
