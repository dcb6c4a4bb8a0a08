package fanout_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

func rng(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// count is a holder's step that does nothing but count.
func count(req *session.Request, resp *session.Response) error {
	resp.Result.Length = req.Step.Length + uint64(req.Step.Append)
	for range req.Step.Hashes {
		resp.Result.Hashes = append(resp.Result.Hashes, resp.Result.Length)
	}
	return nil
}

// TestEveryHolderGetsItsGroups deals groups out at random. What each holder is sent are the tensors of its groups and no
// others, and what they answer comes out by group.
func TestEveryHolderGetsItsGroups(t *testing.T) {
	thisMachine(t)
	const most = 4
	var mu sync.Mutex
	sent := map[string]*headwaterv1.LaneRequest{}
	groupsOf := map[string][]int{}
	var layer shard.LayerSpec
	addresses := make([]string, most)
	for i := range most {
		name := fmt.Sprintf("w%d", i)
		s := &script{step: func(req *session.Request, resp *session.Response) error {
			mu.Lock()
			defer mu.Unlock()
			m := &req.Step
			sent[name] = &headwaterv1.LaneRequest{Step: &headwaterv1.Step{Append: m.Append, Attend: m.Attend, Hashes: slices.Clone(m.Hashes), Tokens: slices.Clone(m.Tokens), TreeMask: bytes.Clone(m.TreeMask)}, Payload: bytes.Clone(req.Payload.Bytes())}
			resp.Result.Length, resp.Result.Codec = m.Length+uint64(m.Append), m.Codec
			// A context that says whose it is: the group and the element.
			rows := int(m.Attend) * layer.GroupSize()
			if m.Attend > 0 {
				resp.Payload = rpc.NewBuffer(4 * len(groupsOf[name]) * rows * (layer.VDim() + 1))
			}
			all := resp.Payload.Floats()
			for j, g := range groupsOf[name] {
				resp.Result.Hashes = append(resp.Result.Hashes, uint64(1000+g))
				for e := range rows * layer.VDim() {
					all[j*rows*layer.VDim()+e] = float32(g*1e6 + e)
				}
				for e := range rows {
					all[len(groupsOf[name])*rows*layer.VDim()+j*rows+e] = float32(-g*1e6 - e)
				}
			}
			return nil
		}}
		addresses[i] = serve(t, s.Register)
		if i%2 == 1 {
			near(t, boot(i), s.Lane)
		}
	}
	p := connect(t)
	rapid.Check(t, func(t *rapid.T) {
		mu.Lock()
		groups := rapid.IntRange(1, 6).Draw(t, "groups")
		layer = shape(groups*rapid.IntRange(1, 3).Draw(t, "group size"), groups, rapid.IntRange(1, 5).Draw(t, "head_dim"), rapid.IntRange(1, 5).Draw(t, "v_dim"))
		clear(sent)
		clear(groupsOf)
		var holders []*fanout.Holder
		n := rapid.IntRange(1, most).Draw(t, "holders")
		for i := range n {
			holders = append(holders, &fanout.Holder{Name: fmt.Sprintf("w%d", i), Boot: boot(i), Address: addresses[i], Groups: make([][]int, 1)})
		}
		for g := range groups {
			o := holders[rapid.IntRange(0, n-1).Draw(t, "holder")]
			o.Groups[0] = append(o.Groups[0], g)
			groupsOf[o.Name] = append(groupsOf[o.Name], g)
		}
		mu.Unlock()
		h, err := fanout.NewHolding([]shard.LayerSpec{layer}, holders...)
		if err != nil {
			t.Fatal(err)
		}
		appended, attend := rapid.IntRange(0, 4).Draw(t, "append"), rapid.IntRange(0, 4).Draw(t, "attend")
		hashes := make([]uint64, groups)
		for g := range hashes {
			hashes[g] = uint64(500 + g)
		}
		step, x := draw(rng(rapid.Uint64().Draw(t, "seed")), []shard.LayerSpec{layer}, 0, [16]byte{1}, 9, hashes, appended, attend)
		step.Tokens, step.TreeMask = slices.Repeat([]uint32{3}, appended), []byte{1, 2}
		if err := p.lane.Start(context.Background(), at(h), step).Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(sent) != len(groupsOf) {
			t.Fatalf("%d holders were asked, %d have groups", len(sent), len(groupsOf))
		}
		for name, own := range groupsOf {
			var want []byte
			var named []uint64
			for _, part := range [][][]byte{x.q, x.k, x.v} {
				for _, g := range own {
					want = append(want, part[g]...)
				}
			}
			for _, g := range own {
				named = append(named, hashes[g])
			}
			m := sent[name]
			if !bytes.Equal(m.GetPayload(), want) || !slices.Equal(m.GetStep().GetHashes(), named) || !slices.Equal(m.GetStep().GetTokens(), step.Tokens) || !bytes.Equal(m.GetStep().GetTreeMask(), step.TreeMask) {
				t.Fatalf("%s, which has groups %v, was sent other tensors: %v", name, own, m.GetStep())
			}
		}
		rows := attend * layer.GroupSize()
		for g := range groups {
			if step.Hashes[g] != uint64(1000+g) {
				t.Fatalf("group %d has hash %d", g, step.Hashes[g])
			}
			if len(x.context[g]) != rows*layer.VDim() || len(x.lse[g]) != rows {
				t.Fatalf("group %d: %d and %d elements came back", g, len(x.context[g]), len(x.lse[g]))
			}
			for e, v := range x.context[g] {
				if v != float32(g*1e6+e) {
					t.Fatalf("group %d: element %d is %v", g, e, v)
				}
			}
			for e, v := range x.lse[g] {
				if v != float32(-g*1e6-e) {
					t.Fatalf("group %d: LSE %d is %v", g, e, v)
				}
			}
		}
	})
}

var two = []shard.LayerSpec{shape(8, 4, 3, 2), shape(4, 2, 2, 2)}

// do does a step and takes up what came of it.
func (p *plain) do(t testing.TB, step *fanout.Step) error {
	t.Helper()
	known := p.known[step.Layer]
	step.Chain = known.GetChain()
	if err := p.lane.Start(t.Context(), p.place(), step).Wait(t.Context()); err != nil {
		known.AppendId = step.AppendID
		return err
	}
	known.Length, known.Hashes, known.Chain, known.AppendId = step.Length+uint64(step.Append), step.Hashes, step.Chain, 0
	return nil
}

// state is what a holder tells of the session.
func (p *plain) state(t testing.TB, holder int) *headwaterv1.SessionState {
	t.Helper()
	o := p.holding.Holders()[holder]
	resp, err := p.conns.List(t.Context(), o.Name, o.Address, &headwaterv1.ListSessionsRequest{Sessions: [][]byte{p.id[:]}})
	if err != nil || len(resp.GetSessions()) != 1 {
		t.Fatalf("%s: %v: %v", o.Name, resp, err)
	}
	return resp.GetSessions()[0]
}

// holds fails unless all holders have these lengths and hashes, and alike chains.
func (p *plain) holds(t testing.TB, truncations uint64, lengths []uint64, hashes [][]uint64) {
	t.Helper()
	chains := map[uint32]uint64{}
	for i, o := range p.holding.Holders() {
		s := p.state(t, i)
		if s.GetTruncations() != truncations {
			t.Fatalf("%s has counted %d truncations, not %d", o.Name, s.GetTruncations(), truncations)
		}
		for _, l := range s.GetLayers() {
			var want []uint64
			for _, g := range o.Groups[l.GetLayer()] {
				want = append(want, hashes[l.GetLayer()][g])
			}
			if chain, known := chains[l.GetLayer()]; l.GetLength() != lengths[l.GetLayer()] || !slices.Equal(l.GetHashes(), want) || known && l.GetChain() != chain {
				t.Fatalf("%s has %v of layer %d, not %d positions with %x", o.Name, l, l.GetLayer(), lengths[l.GetLayer()], want)
			}
			chains[l.GetLayer()] = l.GetChain()
		}
	}
}

// TestARetryConverges lets each holder in turn refuse a step that the others do. The same step again makes it whole, and gives
// what it would have given.
func TestARetryConverges(t *testing.T) {
	for n := range 3 {
		p, q := start(t, 3, two...), start(t, 3, two...)
		r := rng(uint64(n))
		hashes := make([]uint64, 4)
		first, x := draw(r, two, 0, p.id, 0, hashes, 3, 3)
		p.nodes[n].Set(func(*session.Step) *session.Error {
			return session.Errorf(session.OverBudget, "no room")
		})
		err := p.do(t, first)
		if e, ok := session.FromError(err); !ok || e.Reason() != session.OverBudget || e.Why.GetHolder() != p.nodes[n].Name {
			t.Fatalf("got %v", err)
		}
		if !slices.Equal(first.Hashes, hashes) {
			t.Error("the hashes of a step that failed are others")
		}
		p.nodes[n].Set(nil)
		if err := p.do(t, first); err != nil {
			t.Fatal(err)
		}
		want, y := draw(rng(uint64(n)), two, 0, q.id, 0, hashes, 3, 3)
		if err := q.do(t, want); err != nil {
			t.Fatal(err)
		}
		for g := range 4 {
			if !slices.Equal(x.context[g], y.context[g]) || !slices.Equal(x.lse[g], y.lse[g]) {
				t.Errorf("group %d: another context than of a step that was done at once", g)
			}
		}
		p.holds(t, 0, []uint64{3, 0}, [][]uint64{want.Hashes, {0, 0}})
	}
}

// TestTheLengthIsTheLeastThatAllHold brings holders apart, layer by layer. Who takes the session, truncates or forks it has
// of each layer what all of its holders have.
func TestTheLengthIsTheLeastThatAllHold(t *testing.T) {
	for name, level := range map[string]func(p *plain) (*headwaterv1.SessionState, error){
		"take": func(p *plain) (*headwaterv1.SessionState, error) {
			return p.conns.Take(t.Context(), p.place(), &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: p.epoch})
		},
		"truncate": func(p *plain) (*headwaterv1.SessionState, error) {
			return p.conns.Truncate(t.Context(), p.place(), &headwaterv1.TruncateSessionRequest{Session: p.id[:], Epoch: p.epoch, Position: 100, Expect: p.known, Id: 1})
		},
		"fork": func(p *plain) (*headwaterv1.SessionState, error) {
			child := [16]byte{8}
			state, err := p.conns.Fork(t.Context(), p.place(), &headwaterv1.ForkSessionRequest{Session: p.id[:], Epoch: p.epoch, Child: child[:], ChildEpoch: p.epoch, Expect: p.known})
			p.id = child
			return state, err
		},
	} {
		p := start(t, 3, two...)
		r := rng(3)
		hashes := [][]uint64{make([]uint64, 4), make([]uint64, 2)}
		for l, n := range []int{5, 3} {
			step, _ := draw(r, two, l, p.id, 0, hashes[l], n, 0)
			if err := p.do(t, step); err != nil {
				t.Fatal(err)
			}
			hashes[l] = step.Hashes
		}
		// Of the first layer one holder has no more, of the second another.
		for l, without := range []int{1, 0} {
			p.nodes[without].Set(func(*session.Step) *session.Error {
				return session.Errorf(session.OverBudget, "no room")
			})
			step, _ := draw(r, two, l, p.id, uint64([]int{5, 3}[l]), hashes[l], 2, 0)
			if err := p.do(t, step); err == nil {
				t.Fatal("done without room")
			}
			p.nodes[without].Set(nil)
		}
		state, err := level(p)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for l, n := range []uint64{5, 3} {
			if have := state.GetLayers()[l]; have.GetLength() != n || !slices.Equal(have.GetHashes(), hashes[l]) {
				t.Errorf("%s: layer %d has %d positions with %x, want %d with %x", name, l, have.GetLength(), have.GetHashes(), n, hashes[l])
			}
		}
		truncations := map[string]uint64{"take": 1, "truncate": 1, "fork": 0}[name]
		if state.GetTruncations() != truncations {
			t.Errorf("%s: truncated %d times", name, state.GetTruncations())
		}
		p.holds(t, truncations, []uint64{5, 3}, hashes)
	}
}

