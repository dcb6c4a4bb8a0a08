package rpc

import (
	"context"
	"log/slog"

	"google.golang.org/grpc/peer"
)

// Audit logs what somebody has done who may do more than a tenant, or to others than himself: who, from where, and what. Records with
// audit=true are the audit log.
func Audit(ctx context.Context, log *slog.Logger, did string, attrs ...slog.Attr) {
	who := CallerOf(ctx)
	as := "anyone" // on a cluster without certificates
	if who.Holder.Role != "" {
		as = who.Holder.String()
	}
	from := ""
	if p, ok := peer.FromContext(ctx); ok {
		from = p.Addr.String()
	}
	log.LogAttrs(ctx, slog.LevelInfo, did, append([]slog.Attr{slog.Bool("audit", true), slog.String("by", as), slog.String("peer", from)}, attrs...)...)
}
