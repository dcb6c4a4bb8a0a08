package sessions

import (
	"context"

	"headwater.example/attention"
	"headwater.example/coordinator/workers"
	"headwater.example/internal/membership"
	"headwater.example/internal/placement"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// A worker finds a prefix only for a session that holds the same groups of it as the one that left it there. Which those are
// nobody remembers, so the workers are asked, and a session is placed where all of its groups find a prefix.

// findPrefixes asks workers what they have of the tokens that a session begins with. A worker that does not answer has none of them.
func (r *Relay) findPrefixes(ctx context.Context, asked []membership.Member, layers []shard.LayerSpec, req *headwaterv1.CreateSessionRequest) []placement.Prefix {
	query := &headwaterv1.ListSessionsRequest{CachesOnly: true, Prefix: &headwaterv1.PrefixQuery{Config: req.GetConfig(), Tokens: req.GetTokens()}}
	answers := make([]*headwaterv1.ListSessionsResponse, len(asked))
	workers.Ask(ctx, asked, func(ctx context.Context, i int, m membership.Member) (err error) {
		answers[i], err = r.conns.List(ctx, m.Name, m.Address, query)
		return err
	})
	var all []placement.Prefix
	for i, a := range answers {
		for _, p := range a.GetPrefixes() {
			one := placement.Prefix{Worker: asked[i].Name, Groups: make([][]int, len(layers)), Positions: p.GetPositions()}
			for _, l := range p.GetLayers() {
				if uint64(l.GetLayer()) >= uint64(len(layers)) {
					break // It is not of this session: Cover finds that shards are missing.
				}
				held := l.GetGroups()
				if layers[l.GetLayer()].Striped() {
					held = l.GetShards()
				}
				for _, g := range held {
					one.Groups[l.GetLayer()] = append(one.Groups[l.GetLayer()], int(g))
				}
			}
			all = append(all, one)
		}
	}
	return all
}

// hasPrefix reports whether a session may begin with a prefix: at least one token must be left to append.
func hasPrefix(req *headwaterv1.CreateSessionRequest) bool {
	return len(req.GetTokens()) > attention.PageLen && len(req.GetBegin()) == 0 && !req.GetConfig().GetUnshared()
}