// TestATruncationIsMadeWhole fails at one holder; the same again, and the level of who takes the session, find the same end.
func TestATruncationIsMadeWhole(t *testing.T) {
	for _, again := range []bool{true, false} {
		p := start(t, 2, two...)
		hashes := make([]uint64, 4)
		step, _ := draw(rng(5), two, 0, p.id, 0, hashes, 6, 0)
		if err := p.do(t, step); err != nil {
			t.Fatal(err)
		}
		req := &headwaterv1.TruncateSessionRequest{Session: p.id[:], Epoch: p.epoch, Lengths: []uint64{4, 0}, Id: 5, Expect: p.known}
		var first []*headwaterv1.LayerState
		for _, l := range p.state(t, 0).GetLayers() {
			first = append(first, &headwaterv1.LayerState{Layer: l.GetLayer(), Length: l.GetLength(), Hashes: l.GetHashes(), Chain: l.GetChain()})
		}
		if _, err := p.nodes[0].TruncateSession(t.Context(), &headwaterv1.TruncateSessionRequest{Session: p.id[:], Epoch: p.epoch, Lengths: []uint64{4, 0}, Id: 5, Expect: first}); err != nil {
			t.Fatal(err)
		}
		var state *headwaterv1.SessionState
		var err error
		if again {
			state, err = p.conns.Truncate(t.Context(), p.place(), req)
		} else {
			state, err = p.conns.Take(t.Context(), p.place(), &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: p.epoch})
		}
		if err != nil || state.GetTruncations() != 1 || state.GetLayers()[0].GetLength() != 4 {
			t.Fatalf("again %v: %v: %v", again, state, err)
		}
		p.holds(t, 1, []uint64{4, 0}, [][]uint64{state.GetLayers()[0].GetHashes(), {0, 0}})
	}
}

