package coordinator_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/jobfile"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
)

// withMatrixUnits starts a cluster whose workers say whether they have a matrix unit. All compute the same bits in each arithmetic.
func withMatrixUnits(t *testing.T, has ...bool) (*cluster, []*atomic.Bool) {
	t.Helper()
	var all []workerOptions
	var say []*atomic.Bool
	for _, matrix := range has {
		one := &atomic.Bool{}
		one.Store(matrix)
		all, say = append(all, workerOptions{matrix: one}), append(say, one)
	}
	return startCluster(t, clusterOptions{workers: all}), say
}

// bf16Auto leaves the arithmetic of a layer of as many groups to the coordinator.
func bf16Auto(groups int) []client.Layer {
	return []client.Layer{{Heads: 2 * groups, KVHeads: groups, HeadDim: 16, Storage: tensor.BF16, Arithmetic: attention.Auto}}
}

func mustOpen(t *testing.T, c *cluster, o client.SessionOptions) *client.Session {
	t.Helper()
	s, err := c.OpenSession(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestAutoSuitsAllWhoHoldTheSession: tiles if each holder has a matrix unit, chain if one has none; what is not stored as bf16 is in
// chain, and what was asked for by name is as it was. The client, whoever looks and whatever is made of the session have the same, and
// the contexts are those of a session that named it.
func TestAutoSuitsAllWhoHoldTheSession(t *testing.T) {
	one := startCluster(t, clusterOptions{workers: workers(1)})
	for _, has := range [][]bool{{true, true}, {true, false}, {false, false}} {
		for _, direct := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, direct %v", has, direct), func(t *testing.T) {
				c, _ := withMatrixUnits(t, has...)
				want := []attention.Arithmetic{attention.Chain, attention.Chain, attention.TilesBF16, attention.Tiles}
				if has[1] {
					want[0] = attention.Tiles
				}
				layers := slices.Repeat(bf16Auto(2), 4)
				layers[1].Storage, layers[2].Arithmetic, layers[3].Arithmetic = tensor.F16, attention.TilesBF16, attention.Tiles
				named := slices.Clone(layers)
				for i := range named {
					named[i].Arithmetic = want[i]
				}
				s := mustOpen(t, c, client.SessionOptions{Layers: layers, Direct: direct})
				both := &twin{s, mustOpen(t, one, client.SessionOptions{Layers: named}), layers, 1}
				if err := both.step(t, 70); err != nil {
					t.Fatal(err)
				}
				checkAuto(t, c, s, want)
				fork, err := s.Fork(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				var file bytes.Buffer
				if err := fork.Snapshot(t.Context(), &file, nil); err != nil {
					t.Fatal(err)
				}
				back, err := c.RestoreSession(t.Context(), &file, client.RestoreOptions{Direct: direct})
				if err != nil {
					t.Fatal(err)
				}
				checkAuto(t, c, fork, want)
				checkAuto(t, c, back, want)
				told, err := c.Status(t.Context())
				if err != nil || told.Auto != want[0] {
					t.Errorf("the coordinator says that auto is %s: %v", told.Auto, err)
				}
			})
		}
	}
}

// checkAuto holds what a session's client and who asks the cluster are told to what is wanted.
func checkAuto(t *testing.T, c *cluster, s *client.Session, want []attention.Arithmetic) {
	t.Helper()
	var got []attention.Arithmetic
	for _, l := range s.Layers() {
		got = append(got, l.Arithmetic)
	}
	found, err := c.FindSession(t.Context(), s.ID())
	if err != nil || !slices.Equal(got, want) || !slices.Equal(found.Arithmetics, want) {
		t.Fatalf("layers in %v, on the cluster in %v, want %v: %v", got, found, want, err)
	}
}

// TestAutoAsksTheHoldersAlone: what workers have that hold no part of the session does not matter.
func TestAutoAsksTheHoldersAlone(t *testing.T) {
	c, _ := withMatrixUnits(t, true, false)
	seen := map[string]bool{}
	for len(seen) < 2 {
		s := mustOpen(t, c, client.SessionOptions{Layers: bf16Auto(2), Workers: 1})
		found, err := c.FindSession(t.Context(), s.ID())
		if err != nil {
			t.Fatal(err)
		}
		seen[found.Holders[0].Name] = true
		if tiles := found.Arithmetics[0] == attention.Tiles; len(found.Holders) != 1 || tiles != (found.Holders[0].Name == "w0") {
			t.Errorf("at %s: in %s", found.Holders[0].Name, found.Arithmetics[0])
		}
	}
	// A copy is held, too.
	s := mustOpen(t, c, client.SessionOptions{Layers: bf16Auto(1), Workers: 2, Replicas: 1})
	checkAuto(t, c, s, []attention.Arithmetic{attention.Chain})
}

