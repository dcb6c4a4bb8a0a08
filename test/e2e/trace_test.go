//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// collected is an OTLP receiver.
type collected struct {
	collector.UnimplementedTraceServiceServer

	mu    sync.Mutex
	spans map[string][]*otlp.Span // by service
	more  chan struct{}           // one element once there are more
}

// Export implements the service.
func (c *collected) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range r.GetResourceSpans() {
		service := ""
		for _, a := range of.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, s := range of.GetScopeSpans() {
			c.spans[service] = append(c.spans[service], s.GetSpans()...)
		}
	}
	select {
	case c.more <- struct{}{}:
	default:
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// until waits until something holds of the spans.
func (c *collected) until(t *testing.T, holds func(map[string][]*otlp.Span) bool) {
	t.Helper()
	ctx := bounded(t)
	for {
		c.mu.Lock()
		done := holds(c.spans)
		c.mu.Unlock()
		if done {
			return
		}
		select {
		case <-c.more:
		case <-ctx.Done():
			t.Fatalf("it did not come to hold of %d and %d spans", len(c.spans["headwater-coordinator"]), len(c.spans["headwater-worker"]))
		}
	}
}

// collect starts a receiver, and returns its endpoint.
func collect(t *testing.T) (*collected, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collected{spans: map[string][]*otlp.Span{}, more: make(chan struct{}, 1)}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, c)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return c, "http://" + through(t, listener.Addr().String())
}

// through lets what goes to a receiver pass the OpenTelemetry Collector, where HEADWATER_COLLECTOR names it, and returns the address
// that spans are sent to.
func through(t *testing.T, receiver string) (endpoint string) {
	t.Helper()
	program := os.Getenv("HEADWATER_COLLECTOR")
	if program == "" {
		return receiver
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endpoint = free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	collector := exec.Command(program, "--config", fmt.Sprintf(`yaml:{
		receivers: {otlp: {protocols: {grpc: {endpoint: %q}}}},
		exporters: {otlp_grpc: {endpoint: %q, tls: {insecure: true}}},
		service: {telemetry: {metrics: {level: none}}, pipelines: {traces: {receivers: [otlp], exporters: [otlp_grpc]}}},
	}`, endpoint, receiver))
	said := &logs{}
	collector.Stdout, collector.Stderr = said, said
	if err := collector.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer time.AfterFunc(patience, func() { _ = collector.Process.Kill() }).Stop()
		if err := collector.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		if err := collector.Wait(); err != nil || t.Failed() {
			t.Errorf("the collector ended with %v and said:\n%s", err, said.text.String())
		}
	})
	return endpoint
}

// TestAStepIsOneTrace lets a traced program step a session over two workers: all spans are of its trace, and hang together.
func TestAStepIsOneTrace(t *testing.T) {
	spans, endpoint := collect(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
	t.Setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
	c := start(t, localcluster.Options{Workers: 2})
	g, layers := generate(t, c)
	s, err := c.OpenSession(g.ctx, client.SessionOptions{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	g.step(s, 0, 1) // not traced
	caller := trace.NewSpanContext(trace.SpanContextConfig{TraceID: [16]byte{15: 7}, SpanID: [8]byte{7: 9}, TraceFlags: trace.FlagsSampled})
	g.ctx = trace.ContextWithSpanContext(g.ctx, caller)
	g.step(s, 1, 2)
	steps := len(layers)
	spans.until(t, func(of map[string][]*otlp.Span) bool {
		return len(of["headwater-coordinator"]) >= 3*steps && len(of["headwater-worker"]) >= 3*2*steps
	})
	spans.mu.Lock()
	defer spans.mu.Unlock()
	parents := map[string]*otlp.Span{}
	names := map[string]int{}
	for _, of := range spans.spans {
		for _, span := range of {
			names[span.GetName()]++
			parents[string(span.GetSpanId())] = span
		}
	}
	if want := (map[string]int{"step": steps, "wire": 2 * steps, "worker step": 2 * steps, "queue": 2 * steps, "kernel": 2 * steps}); fmt.Sprint(names) != fmt.Sprint(want) {
		t.Errorf("there are %v, want %v", names, want)
	}
	above := map[string]string{"wire": "step", "worker step": "wire", "queue": "worker step", "kernel": "worker step"}
	for _, span := range parents {
		if id := trace.TraceID(span.GetTraceId()); id != caller.TraceID() {
			t.Errorf("%s is of trace %s", span.GetName(), id)
		}
		parent := parents[string(span.GetParentSpanId())]
		switch {
		case span.GetName() == "step":
			if trace.SpanID(span.GetParentSpanId()) != caller.SpanID() {
				t.Errorf("the step's parent is %x", span.GetParentSpanId())
			}
		case parent.GetName() != above[span.GetName()]:
			t.Errorf("%s is in %q", span.GetName(), parent.GetName())
		case span.GetStartTimeUnixNano() < parent.GetStartTimeUnixNano() || span.GetEndTimeUnixNano() > parent.GetEndTimeUnixNano() && span.GetName() != "worker step":
			t.Errorf("%s, %d to %d, is not within %s, %d to %d", span.GetName(), span.GetStartTimeUnixNano(), span.GetEndTimeUnixNano(),
				parent.GetName(), parent.GetStartTimeUnixNano(), parent.GetEndTimeUnixNano())
		}
	}
}
