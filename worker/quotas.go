package worker

import (
	"context"

	"headwater.example/internal/quota"
	"headwater.example/internal/quotaproto"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// ShareQuotas takes down how much of the worker each tenant may have, and says what each has.
func (w *Worker) ShareQuotas(_ context.Context, m *headwaterv1.ShareQuotasRequest) (*headwaterv1.ShareQuotasResponse, error) {
	book := w.machine.Quotas
	if !m.GetAskOnly() {
		named := make(map[string]quota.Terms, len(m.GetTenants()))
		for _, t := range m.GetTenants() {
			named[t.GetTenant()] = quotaproto.ReadTerms(t)
		}
		book.Tell(named, quotaproto.ReadTerms(m.GetOthers()))
	}
	all := map[string]*headwaterv1.TenantUsage{}
	of := func(tenant string) *headwaterv1.TenantUsage {
		if all[tenant] == nil {
			all[tenant] = &headwaterv1.TenantUsage{Tenant: tenant}
		}
		return all[tenant]
	}
	for _, u := range w.machine.Store.Usage() {
		one := of(u.Tenant)
		one.Held, one.Sessions, one.Bytes = uint64(u.Held), u.Sessions, uint64(u.Bytes)
	}
	for _, a := range book.Asked() {
		one := of(a.Tenant)
		one.Steps = a.Steps
		one.Refused = &headwaterv1.TenantAmounts{Sessions: float64(a.Refused[quota.Sessions]), Bytes: a.Refused[quota.Bytes], StepsPerSecond: float64(a.Refused[quota.Steps])}
	}
	resp := &headwaterv1.ShareQuotasResponse{}
	for _, one := range all {
		if one.Tenant != "" { // nobody's has no limits
			resp.Tenants = append(resp.Tenants, one)
		}
	}
	return resp, nil
}
