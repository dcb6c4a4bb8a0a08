package rpc

import (
	"testing"

	"google.golang.org/grpc/metadata"

	"headwater.example/internal/certs"
)

// TestACallIsForWhomItsCertificateNames: only coordinators and relays say for whom they ask, and nobody is believed for himself.
func TestACallIsForWhomItsCertificateNames(t *testing.T) {
	t.Parallel()
	said := func(tenants ...string) metadata.MD { return metadata.MD{tenantKey: tenants} }
	for _, k := range []struct {
		role   certs.Role
		header metadata.MD
		tenant string
		bound  bool
		fails  bool
	}{
		{certs.Client, nil, "it", true, false},
		{certs.Client, said("other"), "it", true, false},
		{certs.Admin, said("other"), "", false, false},
		{certs.Worker, said("other"), "", false, false},
		{certs.Coordinator, nil, "", false, false},
		{certs.Coordinator, said("other"), "other", true, false},
		{certs.Relay, said("other"), "other", true, false},
		{certs.Relay, nil, "", true, false},
		{certs.Relay, said("one", "other"), "", false, true},
	} {
		c, err := callerFor(certs.Holder{Role: k.role, Names: []string{"it"}}, k.header)
		if (err != nil) != k.fails || !k.fails && (c.Tenant != k.tenant || c.Unbound == k.bound) {
			t.Errorf("%s that says %v: %+v, %v", k.role, k.header, c, err)
		}
	}
}

func TestATenantClaimsItselfAndItsParts(t *testing.T) {
	t.Parallel()
	ann := Caller{Tenant: "ann"}
	for said, want := range map[string]string{"": "ann", "ann": "ann", "ann/x": "ann/x", "ann/x/y": "ann/x/y"} {
		if got, err := ann.Claim(said); got != want || err != nil {
			t.Errorf("%q: %q, %v", said, got, err)
		}
	}
	for _, said := range []string{"bob", "anna", "/ann", "bob/ann", "ann\x00"} {
		if got, err := ann.Claim(said); err == nil || ann.Owns(said) {
			t.Errorf("%q is taken as %q", said, got)
		}
	}
	nobody := CallerOf(t.Context()) // and a relay that names no tenant
	for _, tenant := range []string{"", "ann", "/", "/ann"} {
		if got, err := nobody.Claim(tenant); nobody.Owns(tenant) || err == nil {
			t.Errorf("who is nobody owns what is %q's, or makes something as %q", tenant, got)
		}
	}
	if got, err := Anyone.Claim("bob"); got != "bob" || err != nil || !Anyone.Owns("ann") || !Anyone.Owns("") {
		t.Errorf("whoever is bound to none: %q, %v", got, err)
	}
}