// TestWhatAutoTookStays: a session in tiles that moves to a worker without a matrix unit has the same bits there.
func TestWhatAutoTookStays(t *testing.T) {
	one := startCluster(t, clusterOptions{workers: workers(1)})
	c, say := withMatrixUnits(t, true, true)
	named := bf16Auto(2)
	named[0].Arithmetic = attention.Tiles
	s := &twin{mustOpen(t, c, client.SessionOptions{Layers: bf16Auto(2), Workers: 1}), mustOpen(t, one, client.SessionOptions{Layers: named}), named, 5}
	if err := s.step(t, 100); err != nil {
		t.Fatal(err)
	}
	found, err := c.FindSession(t.Context(), s.ID())
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range c.workers {
		say[i].Store(w.Name == found.Holders[0].Name)
	}
	if err := c.Drain(t.Context(), found.Holders[0].Name, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.step(t, 3); err != nil {
		t.Fatal(err)
	}
	checkAuto(t, c, s.Session, []attention.Arithmetic{attention.Tiles})
	moved, err := c.FindSession(t.Context(), s.ID())
	if err != nil || moved.Holders[0].Name == found.Holders[0].Name {
		t.Errorf("it is at %v still: %v", moved.Holders, err)
	}
}

// TestARepeatedCreateFindsWhatAutoTook: the same request again finds the session that it has made, whatever workers say by then, also
// at a coordinator that does not remember it. A session that could not have come of the request is refused.
func TestARepeatedCreateFindsWhatAutoTook(t *testing.T) {
	c, say := withMatrixUnits(t, true, true)
	conn := func() headwaterv1.SessionServiceClient {
		conns := rpc.NewConns(nil, rpc.DialOptions()...)
		one, err := conns.Use(rpc.Peer{Name: "coord", Address: c.Address()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { one.Release(); _ = conns.Close() })
		return headwaterv1.NewSessionServiceClient(one)
	}
	create := func(id byte, l client.Layer) (headwaterv1.Arithmetic, error) {
		m := &headwaterv1.SessionLayer{NHeads: uint32(l.Heads), NKvHeads: uint32(l.KVHeads), HeadDim: 16, VDim: 16, Causal: true, WindowLeft: -1, WindowRight: -1, Arithmetic: layerproto.Arithmetic(l.Arithmetic)}
		resp, err := conn().CreateSession(t.Context(), &headwaterv1.CreateSessionRequest{
			Session: bytes.Repeat([]byte{id}, 16), Epoch: &headwaterv1.Epoch{Counter: 1, Lane: bytes.Repeat([]byte{7}, 16)},
			Config: &headwaterv1.SessionConfig{Layers: []*headwaterv1.SessionLayer{m}},
		})
		if err != nil {
			return 0, err
		}
		return resp.GetState().GetConfig().GetLayers()[0].GetArithmetic(), nil
	}
	auto, lossy := bf16Auto(2)[0], bf16Auto(2)[0]
	lossy.Arithmetic = attention.TilesBF16
	for again := range 3 {
		if got, err := create(1, auto); err != nil || got != headwaterv1.Arithmetic_ARITHMETIC_TILES {
			t.Fatalf("time %d: %s, %v", again, got, err)
		}
		for i := range say {
			say[i].Store(false)
		}
		if again == 1 {
			c.stop()
			c.start(t, coordinator.Config{})
		}
	}
	if got, err := create(2, auto); err != nil || got != headwaterv1.Arithmetic_ARITHMETIC_UNSPECIFIED {
		t.Errorf("another one is in %s: %v", got, err)
	}
	if _, err := create(3, lossy); err != nil {
		t.Fatal(err)
	}
	if _, err := create(3, auto); err == nil || !isReason(err, session.Exists) {
		t.Errorf("a lossy session is taken for what a coordinator took: %v", err)
	}
}

func isReason(err error, reason session.Reason) bool {
	e, ok := session.FromError(err)
	return ok && e.Reason() == reason
}

// TestAutoFindsPrefixesThatSuit: a prefix is found in the arithmetic that was taken, at workers that it suits.
func TestAutoFindsPrefixesThatSuit(t *testing.T) {
	c, say := withMatrixUnits(t, true, true)
	tokens := make([]uint32, 100)
	options := client.SessionOptions{Layers: bf16Auto(1), Tokens: tokens, Workers: 1, Replicas: -1}
	open := func(o client.SessionOptions) (at string, a attention.Arithmetic, prefix int) {
		t.Helper()
		s := mustOpen(t, c, o)
		found, err := c.FindSession(t.Context(), s.ID())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Drop(t.Context()); err != nil {
			t.Fatal(err)
		}
		return found.Holders[0].Name, found.Arithmetics[0], s.Prefix()
	}
	drawn0, _, _ := open(options)
	other := map[string]string{"w0": "w1", "w1": "w0"}[drawn0]
	matrix := map[string]*atomic.Bool{"w0": say[0], "w1": say[1]}
	if err := c.Drain(t.Context(), drawn0, nil); err != nil {
		t.Fatal(err)
	}
	leaves := options
	leaves.Layers = bf16Auto(1)
	leaves.Layers[0].Arithmetic = attention.Tiles
	s := mustOpen(t, c, leaves)
	row := make([]float32, 100*16)
	if err := s.Do(t.Context(), &client.Step{K: row, V: row, Tokens: tokens}); err != nil {
		t.Fatal(err)
	}
	if err := s.Drop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Undrain(t.Context(), drawn0); err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		drawn, other bool
		at           string
		a            attention.Arithmetic
		prefix       int
	}{
		{true, true, other, attention.Tiles, 64},
		{true, false, drawn0, attention.Tiles, 0}, // the prefix lies where tiles are slower
		{false, true, drawn0, attention.Chain, 0}, // it is of another arithmetic
		{false, false, drawn0, attention.Chain, 0},
	} {
		matrix[drawn0].Store(p.drawn)
		matrix[other].Store(p.other)
		if at, a, prefix := open(options); at != p.at || a != p.a || prefix != p.prefix {
			t.Errorf("%v and %v: at %s in %s with %d positions, want at %s in %s with %d", p.drawn, p.other, at, a, prefix, p.at, p.a, p.prefix)
		}
	}
}

// autoJob writes a job that leaves the arithmetic of two of its problems to the coordinator.
func autoJob(t *testing.T, options string) string {
	t.Helper()
	m := newMaker(11)
	for i, dtype := range []tensor.DType{tensor.BF16, tensor.BF16, tensor.BF16, tensor.F16} {
		prefix := fmt.Sprintf("layers.%d.", i)
		m.f32(prefix+"q", 1, 9, 4, 16)
		m.as(dtype, prefix+"k", 70, 2, 16)
		m.as(dtype, prefix+"v", 70, 2, 16)
	}
	return m.write(t, options)
}

const autoOptions = `{"arithmetic":"auto","problems":{"layers.2.":{"arithmetic":"tiles-bf16"}}}`

// sameOnes says whether both have the same arithmetics, each once.
func sameOnes(a, b []attention.Arithmetic) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// TestAutoOfAJobSuitsAllWorkers: its result, and what is said of it, are those of the job that names what was taken.
func TestAutoOfAJobSuitsAllWorkers(t *testing.T) {
	for _, has := range [][]bool{{true, true}, {true, false}} {
		c, _ := withMatrixUnits(t, has...)
		taken := attention.Chain
		if has[1] {
			taken = attention.Tiles
		}
		job, got := c.run(t, client.SubmitOptions{Path: autoJob(t, autoOptions)})
		named := fmt.Sprintf(`{"problems":{"layers.0.":{"arithmetic":%q},"layers.1.":{"arithmetic":%[1]q},"layers.2.":{"arithmetic":"tiles-bf16"}}}`, taken)
		wanted, want := c.run(t, client.SubmitOptions{Path: autoJob(t, named)})
		same(t, taken.String(), want, got)
		if !slices.Contains(job.Arithmetics, taken) || !slices.Equal(job.Arithmetics, wanted.Arithmetics) {
			t.Errorf("%v: the job says %v, the one that names it %v", has, job.Arithmetics, wanted.Arithmetics)
		}
		var plan struct {
			Layers []struct{ Arithmetic string }
		}
		if err := json.Unmarshal(job.Report.Plan, &plan); err != nil {
			t.Fatal(err)
		}
		var planned []string
		for _, l := range plan.Layers {
			planned = append(planned, l.Arithmetic)
		}
		if !slices.Equal(planned, []string{taken.String(), taken.String(), "tiles-bf16", "chain"}) {
			t.Errorf("%v: the plan says %v", has, planned)
		}
		if said := jobfile.ResultArithmetics(got.Metadata()); !sameOnes(said, job.Arithmetics) {
			t.Errorf("%v: the result says %v, the job %v", has, said, job.Arithmetics)
		}
		// Overrides leave the choice, too, and win over the file's.
		_, over := c.run(t, client.SubmitOptions{Path: autoJob(t, `{"arithmetic":"tiles-bf16","problems":{"layers.3.":{"arithmetic":"chain"}}}`), Overrides: []byte(autoOptions)})
		same(t, "overridden", want, over)
		var told struct {
			Options struct {
				Problems map[string]struct{ Arithmetic string }
			}
		}
		if err := json.Unmarshal([]byte(got.Metadata()["headwater"]), &told); err != nil {
			t.Fatal(err)
		}
		if a := told.Options.Problems["layers.0."].Arithmetic; a != map[attention.Arithmetic]string{attention.Tiles: "tiles"}[taken] {
			t.Errorf("%v: the result says %q", has, a)
		}
	}
}

// TestAKeyFindsWhatAutoTook: the same submission again is the same job, whatever workers say by then; one that names what was taken is
// it as well, and one that names another arithmetic is not.
func TestAKeyFindsWhatAutoTook(t *testing.T) {
	c, say := withMatrixUnits(t, true, true)
	path := autoJob(t, `{}`)
	submit := func(arithmetic string) (*client.Job, error) {
		overrides := fmt.Sprintf(`{"problems":{"layers.0.":{"arithmetic":%q}}}`, arithmetic)
		return c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: "k", Overrides: []byte(overrides)})
	}
	first, err := submit("auto")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, arithmetic := range []string{"auto", "tiles"} {
			if again, err := submit(arithmetic); err != nil || again.ID != first.ID || again.ContentHash != first.ContentHash {
				t.Errorf("%s: %v, %v", arithmetic, again, err)
			}
		}
		if _, err := submit("chain"); status.Code(unwrapAll(err)) != codes.AlreadyExists {
			t.Errorf("chain: %v", err)
		}
		say[0].Store(false)
	}
}

