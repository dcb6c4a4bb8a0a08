package client_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/client"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker"
)

// TestRefusals calls in every wrong way that the client does not refuse itself. Each is refused by its name, and then the
// session, its receipt and the workers' pages are what they were, and the next step gives the right bits.
func TestRefusals(t *testing.T) {
	eachReal(t, worker.Config{Budget: 1 << 21, MaxSessions: 2}, func(t *testing.T, c *real, direct bool) {
		r := rng(1)
		s, m := open(t, c.Client, client.SessionOptions{Layers: small, Direct: direct}), newModel(small)
		step(t, s, m, r, 0, 70)
		step(t, s, m, r, 1, 69)
		other := dial(t, c.address)
		// last is the newest step of layer 0, and before it what was known.
		var last tokens
		var before client.Receipt
		goOn := func() {
			t.Helper()
			before, last = s.Receipt(), project(r, small[0], 2)
			m.append(0, last)
			want, _ := m.attend(t, 0, last.q, m.len(0)-2, nil)
			got, err := attended(t, s, 0, last)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "context of the next step", got, want)
			step(t, s, m, r, 1, 1)
		}
		goOn()
		one := project(r, small[0], 1)
		wrongly := func(change func(*client.Known), x tokens) error {
			defer client.Tamper(s, change)()
			_, err := attended(t, s, 0, x)
			return err
		}
		for _, test := range []struct {
			name   string
			reason client.Reason
			code   codes.Code
			is     error
			call   func() error
		}{
			{"behind", client.ReasonBehind, codes.FailedPrecondition, client.ErrRefused, func() error {
				return wrongly(func(k *client.Known) { k.Layers[0].Length += 5 }, one)
			}},
			{"2³¹ positions", client.ReasonBehind, codes.FailedPrecondition, client.ErrRefused, func() error {
				return wrongly(func(k *client.Known) { k.Layers[0].Length = 1 << 31 }, one)
			}},
			{"2⁴¹ positions", client.ReasonInvalid, codes.InvalidArgument, client.ErrRefused, func() error {
				return wrongly(func(k *client.Known) { k.Layers[0].Length = 1 << 41 }, one)
			}},
			{"ahead", client.ReasonAhead, codes.FailedPrecondition, client.ErrRefused, func() error {
				return wrongly(func(k *client.Known) { k.Layers[0].Length -= 5 }, one)
			}},
			{"different", client.ReasonDifferent, codes.FailedPrecondition, client.ErrRefused, func() error {
				return wrongly(func(k *client.Known) { k.Layers[0].Hashes[2]++ }, one)
			}},
			{"a repeat with other keys", client.ReasonDifferent, codes.FailedPrecondition, client.ErrRefused, func() error {
				return wrongly(func(k *client.Known) { k.Layers[0] = before.Layers[0] }, project(rng(99), small[0], 2))
			}},
			{"other truncations", client.ReasonOtherTruncations, codes.FailedPrecondition, client.ErrRefused, func() error {
				return wrongly(func(k *client.Known) { k.Truncations++ }, one)
			}},
			{"stale epoch", client.ReasonStaleEpoch, codes.FailedPrecondition, client.ErrTakenOver, func() error {
				return wrongly(func(k *client.Known) { k.Epoch-- }, one)
			}},
			{"an epoch to come", client.ReasonStaleEpoch, codes.FailedPrecondition, client.ErrTakenOver, func() error {
				return wrongly(func(k *client.Known) { k.Epoch++ }, one)
			}},
			{"stale epoch of a truncation", client.ReasonStaleEpoch, codes.FailedPrecondition, client.ErrTakenOver, func() error {
				defer client.Tamper(s, func(k *client.Known) { k.Epoch-- })()
				return s.Truncate(t.Context(), 3)
			}},
			{"stale epoch of a fork", client.ReasonStaleEpoch, codes.FailedPrecondition, client.ErrTakenOver, func() error {
				defer client.Tamper(s, func(k *client.Known) { k.Epoch-- })()
				_, err := s.Fork(t.Context())
				return err
			}},
			{"stale epoch of a drop", client.ReasonStaleEpoch, codes.FailedPrecondition, client.ErrTakenOver, func() error {
				defer client.Tamper(s, func(k *client.Known) { k.Epoch-- })()
				return s.Drop(t.Context())
			}},
			{"a fork beyond the end", client.ReasonBehind, codes.FailedPrecondition, client.ErrRefused, func() error {
				_, err := s.ForkAt(t.Context(), 1000)
				return err
			}},
			{"a step of an unknown session", client.ReasonUnknown, codes.NotFound, client.ErrNotFound, func() error {
				return wrongly(func(k *client.Known) { k.ID[0]++ }, one)
			}},
			{"a truncation of an unknown session", client.ReasonUnknown, codes.NotFound, client.ErrNotFound, func() error {
				defer client.Tamper(s, func(k *client.Known) { k.ID[0]++ })()
				return s.Truncate(t.Context(), 3)
			}},
			{"a fork of an unknown session", client.ReasonUnknown, codes.NotFound, client.ErrNotFound, func() error {
				defer client.Tamper(s, func(k *client.Known) { k.ID[0]++ })()
				_, err := s.Fork(t.Context())
				return err
			}},
			{"a pin of an unknown session", client.ReasonUnknown, codes.NotFound, client.ErrNotFound, func() error {
				defer client.Tamper(s, func(k *client.Known) { k.ID[0]++ })()
				return s.Pin(t.Context(), true)
			}},
			{"an export of an unknown session", client.ReasonUnknown, codes.NotFound, client.ErrNotFound, func() error {
				defer client.Tamper(s, func(k *client.Known) { k.ID[0]++ })()
				return s.Export(t.Context(), 0, 0, 1, func(int, int, int, client.Rows) error { return nil })
			}},
			{"a drop of what never was", client.ReasonUnknown, codes.NotFound, client.ErrNotFound, func() error {
				return c.DropSession(t.Context(), client.SessionID{1})
			}},
			{"an export beyond the end", client.ReasonInvalid, codes.InvalidArgument, client.ErrRefused, func() error {
				return s.Export(t.Context(), 0, 1<<31, 1, func(int, int, int, client.Rows) error { return nil })
			}},
			{"a wrong receipt", client.ReasonDifferent, codes.FailedPrecondition, client.ErrRefused, func() error {
				wrong := s.Receipt()
				wrong.Layers[1].Hashes[1]++
				_, err := other.Attach(t.Context(), s.ID(), client.AttachOptions{Receipt: &wrong, Direct: direct})
				return err
			}},
			{"a receipt of more", client.ReasonBehind, codes.FailedPrecondition, client.ErrRefused, func() error {
				wrong := s.Receipt()
				wrong.Layers[0].Length++
				_, err := other.Attach(t.Context(), s.ID(), client.AttachOptions{Receipt: &wrong, Direct: direct})
				return err
			}},
			{"a receipt from before a truncation", client.ReasonOtherTruncations, codes.FailedPrecondition, client.ErrRefused, func() error {
				wrong := s.Receipt()
				wrong.Truncations++
				_, err := other.Attach(t.Context(), s.ID(), client.AttachOptions{Receipt: &wrong, Direct: direct})
				return err
			}},
			{"over the budget of bytes", client.ReasonOverBudget, codes.ResourceExhausted, client.ErrOverBudget, func() error {
				_, err := attended(t, s, 0, project(rng(3), small[0], 12_000))
				return err
			}},
			{"over the budget of sessions", client.ReasonOverBudget, codes.ResourceExhausted, client.ErrOverBudget, func() error {
				second := open(t, c.Client, client.SessionOptions{Layers: small, Direct: direct})
				_, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: small, Direct: direct})
				if _, forked := s.Fork(t.Context()); !errors.Is(forked, client.ErrOverBudget) {
					t.Errorf("a fork: %v", forked)
				}
				if err := second.Drop(t.Context()); err != nil {
					t.Error(err)
				}
				return err
			}},
			{"a score that is not finite", client.ReasonNotFinite, codes.OutOfRange, client.ErrRefused, func() error {
				x := project(rng(4), small[0], 2)
				x.q[len(x.q)-1], x.k[len(x.k)-1] = math.MaxFloat32, math.MaxFloat32 // of one group, which one worker has
				_, err := attended(t, s, 0, x)
				return err
			}},
			{"a key that is not finite", client.ReasonInvalid, codes.InvalidArgument, client.ErrRefused, func() error {
				x := project(rng(5), small[0], 2)
				x.k[len(x.k)-1] = float32(math.NaN())
				_, err := attended(t, s, 0, x)
				return err
			}},
			{"a query that is not finite", client.ReasonInvalid, codes.InvalidArgument, client.ErrRefused, func() error {
				x := project(rng(6), small[0], 2)
				x.q[0] = float32(math.Inf(-1))
				_, err := attended(t, s, 0, x)
				return err
			}},
			{"a tree too large", client.ReasonInvalid, codes.InvalidArgument, client.ErrRefused, func() error {
				return s.Do(t.Context(), &client.Step{Layer: 0, Q: one.q, Mask: make([]bool, 4097), Context: make([]float32, 6*8)})
			}},
		} {
			t.Run(test.name, func(t *testing.T) {
				receipt, used := s.Receipt(), c.inUse(t)
				err := test.call()
				var refused *client.SessionError
				if !errors.As(err, &refused) || refused.Reason != test.reason || !errors.Is(err, test.is) || status.Code(err) != test.code || strings.Contains(err.Error(), "\n") {
					t.Fatalf("got %v (%s)", err, status.Code(err))
				}
				if after := s.Receipt(); after.Truncations != receipt.Truncations || !slices.EqualFunc(after.Layers, receipt.Layers, sameLayer) {
					t.Errorf("the receipt is %v, it was %v", after, receipt)
				}
				// What one worker has done and another has not is taken back with the next call.
				if err := s.Truncate(t.Context(), m.len(0)); err != nil {
					t.Fatal(err)
				}
				if after := s.Receipt(); !slices.EqualFunc(after.Layers, receipt.Layers, sameLayer) {
					t.Errorf("the receipt is %v, it was %v", after, receipt)
				}
				if now := c.inUse(t); !slices.Equal(now, used) {
					t.Errorf("in use are %v, they were %v", now, used)
				}
				goOn()
			})
		}

		// The same keys once more are another append than that which brought them, and nothing is appended.
		receipt, used := s.Receipt(), c.inUse(t)
		right := client.Tamper(s, func(k *client.Known) { k.Layers[0] = before.Layers[0] })
		_, err := attended(t, s, 0, last)
		right()
		var refused *client.SessionError
		if !errors.As(err, &refused) || refused.Reason != client.ReasonDifferent || !sameLayer(s.Receipt().Layers[0], receipt.Layers[0]) {
			t.Fatalf("the same keys again: %v", err)
		}
		if now := c.inUse(t); !slices.Equal(now, used) {
			t.Errorf("in use are %v, they were %v", now, used)
		}

		// Another client takes the session over. What it was told is what it has, and the first is refused.
		taken, err := other.Attach(t.Context(), s.ID(), client.AttachOptions{Receipt: &receipt, Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := attended(t, s, 0, one); !errors.Is(err, client.ErrTakenOver) || status.Code(err) != codes.FailedPrecondition {
			t.Errorf("got %v", err)
		}
		s = taken
		goOn()
	})
}

