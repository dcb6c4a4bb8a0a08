package sessions

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"headwater.example/coordinator/workers"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// maxHoldings bounds how many sessions' holders are remembered. The workers are asked for the others.
const maxHoldings = 1 << 16

// list asks every worker for sessions. Of one that does not answer there is none, and it is among the silent ones.
func (r *Relay) list(ctx context.Context, members []membership.Member, req *headwaterv1.ListSessionsRequest) (answers []*headwaterv1.ListSessionsResponse, silent []*headwaterv1.SilentWorker, _ error) {
	answers = make([]*headwaterv1.ListSessionsResponse, len(members))
	errs := workers.Ask(ctx, members, func(ctx context.Context, i int, m membership.Member) (err error) {
		answers[i], err = r.conns.List(ctx, m.Name, m.Address, req)
		return err
	})
	if err := ctx.Err(); err != nil {
		return nil, nil, err // it is not the workers' that there is no answer
	}
	for i, m := range members {
		if e, ok := session.FromError(errs[i]); ok && session.KindOf(e.Reason()) == session.Refused {
			return nil, nil, e // what one has looked at and refused, it is not silent about
		}
		if errs[i] != nil {
			silent = append(silent, &headwaterv1.SilentWorker{Worker: m.Name, Address: m.Address, Error: whySilent(m, errs[i])})
		}
	}
	slices.SortFunc(silent, func(a, b *headwaterv1.SilentWorker) int { return cmp.Compare(a.GetWorker(), b.GetWorker()) })
	return answers, silent, nil
}

// named is list, but for sessions that are named. They are looked for first, and then their holders, and no others, are asked for
// their state, for which they wait for steps under way as long as ctx lasts. Holders that are remembered and are no members any
// more are among the silent ones.
func (r *Relay) named(ctx context.Context, members []membership.Member, awaited []*headwaterv1.SilentWorker, req *headwaterv1.ListSessionsRequest) ([]*headwaterv1.ListSessionsResponse, []*headwaterv1.SilentWorker, error) {
	if len(req.GetSessions()) == 0 || req.GetCachesOnly() {
		return r.list(ctx, members, req)
	}
	first := proto.CloneOf(req)
	first.HoldersOnly = true
	answers, silent, err := r.list(ctx, members, first)
	if err != nil {
		return nil, nil, err
	}
	for _, key := range req.GetSessions() {
		if id, err := sessionID(key); err == nil {
			for _, missing := range append(r.recall(ctx, id).missing(members), awaited...) {
				if !slices.ContainsFunc(silent, func(w *headwaterv1.SilentWorker) bool { return w.GetWorker() == missing.GetWorker() }) {
					silent = append(silent, missing)
				}
			}
		}
	}
	if req.GetHoldersOnly() {
		return answers, silent, nil
	}
	errs := make([]error, len(members))
	var tasks sync.WaitGroup
	for i, m := range members {
		if len(answers[i].GetSessions()) > 0 {
			tasks.Go(func() {
				errs[i] = rpc.Guard(r.log, "asking worker "+m.Name, func() (err error) {
					answers[i], err = r.conns.List(ctx, m.Name, m.Address, req)
					return err
				})
			})
		}
	}
	tasks.Wait()
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	for i, m := range members {
		if errs[i] != nil {
			silent = append(silent, &headwaterv1.SilentWorker{Worker: m.Name, Address: m.Address, Error: whySilent(m, errs[i])})
		}
	}
	return answers, silent, nil
}

// whySilent says why a worker did not answer, without its name.
func whySilent(m membership.Member, err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer within %v", workers.Timeout)
	}
	if e, ok := session.FromError(err); ok {
		return strings.Join(strings.Fields(e.Why.GetMessage()), " ")
	}
	return strings.TrimPrefix(status.Convert(err).Message(), fmt.Sprintf("holder %q: ", m.Name))
}

// find returns a session's holders. It asks the workers if they are not remembered.
func (r *Relay) find(ctx context.Context, key []byte) (*fanout.Place, error) {
	id, err := sessionID(key)
	if err != nil {
		return nil, err
	}
	known := r.recall(ctx, id)
	if known.place != nil && !known.doubted {
		return known.place, nil
	}
	h, err := r.locate(ctx, id)
	if err != nil {
		if fanout.Is(err, session.Unknown) {
			r.forget(ctx, id)
		}
		return nil, err
	}
	return r.remember(id, h), nil
}

// notWhole is the refusal of a session if every worker has answered and none holds some of its groups.
func notWhole(key []byte, lost *headwaterv1.LostShards, err error) error {
	e := session.Errorf(session.Unknown, "session %x is not whole, since a worker that held a part has restarted or dropped it: %v", key, err)
	e.Why.Lost = lost
	return e
}

// heldByNone is the refusal of a session if every worker has answered and none holds any of it.
func heldByNone(key []byte) error {
	e := session.Errorf(session.Unknown, "session %x is held by no worker", key)
	e.Why.Lost = fanout.AllLost()
	return e
}

