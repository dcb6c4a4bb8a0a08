package readiness

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math"
	"net"
	"testing"

	"github.com/google/uuid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	"headwater.example/internal/testkit/await"
	"headwater.example/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestAWorkerAttendsRightly holds the sum against a worker, and the context that it is of against attention in float64.
func TestAWorkerAttendsRightly(t *testing.T) {
	w, err := worker.New(worker.Config{Name: "w1", Boot: uuid.UUID{1}, Weight: 1, Budget: 64 << 20, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(w.ServerOptions()...)
	w.Register(rpc.Registrar(server))
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conns := fanout.NewConns(nil, rpc.DialOptions()...)
	t.Cleanup(func() {
		_ = conns.Close()
		server.Stop()
		if err := await.One(t, served, "the end of the server"); err != nil {
			t.Error(err)
		}
		w.Close()
	})
	probe := NewProbe(conns, "w1", listener.Addr().String())
	defer probe.Close()
	for range 3 { // it drops its session each time
		if err := probe.Attend(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := probe.attend(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	likeFloat64(t, got)
	got.context[3]++
	if got.sum() == sum {
		t.Error("another context has the same sum")
	}
	if list, err := conns.List(t.Context(), "w1", listener.Addr().String(), nil); err != nil || len(list.GetSessions()) != 0 {
		t.Errorf("it leaves %d sessions, %v", len(list.GetSessions()), err)
	}
}

// all reads from the first row on.
func all(fill func(dst []byte, group, from int)) func([]byte, int) {
	return func(dst []byte, group int) { fill(dst, group, 0) }
}

// likeFloat64 compares the context that the sum is of with attention in float64.
func likeFloat64(t *testing.T, got *work) {
	t.Helper()
	read := func(fill func([]byte, int), n int) []float64 {
		b := make([]byte, 4*n)
		fill(b, 0)
		x := make([]float64, n)
		for i := range x {
			x[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:])))
		}
		return x
	}
	q, k, v := read(got.Query, heads*dim), read(all(got.Key), positions*dim), read(all(got.Value), positions*dim)
	if len(got.context) != heads*dim || len(got.lse) != heads {
		t.Fatalf("%d elements of contexts, %d of LSE", len(got.context), len(got.lse))
	}
	for h := range heads {
		var total float64
		context := make([]float64, dim)
		for p := range positions {
			var score float64
			for i := range dim {
				score += q[h*dim+i] * k[p*dim+i]
			}
			weight := math.Exp(score / math.Sqrt(dim))
			total += weight
			for i := range context {
				context[i] += weight * v[p*dim+i]
			}
		}
		for i := range context {
			if is, want := float64(got.context[h*dim+i]), context[i]/total; math.Abs(is-want) > 1e-6 {
				t.Errorf("head %d, element %d: %g, and %g in float64", h, i, is, want)
			}
		}
		if want := math.Log(total); math.Abs(float64(got.lse[h])-want) > 1e-5 {
			t.Errorf("head %d: LSE %g, and %g in float64", h, got.lse[h], want)
		}
	}
}

// outcome is what a look finds.
type outcome struct {
	attend, whole error
	ready         bool
}

func TestFirstWholeThenBusy(t *testing.T) {
	busy := session.Errorf(session.Busy, "it is busy")
	refused := errors.New("not whole")
	dial := dialNobody(t)
	for name, looks := range map[string][]outcome{
		"nothing is missing":            {{ready: true}},
		"first it has to attend":        {{attend: busy}, {ready: true}},
		"then all has to be there":      {{whole: refused}, {whole: refused}, {ready: true}},
		"later it may miss something":   {{ready: true}, {whole: refused, ready: true}},
		"later it may be busy":          {{ready: true}, {attend: busy, ready: true}, {attend: context.DeadlineExceeded, ready: true}},
		"wrong bits are never right":    {{ready: true}, {attend: ErrWrong}, {attend: busy}, {ready: true}},
		"a port that does not answer":   {{ready: true}, {attend: dial}, {whole: refused, ready: true}},
		"wrong bits from the beginning": {{attend: ErrWrong}, {attend: ErrWrong}},
	} {
		t.Run(name, func(t *testing.T) {
			var now outcome
			h := health.NewServer()
			r := &Readiness{
				Health: h, Log: slog.New(slog.DiscardHandler),
				Attend: func(context.Context) error { return now.attend },
				Whole:  func(context.Context) error { return now.whole },
			}
			for i, now2 := range looks {
				now = now2
				if got := r.Look(t.Context()); got != now.ready {
					t.Errorf("look %d: ready is %v", i, got)
				}
				resp, err := h.Check(t.Context(), &healthv1.HealthCheckRequest{Service: Service})
				if err != nil || (resp.GetStatus() == healthv1.HealthCheckResponse_SERVING) != now.ready {
					t.Errorf("look %d: probes are told %v, %v", i, resp.GetStatus(), err)
				}
			}
		})
	}
}

// dialNobody returns the error of an Attend at a port that nobody has.
func dialNobody(t *testing.T) error {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	conns := fanout.NewConns(nil, rpc.DialOptions()...)
	defer conns.Close()
	err = NewProbe(conns, "w1", address).Attend(t.Context())
	if err == nil {
		t.Fatal("nobody attends")
	}
	return err
}
