package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// What a cluster needs to be observed.
var adminPort = []string{"--admin", "127.0.0.1:0"}

// sampled are the variables by which one step in a hundred is traced.
var sampled = []string{"OTEL_TRACES_SAMPLER=traceidratio", "OTEL_TRACES_SAMPLER_ARG=0.01"}

// traces is an OpenTelemetry collector that keeps nothing.
type traces struct {
	collector.UnimplementedTraceServiceServer
}

// Export implements the service.
func (traces) Export(context.Context, *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	return &collector.ExportTraceServiceResponse{}, nil
}

// swallowTraces serves a collector until stop is called.
func swallowTraces() (endpoint string, stop func() error, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, traces{})
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	return "http://" + listener.Addr().String(), func() error {
		server.Stop()
		return <-ended
	}, nil
}

// way is one cluster whose steps are timed.
type way struct {
	*cluster
	session *client.Session
	step    *client.Step
}

// startWay starts a cluster of one worker, and a session with positions in it, through the coordinator or directly.
func startWay(ctx context.Context, o localcluster.Options, m *model, positions int, direct bool) (_ *way, err error) {
	o.Workers, o.Threads, o.Memory = 1, 1, 2<<30
	local, err := localcluster.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	w := &way{cluster: &cluster{Cluster: local}}
	if w.client, err = local.Dial(); err != nil {
		return nil, errors.Join(err, local.Stop(ctx))
	}
	layer := client.Layer{Heads: heads, KVHeads: kvHeads, HeadDim: headDim, Storage: storage}
	w.session, err = w.client.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer}, Codec: client.Raw, Direct: direct})
	if err == nil {
		err = w.session.Do(ctx, m.step(w.session, 0, positions-1, false))
	}
	if err != nil {
		return nil, errors.Join(err, w.stop(ctx))
	}
	w.step = m.step(w.session, 0, 1, true)
	return w, nil
}

// steps times n steps that see so many positions and a few more, and returns the seconds of each.
func (w *way) steps(ctx context.Context, n, positions int) ([]float64, error) {
	if err := w.session.Truncate(ctx, positions-1); err != nil {
		return nil, err
	}
	took := make([]float64, n)
	for i := range took {
		began := time.Now()
		if err := w.session.Do(ctx, w.step); err != nil {
			return nil, err
		}
		took[i] = time.Since(began).Seconds()
	}
	return took, nil
}

// observed measures what a step through a coordinator costs more where coordinator and worker are observed. Two clusters run side
// by side and take turns, which are so short that both meet the same minute: a round is the median over pairs of turns.
func observed(ctx context.Context, f *figures) (err error) {
	const (
		positions = 128
		pairs     = 100
		each      = 16
	)
	program, err := filepath.Abs(filepath.Join(f.bin, "coord"))
	if err != nil {
		return err
	}
	endpoint, stop, err := swallowTraces()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	m := newModel(positions)
	var ways [2]*way
	for i := range ways {
		o := localcluster.Options{Command: []string{program}}
		if i == 1 {
			o.CoordinatorArgs, o.WorkerArgs = adminPort, adminPort
			o.Command = append([]string{"env", "OTEL_EXPORTER_OTLP_ENDPOINT=" + endpoint}, append(sampled, program)...)
		}
		if ways[i], err = startWay(ctx, o, m, positions, false); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, ways[i].stop(ctx)) }()
	}
	return takeTurns(ctx, f, "metrics_cost", ways, 2*f.rounds, positions, pairs, each)
}

// takeTurns measures a figure: the steps of the second of two ways / those of the first, which take turns.
func takeTurns(ctx context.Context, f *figures, name string, ways [2]*way, rounds, positions, pairs, each int) error {
	for round := range rounds + 1 {
		var ratios []float64
		var took [2][]float64
		for pair := range pairs {
			var one [2]float64
			for k := range ways {
				i := (k + pair) % len(ways) // neither is always first
				seconds, err := ways[i].steps(ctx, each, positions)
				if err != nil {
					return err
				}
				one[i] = median(seconds)
				took[i] = append(took[i], one[i])
			}
			ratios = append(ratios, one[1]/one[0])
		}
		if round > 0 { // the first one warms up
			f.add(name, median(ratios), map[string]float64{"without_seconds": median(took[0]), "with_seconds": median(took[1])})
		}
	}
	return nil
}

// viewed measures the slowest steps through a coordinator while many look at its dashboard, beside those while nobody does.
func viewed(ctx context.Context, f *figures) (err error) {
	const (
		positions = 128
		viewers   = 100
		turns     = 2
		parts     = 120
		each      = 16
	)
	program, err := filepath.Abs(filepath.Join(f.bin, "coord"))
	if err != nil {
		return err
	}
	w, err := startWay(ctx, localcluster.Options{Command: []string{program}, CoordinatorArgs: adminPort, WorkerArgs: adminPort}, newModel(positions), positions, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.stop(ctx)) }()
	for round := range f.rounds + 1 {
		var took [2][]float64
		for turn := range turns {
			for k := range took {
				i := (k + turn) % len(took)
				leave := func() {}
				if i == 1 {
					if leave, err = look(ctx, w.Admin(-1), viewers); err != nil {
						return err
					}
				}
				for range parts {
					seconds, err := w.steps(ctx, each, positions)
					if err != nil {
						leave()
						return err
					}
					took[i] = append(took[i], seconds...)
				}
				leave()
			}
		}
		without, with := p99(took[0]), p99(took[1])
		if round > 0 {
			f.add("viewers_cost", with/without, map[string]float64{"without_p99_seconds": without, "with_p99_seconds": with, "without_seconds": median(took[0]), "with_seconds": median(took[1])})
		}
	}
	return nil
}

// p99 is what one in a hundred exceeds.
func p99(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)*99/100]
}

// look lets viewers look at a dashboard until leave is called.
func look(ctx context.Context, at string, viewers int) (leave func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var reading sync.WaitGroup
	transport := &http.Transport{}
	leave = func() {
		cancel()
		reading.Wait()
		transport.CloseIdleConnections()
	}
	for range viewers {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/events", nil)
		if err != nil {
			leave()
			return nil, err
		}
		answer, err := (&http.Client{Transport: transport}).Do(request)
		if err != nil {
			leave()
			return nil, err
		}
		reading.Go(func() {
			defer answer.Body.Close()
			_, _ = io.Copy(io.Discard, answer.Body) // until leave
		})
		if answer.StatusCode != http.StatusOK {
			leave()
			return nil, fmt.Errorf("look at the dashboard: %s", answer.Status)
		}
	}
	return leave, nil
}
