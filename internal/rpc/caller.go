package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/metadata"

	"headwater.example/internal/certs"
)

const (
	// tenantKey carries the tenant for whom a coordinator or a relay makes a call.
	tenantKey = "headwater-tenant"
	// passedOnKey carries the name of the coordinator that passes a call on to another one.
	passedOnKey = "headwater-passed-on"
)

// Caller is for whom a call is made, as it was proven. The zero value is nobody, who owns nothing: a call of which nothing was proven
// must not be taken for one that may do everything.
type Caller struct {
	Tenant  string       // whose own is all that may be seen and done
	Unbound bool         // or bound to no tenant
	Holder  certs.Holder // of the certificate, the token or the capability, if there is one

	Session *[16]byte // the only one that the caller's capability is for; nil is none or all: see Restrict
	heldBy  *Security // which has verified that
}

// Anyone is bound to no tenant: whoever uses a server without certificates or by its Unix socket, and what a process does of its own
// accord. Who is let in by a certificate as the cluster's own part, or as its admin, is unbound as well.
var Anyone = Caller{Unbound: true}

// Nobody tells whether nothing of the caller is proven that could own anything.
func (c Caller) Nobody() bool { return !c.Unbound && c.Tenant == "" }

// PassOn returns a context for a call of the same caller that a coordinator of a name passes on to another one. Who has made it is said as
// it is of all calls (As), and is believed of a coordinator alone. It must not be Nobody: of a coordinator, a call that names nobody is its
// own.
func PassOn(ctx context.Context, coordinator string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, passedOnKey, coordinator)
}

// PassedOn tells whether a call was passed on. Such a call is not passed on again.
func PassedOn(ctx context.Context) bool {
	return len(metadata.ValueFromIncomingContext(ctx, passedOnKey)) > 0
}

type callerKey struct{}

// CallerOf returns for whom the call is made whose context it is: nobody, unless As has said it.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// As returns a context for calls that are made for a caller. Calls to other parts of the cluster say so.
func As(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// part is between a tenant's name and that of a part of it.
const part = "/"

// Owns tells whether what belongs to a tenant, or to a part of one, is the caller's.
func (c Caller) Owns(tenant string) bool {
	owner, _, _ := strings.Cut(tenant, part)
	return c.Unbound || c.Tenant != "" && owner == c.Tenant
}

// Claim returns the tenant of what a caller makes who says that it is a tenant's: its own, or a part of it. The error is for
// PERMISSION_DENIED.
func (c Caller) Claim(said string) (string, error) {
	switch {
	case c.Unbound || said != "" && c.Owns(said):
		return said, nil
	case c.Tenant == "":
		return "", errors.New("the call is made for no tenant that was proven")
	case said == "":
		return c.Tenant, nil
	}
	return "", fmt.Errorf("the caller is tenant %q, and not %q: leave the tenant out, or name a part of it, %q", c.Tenant, said, c.Tenant+part+said)
}

// outgoing adds for whom a call is made to what a server is told.
func outgoing(ctx context.Context, version string) context.Context {
	ctx = metadata.AppendToOutgoingContext(ctx, MetadataKey, version)
	if c := CallerOf(ctx); c.Tenant != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, tenantKey, c.Tenant)
	}
	return ctx
}

// callerFor is for whom the holder of a certificate makes a call. Coordinators and relays say whom they serve, and are believed.
func callerFor(h certs.Holder, header metadata.MD) (Caller, error) {
	c := Caller{Holder: h, Unbound: true}
	said := header.Get(tenantKey)
	switch h.Role {
	case certs.Monitor:
		c.Unbound = false // nobody's
	case certs.Client:
		c.Unbound, c.Tenant = false, h.Names[0] // which are one
	case certs.Relay, certs.Coordinator:
		if len(said) > 1 {
			return c, fmt.Errorf("a call names %d tenants, and only one is allowed", len(said))
		}
		if len(said) == 1 {
			c.Unbound, c.Tenant = false, said[0]
		} else if h.Role == certs.Relay {
			c.Unbound = false // nobody's
		}
	}
	return c, nil
}
