// Package quotaproto turns what package quota knows of tenants' limits into messages of the protocol, and back.
package quotaproto

import (
	"math"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/quota"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Write returns a limit that was met as a message.
func Write(e *quota.Exceeded) *headwaterv1.Quota {
	return &headwaterv1.Quota{Tenant: e.Tenant, Kind: string(e.Kind), Limit: e.Limit, Used: e.Used, RetryAfterMillis: uint64(max((e.RetryAfter+time.Millisecond-1)/time.Millisecond, 0))}
}

// Read reads a limit that was met; nil is none.
func Read(m *headwaterv1.Quota) *quota.Exceeded {
	if m == nil {
		return nil
	}
	return &quota.Exceeded{
		Tenant: m.GetTenant(), Kind: quota.Kind(m.GetKind()), Limit: m.GetLimit(), Used: m.GetUsed(),
		RetryAfter: time.Duration(min(m.GetRetryAfterMillis(), math.MaxInt32)) * time.Millisecond,
	}
}

// Status is the status of a call that is not about a session: RESOURCE_EXHAUSTED, with the limit that was met as its detail.
func Status(e *quota.Exceeded) *status.Status {
	s := status.New(codes.ResourceExhausted, e.Error())
	if detailed, err := s.WithDetails(Write(e)); err == nil {
		return detailed
	}
	return s
}

// FromStatus returns the limit among the details of a status, or nil.
func FromStatus(s *status.Status) *quota.Exceeded {
	for _, d := range s.Details() {
		if m, ok := d.(*headwaterv1.Quota); ok {
			return Read(m)
		}
	}
	return nil
}

// WriteLimits returns limits as a message.
func WriteLimits(l quota.Limits) *headwaterv1.TenantAmounts {
	return &headwaterv1.TenantAmounts{Sessions: float64(l.Sessions), Bytes: uint64(l.Bytes), StepsPerSecond: l.Steps, Jobs: uint64(l.Jobs)}
}

// WriteTerms returns what a worker is told of a tenant.
func WriteTerms(tenant string, t quota.Terms) *headwaterv1.TenantShare {
	return &headwaterv1.TenantShare{
		Tenant: tenant, Limit: WriteLimits(t.Limit),
		Used:  &headwaterv1.TenantAmounts{Sessions: t.Used.Sessions, Bytes: uint64(max(t.Used.Bytes, 0)), StepsPerSecond: t.Used.Steps},
		Share: &headwaterv1.TenantAmounts{Sessions: float64(max(t.Share.Held, 0)), Bytes: uint64(max(t.Share.Bytes, 0)), StepsPerSecond: max(t.Share.Steps, 0)},
	}
}

// ReadTerms reads what a worker is told of a tenant; nil is no limit.
func ReadTerms(m *headwaterv1.TenantShare) quota.Terms {
	whole := func(x float64) int64 { return int64(min(max(x, 0), 1<<53)) } // also NaN
	bytes := func(n uint64) int64 { return int64(min(n, math.MaxInt64)) }
	l, u, s := m.GetLimit(), m.GetUsed(), m.GetShare()
	t := quota.Terms{
		Limit: quota.Limits{Sessions: whole(l.GetSessions()), Bytes: bytes(l.GetBytes()), Steps: max(l.GetStepsPerSecond(), 0)},
		Used:  quota.Usage{Sessions: u.GetSessions(), Bytes: bytes(u.GetBytes()), Steps: u.GetStepsPerSecond()},
		Share: quota.NoShare,
	}
	if t.Limit.Sessions > 0 {
		t.Share.Held = whole(s.GetSessions())
	}
	if t.Limit.Bytes > 0 {
		t.Share.Bytes = bytes(s.GetBytes())
	}
	if t.Limit.Steps > 0 {
		t.Share.Steps = max(s.GetStepsPerSecond(), 0)
	}
	return t
}
