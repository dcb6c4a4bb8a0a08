package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"

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

// observed measures what a step through a coordinator costs more where coordinator and worker are observed. Two clusters run side
// by side and take turns.
func observed(ctx context.Context, f *figures) (err error) {
	const (
		positions = 128
		turns     = 10
		each      = 200
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
	var ways [2]struct {
		session *client.Session
		step    *client.Step
	}
	for i := range ways {
		o := localcluster.Options{Workers: 1, Threads: 1, Memory: 2 << 30, Command: []string{program}}
		if i == 1 {
			o.CoordinatorArgs, o.WorkerArgs = adminPort, adminPort
			o.Command = append([]string{"env", "OTEL_EXPORTER_OTLP_ENDPOINT=" + endpoint}, append(sampled, program)...)
		}
		local, err := localcluster.Start(ctx, o)
		if err != nil {
			return err
		}
		c := &cluster{Cluster: local}
		if c.client, err = client.Dial(local.Address()); err != nil {
			return errors.Join(err, local.Stop(ctx))
		}
		defer func() { err = errors.Join(err, c.stop(ctx)) }()
		layer := client.Layer{Heads: heads, KVHeads: kvHeads, HeadDim: headDim, Storage: storage}
		s, err := c.client.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer}, Codec: client.Raw})
		if err != nil {
			return err
		}
		if err := s.Do(ctx, m.step(s, 0, positions-1, false)); err != nil {
			return err
		}
		ways[i].session, ways[i].step = s, m.step(s, 0, 1, true)
	}
	for round := range f.rounds + 1 {
		var took [2][]float64
		for turn := range turns {
			for k := range ways {
				i := (k + turn) % len(ways) // neither is always first
				w := ways[i]
				if err := w.session.Truncate(ctx, positions-1); err != nil {
					return err
				}
				seconds, err := times(each/turns, func() error { return w.session.Do(ctx, w.step) })
				if err != nil {
					return err
				}
				took[i] = append(took[i], seconds)
			}
		}
		if round == 0 {
			continue // to warm up
		}
		without, with := median(took[0]), median(took[1])
		f.add("metrics_cost", with/without, map[string]float64{"without_seconds": without, "with_seconds": with})
	}
	return nil
}
