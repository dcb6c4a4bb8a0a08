package sessions

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
	"headwater.example/worker/internal/workertest"
)

// TestStepsAreRefusedByName spoils a step in every way. The session is as before, and the lane goes on.
func TestStepsAreRefusedByName(t *testing.T) {
	p := serveSessions(t, machine.Config{})
	d := p.lane(t, 5)
	tiny := simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32)
	tiny.NHeads, tiny.NKvHeads, tiny.HeadDim, tiny.VDim = 1, 1, 1, 1
	s := newSequence(7, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F16), simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_I8), tiny)
	s.held[1].Groups = []uint32{1}
	s.rows[1] = s.rows[1][:1]
	s.create(t, p, d)
	for l := range 2 {
		m := s.draw(t, l, 70, 0, false)
		if e := d.ask(t, m.step, m.payload).GetResult().GetError(); e != nil {
			t.Fatal(e)
		}
		s.apply(m)
	}
	type problem = session.Reason
	for name, c := range map[string]struct {
		problem problem
		says    string
		spoil   func(m *move)
	}{
		"unknown session":   {session.Unknown, "not held here", func(m *move) { m.step.Session = make([]byte, 16) }},
		"unknown layer":     {problemInvalid, "layer 9", func(m *move) { m.step.Layer = 9 }},
		"layer 2³²-1":       {problemInvalid, "layer 4294967295", func(m *move) { m.step.Layer = math.MaxUint32 }},
		"behind":            {session.Behind, "70 positions", func(m *move) { m.step.Length += 5 }},
		"ahead":             {session.Ahead, "70 positions", func(m *move) { m.step.Length -= 30 }},
		"other appends":     {session.Different, "made by other appends", func(m *move) { m.step.Chain++ }},
		"no id":             {problemInvalid, "an append has an id", func(m *move) { m.step.AppendId = 0 }},
		"different":         {session.Different, "group 1", func(m *move) { m.step.Hashes[1]++ }},
		"stale epoch":       {session.StaleEpoch, "epoch 0", func(m *move) { m.step.Epoch = 0 }},
		"other truncations": {session.OtherTruncations, "truncated 0 times", func(m *move) { m.step.Truncations = 3 }},
		"no tokens":         {problemInvalid, "the step has no tokens", func(m *move) { m.step.Append, m.step.Attend, m.payload = 0, 0, nil }},
		"2³¹ to append":     {problemInvalid, "at most 65536 tokens", func(m *move) { m.step.Append = 1 << 31 }},
		"2³¹ to attend":     {problemInvalid, "at most 65536 tokens", func(m *move) { m.step.Attend = 1 << 31 }},
		"2³² - 1 of both":   {problemInvalid, "at most 65536 tokens", func(m *move) { m.step.Append, m.step.Attend = math.MaxUint32, math.MaxUint32 }},
		"many tokens":       {problemInvalid, "the payload has", func(m *move) { m.step.Append, m.step.Attend = 1<<16, 1<<16 }},
		"position 2⁶³":      {problemInvalid, "query at position", func(m *move) { m.step.QueryPosition = 1 << 63 }},
		"length 2⁶³":        {session.Behind, "", func(m *move) { m.step.Length = 1 << 39 }},
		"a short payload":   {problemInvalid, "the payload has", func(m *move) { m.payload = m.payload[1:] }},
		"no payload":        {problemInvalid, "the payload has 0 bytes", func(m *move) { m.payload = nil }},
		"a long payload":    {problemInvalid, "the payload has", func(m *move) { m.payload = append(m.payload, 0) }},
		"no codec":          {problemInvalid, "codec 0", func(m *move) { m.step.Codec = 0 }},
		"no encoding":       {problemInvalid, "encoding 0", func(m *move) { m.step.Encoding = 0 }},
		"another encoding":  {problemInvalid, "encoding 3", func(m *move) { m.step.Encoding = headwaterv1.StorageType_STORAGE_TYPE_BF16 }},
		"no hashes":         {problemInvalid, "0 hashes", func(m *move) { m.step.Hashes = nil }},
		"many hashes":       {problemInvalid, "3 hashes", func(m *move) { m.step.Hashes = append(m.step.Hashes, 1) }},
		"tokens":            {problemInvalid, "1 token ids", func(m *move) { m.step.Tokens = []uint32{7} }},
		"a tree too large":  {problemInvalid, "at most 4096", func(m *move) { m.step.Tree = 4097 }},
		"a tree of more":    {problemInvalid, "a tree mask of 73 positions", func(m *move) { m.step.Tree, m.step.TreeMask = 73, make([]byte, 20) }},
		"a short tree mask": {problemInvalid, "the tree mask has 1 bytes", func(m *move) { m.step.Tree, m.step.TreeMask = 3, []byte{1} }},
		"a mask of nothing": {problemInvalid, "the tree mask has 1 bytes", func(m *move) { m.step.TreeMask = []byte{1} }},
		"q is NaN": {problemInvalid, "q of group 1, token 1, head 1: element 7 is NaN", func(m *move) {
			copy(m.payload[4*(2*2*2*8-1):], workertest.LittleEndian([]float32{float32(math.NaN())}))
		}},
		"k is infinite":  {problemInvalid, "group 0: k at position 70: element 0 is +Inf", func(m *move) { copy(m.payload[4*2*2*2*8:], workertest.LittleEndian([]float32{float32(math.Inf(1))})) }},
		"k is too large": {problemInvalid, "", func(m *move) { copy(m.payload[4*2*2*2*8:], workertest.LittleEndian([]float32{1e6})) }},
		"a score overflows": {problemNotFinite, "head 0, token 0", func(m *move) {
			copy(m.payload, workertest.LittleEndian([]float32{math.MaxFloat32}))
			copy(m.payload[4*2*2*2*8:], workertest.LittleEndian([]float32{6e4}))
		}},
		"all scores overflow to -Inf": {problemNotFinite, "head 0, token 0: all scores overflow to -Inf", func(m *move) {
			m.step.Append, m.step.Layer, m.step.Length, m.step.Chain, m.step.Hashes = 1, 2, 0, 0, []uint64{0}
			m.step.Attend, m.step.QueryPosition = 1, 0
			m.payload = workertest.LittleEndian([]float32{1e20, -1e20, 1})
		}},
		"a context that its codec can not hold": {problemNotFinite, "", func(m *move) {
			m.step.Codec = headwaterv1.StepCodec_STEP_CODEC_F16
			m.step.Append, m.step.Layer, m.step.Length, m.step.Chain, m.step.Hashes = 1, 2, 0, 0, []uint64{0}
			m.step.Attend, m.step.QueryPosition = 1, 0
			m.payload = workertest.LittleEndian([]float32{0, 0, 1e6})
		}},
	} {
		m := s.draw(t, 0, 2, 2, false)
		used := p.m.Store.Cache().UsedBytes
		c.spoil(m)
		r := d.ask(t, m.step, m.payload)
		e := r.GetResult().GetError()
		if e.GetProblem() != c.problem || !strings.Contains(e.GetMessage(), c.says) || strings.Contains(e.GetMessage(), "\n") || len(r.GetPayload()) != 0 {
			t.Errorf("%s: got %v", name, e)
		}
		resp, err := p.sessions.ListSessions(t.Context(), &headwaterv1.ListSessionsRequest{Sessions: [][]byte{s.id}})
		if err != nil {
			t.Fatal(err)
		}
		s.same(t, resp.GetSessions()[0])
		if now := p.m.Store.Cache().UsedBytes; now != used {
			t.Errorf("%s: %d bytes of pages are in use, %d before it", name, now, used)
		}
	}
	// Groups that are not held here have no place in a payload.
	m := s.draw(t, 1, 1, 1, false)
	m.step.Hashes = append(m.step.Hashes, 4)
	if e := d.ask(t, m.step, append(m.payload, m.payload...)).GetResult().GetError(); e.GetProblem() != problemInvalid {
		t.Errorf("got %v", e)
	}
	// Another lane drives no session that is not its own, also with the right counter.
	other := p.lane(t, 6)
	m = s.draw(t, 0, 1, 1, false)
	if e := other.ask(t, m.step, m.payload).GetResult().GetError(); e.GetProblem() != session.StaleEpoch || !bytes.Equal(e.GetEpoch().GetLane(), d.id[:]) {
		t.Errorf("got %v", e)
	}
	other.end(t)
	for l := range 2 {
		m := s.draw(t, l, 1, 1, true)
		r := d.ask(t, m.step, m.payload)
		s.apply(m)
		s.check(t, m, r)
	}
	d.end(t)
}

func TestStepsOverBudget(t *testing.T) {
	layer := simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32)
	p := serveSessions(t, machine.Config{Budget: 3 << 20})
	d := p.lane(t, 5)
	s := newSequence(1, layer)
	s.create(t, p, d)
	for {
		m := s.draw(t, 0, 1024, 1, false)
		e := d.ask(t, m.step, m.payload).GetResult().GetError()
		if e == nil {
			s.apply(m)
			continue
		}
		if e.GetProblem() != problemOver {
			t.Fatalf("got %v", e)
		}
		break
	}
	if s.lengths[0] == 0 {
		t.Fatal("nothing fitted")
	}
	m := s.draw(t, 0, 0, 1, false)
	s.check(t, m, d.ask(t, m.step, m.payload))
	// More than the whole budget.
	m = s.draw(t, 0, 60_000, 0, false)
	if e := d.ask(t, m.step, m.payload).GetResult().GetError(); e.GetProblem() != problemOver {
		t.Fatalf("got %v", e)
	}
	d.end(t)
}