func sameLayer(a, b client.LayerReceipt) bool {
	return a.Length == b.Length && slices.Equal(a.Hashes, b.Hashes)
}

// TestRelayedFramesAreRefusedByName sends frames to a coordinator that its own client would not. Each is answered by name, or
// ends its lane alone where it is too large to be read; the session is as it was.
func TestRelayedFramesAreRefusedByName(t *testing.T) {
	c := startCounted(t, 2, worker.Config{})
	conn, err := grpc.NewClient(c.address, append(rpc.DialOptions(), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(1<<30)))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	id, sid := session.LaneID{1}, [16]byte{9}
	sessions := headwaterv1.NewSessionServiceClient(conn)
	wide := client.Layer{Heads: 8, KVHeads: 2, HeadDim: 8, VDim: 512}
	made, err := sessions.CreateSession(ctx, &headwaterv1.CreateSessionRequest{
		Session: sid[:], Epoch: &headwaterv1.Epoch{Counter: 1, Lane: id[:]},
		Config: &headwaterv1.SessionConfig{Layers: []*headwaterv1.SessionLayer{{NHeads: 8, NKvHeads: 2, HeadDim: 8, VDim: 512, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, Causal: true, WindowLeft: -1, WindowRight: -1}}},
	})
	if err != nil || len(made.GetState().GetHolders()) != 2 {
		t.Fatalf("%v: %v", made, err)
	}
	stream, err := session.Open(ctx, conn, id)
	if err != nil {
		t.Fatal(err)
	}
	m, r := newModel([]client.Layer{wide}), rng(7)
	hashes, chain := []uint64{0, 0}, uint64(0)
	var request session.Request
	var response session.Response
	// right makes a step of one token, whose tensors by group are those by token.
	right := func() tokens {
		x := project(r, wide, 1)
		request.ID++
		request.Step = session.Step{
			Session: sid, Epoch: 1, Length: uint64(m.len(0)), Hashes: slices.Clone(hashes), Append: 1, Attend: 1, QueryPosition: uint64(m.len(0)),
			Encoding: headwaterv1.StorageType_STORAGE_TYPE_F32, Codec: headwaterv1.StepCodec_STEP_CODEC_RAW, AppendID: request.ID, Chain: chain,
		}
		payload := slices.Concat(x.q, x.k, x.v)
		request.Payload = rpc.NewBuffer(4 * len(payload))
		copy(request.Payload.Floats(), payload)
		return x
	}
	goOn := func() {
		t.Helper()
		x := right()
		m.append(0, x)
		want, _ := m.attend(t, 0, x.q, m.len(0)-1, nil)
		if err := stream.Send(&request); err != nil {
			t.Fatal(err)
		}
		if err := stream.Recv(&response); err != nil || response.Result.Err != nil || response.ID != request.ID {
			t.Fatalf("got %v, %v", response.Result.Err, err)
		}
		equal(t, "context", response.Payload.Floats()[:len(want)], want)
		hashes, chain = slices.Clone(response.Result.Hashes), response.Result.Chain
	}
	goOn()
	for name, spoil := range map[string]func(m *session.Step){
		"zero tokens":            func(m *session.Step) { m.Append, m.Attend = 0, 0 },
		"2³¹ to append":          func(m *session.Step) { m.Append = 1 << 31 },
		"2³¹ to attend":          func(m *session.Step) { m.Attend = 1 << 31 },
		"2³² - 1 of both":        func(m *session.Step) { m.Append, m.Attend = math.MaxUint32, math.MaxUint32 },
		"a query at 2⁶³":         func(m *session.Step) { m.QueryPosition = 1 << 63 },
		"a layer too many":       func(m *session.Step) { m.Layer = 1 },
		"a group too many":       func(m *session.Step) { m.Hashes = append(m.Hashes, 1) },
		"a group too few":        func(m *session.Step) { m.Hashes = m.Hashes[:1] },
		"another encoding":       func(m *session.Step) { m.Encoding = headwaterv1.StorageType_STORAGE_TYPE_F16 },
		"no codec":               func(m *session.Step) { m.Codec = 0 },
		"a tree too large":       func(m *session.Step) { m.Tree, m.TreeMask = 4097, make([]byte, 513) },
		"tokens without a token": func(m *session.Step) { m.Tokens = []uint32{1, 2, 3} },
		// Each worker's answer would fit a frame, both together do not.
		"an answer too large": func(m *session.Step) {
			m.Attend = 3000
			request.Payload.Free()
			request.Payload = rpc.NewBuffer(4 * (3000*8*8 + 2*8 + 2*512))
			clear(request.Payload.Bytes())
		},
	} {
		used := c.inUse(t)
		right()
		spoil(&request.Step)
		if err := stream.Send(&request); err != nil {
			t.Fatal(err)
		}
		if err := stream.Recv(&response); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if e := response.Result.Err; e == nil || e.Reason() != session.Invalid || response.Payload != nil {
			t.Errorf("%s: got %v", name, e)
		}
		if now := c.inUse(t); !slices.Equal(now, used) {
			t.Errorf("%s: in use are %v, they were %v", name, now, used)
		}
		goOn()
	}
	// A frame beyond the limit, from a client that does not know it.
	raw, err := conn.NewStream(metadata.AppendToOutgoingContext(ctx, session.MetadataKey, session.LaneID{2}.String()),
		&grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, headwaterv1.SessionService_Lane_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.SendMsg(&headwaterv1.LaneRequest{Id: 1, Payload: make([]byte, rpc.MaxMessageBytes)}); err != nil {
		t.Fatal(err)
	}
	if err := raw.RecvMsg(&headwaterv1.LaneResponse{}); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "cut the step into fewer tokens") {
		t.Errorf("got %v", err)
	}
	goOn()
}