// TestWorkersRefuseAuto: nothing is made with it, and the refusal names it.
func TestWorkersRefuseAuto(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(1)})
	conns := rpc.NewConns(nil, rpc.DialOptions()...)
	conn, err := conns.Use(rpc.Peer{Name: "w0", Address: c.workers[0].Address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Release(); _ = conns.Close() })
	layer := &headwaterv1.SessionLayer{NHeads: 1, NKvHeads: 1, HeadDim: 4, VDim: 4, WindowLeft: -1, WindowRight: -1, Arithmetic: headwaterv1.Arithmetic_ARITHMETIC_AUTO}
	_, err = headwaterv1.NewSessionServiceClient(conn).CreateSession(t.Context(), &headwaterv1.CreateSessionRequest{
		Session: bytes.Repeat([]byte{1}, 16), Epoch: &headwaterv1.Epoch{Counter: 1, Lane: bytes.Repeat([]byte{7}, 16)},
		Config: &headwaterv1.SessionConfig{Layers: []*headwaterv1.SessionLayer{layer}}, Held: []*headwaterv1.HeldLayer{{Groups: []uint32{0}}},
	})
	if !isReason(err, session.Invalid) || !strings.Contains(err.Error(), "arithmetic auto") {
		t.Errorf("a session: %v", err)
	}
	run, err := headwaterv1.NewWorkerServiceClient(conn).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	problem := &headwaterv1.Problem{NHeads: 1, NKvHeads: 1, HeadDim: 4, VDim: 4, Tokens: 1, KvLen: 1, WindowLeft: -1, WindowRight: -1, Scale: 1, Arithmetic: headwaterv1.Arithmetic_ARITHMETIC_AUTO}
	open := &headwaterv1.Open{JobId: "x", Codec: headwaterv1.ContextCodec_CONTEXT_CODEC_EXACT, Problems: []*headwaterv1.Problem{problem, proto.CloneOf(problem)}}
	if err := run.Send(&headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Open{Open: open}}); err != nil {
		t.Fatal(err)
	}
	if _, err := run.Recv(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "arithmetic auto") {
		t.Errorf("a job: %v", err)
	}
}
