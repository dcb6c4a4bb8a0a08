package drivers

import (
	"context"
	"fmt"
	"strings"
	"time"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// told is what each worker tells of the driver's session, line by line, for people.
func (d *driver) told(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	status, err := d.client.Status(ctx)
	if err != nil {
		return fmt.Sprintf("  no workers are told: %v\n", err)
	}
	conns := fanout.NewConns(nil, rpc.DialOptions()...)
	defer conns.Close()
	var b strings.Builder
	for _, w := range status.Workers {
		resp, err := conns.List(ctx, w.Name, w.Address, &headwaterv1.ListSessionsRequest{Sessions: [][]byte{d.book.id[:]}})
		if err != nil {
			fmt.Fprintf(&b, "  %s: %v\n", w.Name, err)
			continue
		}
		for _, s := range resp.GetSessions() {
			e := s.GetEpoch()
			fmt.Fprintf(&b, "  %s: epoch %d of lane %x, base %d, closed %v, holders %v; truncations %d\n", w.Name, e.GetCounter(), e.GetLane(), e.GetBase(), e.GetClosed(), e.GetMembers(), s.GetTruncations())
			for _, l := range s.GetLayers() {
				fmt.Fprintf(&b, "    layer %d: %d positions, chain %x, append %x, before %d positions, chain %x\n", l.GetLayer(), l.GetLength(), l.GetChain(), l.GetAppendId(), l.GetBefore().GetLength(), l.GetBefore().GetChain())
			}
		}
	}
	return b.String()
}