// lostOf returns what is lost of a session that is not whole, of what its holders tell.
func lostOf(states ...*headwaterv1.SessionState) *headwaterv1.LostShards {
	layers, err := layerproto.ReadSessionLayers(states[0].GetConfig().GetLayers())
	if err != nil {
		return nil
	}
	return fanout.Lost(layers, states...)
}

// missed adds to the refusal of a call on a session which shards are lost: its holders are asked, as far as they are remembered.
func (r *Relay) missed(ctx context.Context, id []byte, e *session.Error) *session.Error {
	return fanout.WithLost(e, func() *headwaterv1.LostShards {
		key, err := sessionID(id)
		if err != nil {
			return nil
		}
		known := r.recall(ctx, key)
		if known.place == nil {
			return nil
		}
		return r.conns.Missed(ctx, key, known.place.Holding())
	})
}

// askWorkers asks all workers who holds a session.
func (r *Relay) askWorkers(ctx context.Context, id [16]byte) (*fanout.Holding, error) {
	key := id[:]
	members, awaited := r.listed()
	answers, silent, err := r.list(ctx, members, &headwaterv1.ListSessionsRequest{Sessions: [][]byte{key}, HoldersOnly: true, Others: true})
	if err != nil {
		return nil, fmt.Errorf("find session %x: %w", key, err)
	}
	states := r.follow(ctx, id, members, bySession(members, answers)[id])
	silent = append(append(silent, r.recall(ctx, id).missing(members)...), awaited...)
	switch {
	case len(states) == 0 && len(silent) > 0:
		return nil, fanout.Silent(silent, fanout.AllLost())
	case len(states) == 0:
		return nil, heldByNone(key)
	}
	h, _, err := fanout.Current(states)
	if err != nil {
		if len(silent) > 0 {
			return nil, fanout.Silent(silent, lostOf(states...))
		}
		return nil, notWhole(key, lostOf(states...), err)
	}
	return h, nil
}

// follow adds to what members tell of a session what those tell whom its holders name and who are no members here: workers that have not
// found this coordinator yet, since it has just started, know each other all the same.
func (r *Relay) follow(ctx context.Context, id [16]byte, members []membership.Member, states []*headwaterv1.SessionState) []*headwaterv1.SessionState {
	asked := make([]*fanout.Holder, len(members))
	for i, m := range members {
		asked[i] = &fanout.Holder{Name: m.Name, Address: m.Address}
	}
	return r.conns.Follow(ctx, id, states, asked...)
}

// remembered is who holds a session. It is doubted once a call has not found the session there. It is not forgotten then: of a worker
// that is no member any more nobody else knows that it may hold the session still.
type remembered struct {
	place   *fanout.Place
	doubted bool
}

// missing returns the holders that are not members, which can't be asked.
func (r remembered) missing(members []membership.Member) (silent []*headwaterv1.SilentWorker) {
	if r.place == nil {
		return nil
	}
	for _, o := range r.place.Holding().Holders() {
		if !slices.ContainsFunc(members, func(m membership.Member) bool { return m.Name == o.Name }) {
			silent = append(silent, &headwaterv1.SilentWorker{Worker: o.Name, Address: o.Address, Error: "it is not among the cluster's workers now"})
		}
	}
	return silent
}

// recall returns the remembered holders of a session, even if they are in doubt. Another tenant's is not remembered for a caller: the
// workers are asked, as for one that there is not, and say that they do not hold it.
func (r *Relay) recall(ctx context.Context, id [16]byte) remembered {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.holdings[id]
	if known.place != nil && !rpc.CallerOf(ctx).Owns(known.place.Tenant()) {
		return remembered{}
	}
	return known
}

// remember notes who holds a session.
func (r *Relay) remember(id [16]byte, h *fanout.Holding) *fanout.Place {
	p := fanout.NewPlace(id, h)
	r.mu.Lock()
	defer r.mu.Unlock()
	for other := range r.holdings {
		if len(r.holdings) < maxHoldings {
			break
		}
		delete(r.holdings, other)
	}
	r.holdings[id] = remembered{place: p}
	return p
}

// doubt makes the next call on a session ask the workers again for its holders. A caller changes nothing of another tenant's.
func (r *Relay) doubt(ctx context.Context, session []byte) {
	if id, err := sessionID(session); err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if known, ok := r.holdings[id]; ok && rpc.CallerOf(ctx).Owns(known.place.Tenant()) {
			known.doubted = true
			r.holdings[id] = known
		}
	}
}

// forget forgets a caller's session that has ended.
func (r *Relay) forget(ctx context.Context, id [16]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known, ok := r.holdings[id]; ok && rpc.CallerOf(ctx).Owns(known.place.Tenant()) {
		delete(r.holdings, id)
	}
}

// taken tells whether an id is known to be that of another tenant's session.
func (r *Relay) taken(ctx context.Context, id [16]byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.holdings[id]
	return ok && !rpc.CallerOf(ctx).Owns(known.place.Tenant())
}