// TestMixedReceipts lets one of three holders be ahead, behind, or have something else than the step builds on. The refusal
// says which one and how.
func TestMixedReceipts(t *testing.T) {
	for name, c := range map[string]struct {
		problem session.Reason
		length  uint64 // that the step names
		others  int    // appended by all but the odd one, or by that alone if negative
	}{
		"ahead":     {session.Ahead, 4, -2},
		"behind":    {session.Behind, 6, 2},
		"different": {session.Different, 4, 0},
	} {
		p := start(t, 3, two...)
		r := rng(9)
		step, _ := draw(r, two, 0, p.id, 0, make([]uint64, 4), 4, 0)
		if err := p.do(t, step); err != nil {
			t.Fatal(err)
		}
		hashes := step.Hashes
		if c.others != 0 {
			for i, n := range p.nodes {
				if (i == 0) == (c.others > 0) {
					n.Set(func(*session.Step) *session.Error {
						return session.Errorf(session.OverBudget, "no room")
					})
				}
			}
			part, _ := draw(r, two, 0, p.id, 4, hashes, max(c.others, -c.others), 0)
			if err := p.do(t, part); err == nil {
				t.Fatal("done without room")
			}
			for _, n := range p.nodes {
				n.Set(nil)
			}
		} else {
			hashes = slices.Clone(hashes)
			hashes[0]++ // w1 has groups 0 and 3
		}
		next, x := draw(r, two, 0, p.id, c.length, hashes, 1, 1)
		err := p.do(t, next)
		e, ok := session.FromError(err)
		if !ok || e.Reason() != c.problem {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		if e.Why.GetHolder() != "w1" {
			t.Errorf("%s: %s is said to differ", name, e.Why.GetHolder())
		}
		if len(x.context) != 0 || !slices.Equal(next.Hashes, hashes) {
			t.Errorf("%s: something came of a step that was refused", name)
		}
	}
}

// TestGarbageIsNoAnswer lets a holder answer in every wrong way. The error names it; no context and no hash is taken.
func TestGarbageIsNoAnswer(t *testing.T) {
	l := shape(2, 2, 3, 2)
	right := func(req *session.Request, resp *session.Response) {
		_ = count(req, resp)
		resp.Result.Codec = req.Step.Codec
		if req.Step.Attend > 0 {
			resp.Payload = rpc.NewBuffer(4 * 2 * int(req.Step.Attend) * 3)
		}
	}
	for name, c := range map[string]struct {
		codec  headwaterv1.StepCodec
		attend int
		spoil  func(*session.Response)
	}{
		"a longer length":     {1, 1, func(r *session.Response) { r.Result.Length++ }},
		"a shorter length":    {1, 1, func(r *session.Response) { r.Result.Length = 0 }},
		"no hashes":           {1, 1, func(r *session.Response) { r.Result.Hashes = nil }},
		"too many hashes":     {1, 1, func(r *session.Response) { r.Result.Hashes = append(r.Result.Hashes, 1) }},
		"another codec":       {1, 1, func(r *session.Response) { r.Result.Codec = 2 }},
		"no context":          {1, 1, func(r *session.Response) { r.Payload.Free(); r.Payload = nil }},
		"a short context":     {1, 2, func(r *session.Response) { r.Payload.Cut(44) }},
		"a long context":      {1, 1, func(r *session.Response) { r.Payload.Free(); r.Payload = rpc.NewBuffer(28) }},
		"a context unasked":   {1, 0, func(r *session.Response) { r.Payload = rpc.NewBuffer(24) }},
		"no frame":            {2, 1, func(r *session.Response) { copy(r.Payload.Bytes(), "HWcx") }},
		"zeros for a frame":   {3, 1, func(r *session.Response) { clear(r.Payload.Bytes()) }},
		"another step's":      {1, 1, func(r *session.Response) { r.ID += 100 }},
		"a refusal of nobody": {1, 1, func(r *session.Response) { r.Result.Err = &session.Error{Why: &headwaterv1.SessionError{}} }},
	} {
		t.Run(name, func(t *testing.T) {
			p := connect(t)
			s := &script{step: func(req *session.Request, resp *session.Response) error {
				right(req, resp)
				c.spoil(resp)
				return nil
			}}
			h := alone(t, s, l)
			step, x := draw(rng(1), []shard.LayerSpec{l}, 0, [16]byte{1}, 4, []uint64{4, 4}, 1, c.attend)
			step.Codec = c.codec
			err := p.lane.Start(t.Context(), at(h), step).Wait(t.Context())
			if err == nil || !strings.Contains(err.Error(), "odd") || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v", err)
			}
			if len(x.context) != 0 || !slices.Equal(step.Hashes, []uint64{4, 4}) {
				t.Error("something was taken")
			}
		})
	}
	for name, spoil := range map[string]func(*headwaterv1.SessionState){
		"another session":  func(s *headwaterv1.SessionState) { s.Session = []byte("x") },
		"no session":       func(s *headwaterv1.SessionState) { proto.Reset(s) },
		"a layer too many": func(s *headwaterv1.SessionState) { s.Layers[0].Layer = 1 },
		"layer 2³²-1":      func(s *headwaterv1.SessionState) { s.Layers[0].Layer = 1<<32 - 1 },
		"no layers":        func(s *headwaterv1.SessionState) { s.Layers = nil },
		"too few hashes":   func(s *headwaterv1.SessionState) { s.Layers[0].Hashes = []uint64{1} },
		"a layer twice":    func(s *headwaterv1.SessionState) { s.Layers = append(s.Layers, s.Layers[0]) },
	} {
		t.Run(name, func(t *testing.T) {
			p := connect(t)
			id := [16]byte{1}
			h := alone(t, &script{state: func() *headwaterv1.SessionState {
				s := &headwaterv1.SessionState{Session: id[:], Layers: []*headwaterv1.LayerState{{Length: 1, Hashes: []uint64{1, 2}}}}
				spoil(s)
				return s
			}}, l)
			_, err := p.conns.Truncate(t.Context(), at(h), &headwaterv1.TruncateSessionRequest{Session: id[:], Position: 1})
			if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "odd") {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("rows out of turn", func(t *testing.T) {
		p := connect(t)
		err := p.conns.Export(t.Context(), at(alone(t, &script{}, l)), &headwaterv1.ExportSessionRequest{}, func(*headwaterv1.ExportSessionResponse) error { return nil })
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "out of turn") {
			t.Errorf("got %v", err)
		}
	})
}

// TestWhatBreaksIsSentAgain: a lane that ends under a step is opened anew, and a holder that has too much to do is asked again. So it
// is on a holder's socket on this machine.
func TestWhatBreaksIsSentAgain(t *testing.T) {
	thisMachine(t)
	l := shape(1, 1, 1, 1)
	for name, fail := range map[string]func(resp *session.Response) error{
		"broken": func(*session.Response) error { return status.Error(codes.Unavailable, "it stops") },
		"busy": func(resp *session.Response) error {
			resp.Result = session.Result{Err: session.Errorf(session.Busy, "too much")}
			return nil
		},
	} {
		for i, times := range []int{1, 3, 4, 1, 3, 4} {
			p := connect(t)
			asked := 0
			s := &script{step: func(req *session.Request, resp *session.Response) error {
				if asked++; asked <= times {
					return fail(resp)
				}
				return count(req, resp)
			}}
			h := alone(t, s, l)
			if i >= 3 {
				h = beside(t, s, l)
			}
			step, _ := draw(rng(1), []shard.LayerSpec{l}, 0, [16]byte{1}, 0, []uint64{0}, 1, 0)
			err := p.lane.Start(t.Context(), at(h), step).Wait(t.Context())
			if times < 4 && (err != nil || step.Hashes[0] != 1) {
				t.Errorf("%s %d times: %v", name, times, err)
			}
			if times == 4 && !fanout.Is(err, session.Busy) {
				t.Errorf("%s for ever: %v", name, err)
			}
		}
	}
}

// TestAStepTooLargeReachesNobody: also where one holder's part of it would fit.
func TestAStepTooLargeReachesNobody(t *testing.T) {
	l := shape(4, 4, 512, 512)
	p := start(t, 3, l) // w1 has two groups, the others one
	small, _ := draw(rng(1), []shard.LayerSpec{l}, 0, p.id, 0, make([]uint64, 4), 1, 0)
	if err := p.do(t, small); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]int{{6000, 0}, {1, 9000}} {
		large, x := draw(rng(1), []shard.LayerSpec{l}, 0, p.id, 1, small.Hashes, 1, 0)
		large.Append, large.Attend = uint32(c[0]), uint32(c[1])
		err := p.do(t, large)
		if e, ok := session.FromError(err); !ok || e.Reason() != session.Invalid || !strings.Contains(err.Error(), "33554432") || !strings.Contains(err.Error(), "fewer tokens") {
			t.Errorf("got %v", err)
		}
		if len(x.context) != 0 {
			t.Error("something came of it")
		}
	}
	p.holds(t, 0, []uint64{1}, [][]uint64{small.Hashes})
	// Other steps in flight are not disturbed.
	next, _ := draw(rng(2), []shard.LayerSpec{l}, 0, p.id, 1, small.Hashes, 2, 2)
	if err := p.do(t, next); err != nil {
		t.Fatal(err)
	}
}

// TestAnAbandonedStepIsDoneOnce: its caller gives up, and the same step again finds it done.
func TestAnAbandonedStepIsDoneOnce(t *testing.T) {
	p := start(t, 2, two...)
	arrived, release := make(chan struct{}), make(chan struct{})
	p.nodes[1].Set(func(*session.Step) *session.Error {
		close(arrived)
		select {
		case <-release:
		case <-t.Context().Done(): // the test has failed
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	step, _ := draw(rng(4), two, 0, p.id, 0, make([]uint64, 4), 2, 1)
	call := p.lane.Start(ctx, p.place(), step)
	await.One(t, arrived, "the step, at the holder")
	cancel()
	if err := call.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	close(release)
	again, x := draw(rng(4), two, 0, p.id, 0, make([]uint64, 4), 2, 1)
	again.AppendID = step.AppendID
	p.nodes[1].Set(nil)
	if err := p.do(t, again); err != nil || len(x.context) != 4 {
		t.Fatal(err)
	}
	p.holds(t, 0, []uint64{2, 0}, [][]uint64{again.Hashes, {0, 0}})
}
