package observe

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// SpanContext names a span of a trace that is sampled, as a step carries it: 16 bytes of trace id, 8 of span id. Zero is none.
type SpanContext [24]byte

// Tracer makes the spans of steps. A nil *Tracer makes none.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	ratio    float64 // of the steps that begin a trace here
}

// The variables of OpenTelemetry that are read here; the exporter reads the others that begin with OTEL_EXPORTER_OTLP_.
const (
	endpointVar       = "OTEL_EXPORTER_OTLP_ENDPOINT"
	tracesEndpointVar = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	samplerVar        = "OTEL_TRACES_SAMPLER"
	samplerArgVar     = "OTEL_TRACES_SAMPLER_ARG"
	disabledVar       = "OTEL_SDK_DISABLED"
)

// NewTracer makes the tracer of a process, a service of the given name, as the environment says; nil where it names no endpoint.
// It connects to nobody before there are spans. Close ends it.
func NewTracer(ctx context.Context, service, name, version string) (*Tracer, error) {
	if os.Getenv(endpointVar) == "" && os.Getenv(tracesEndpointVar) == "" || os.Getenv(disabledVar) == "true" {
		return nil, nil
	}
	ratio, err := samplerRatio(os.Getenv(samplerVar), os.Getenv(samplerArgVar))
	if err != nil {
		return nil, err
	}
	exporter, err := otlptracegrpc.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("make the exporter of traces: %w", err)
	}
	// What the environment says of the resource wins.
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", service), attribute.String("service.instance.id", name), attribute.String("service.version", version)),
		resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("describe the process for traces: %w", err)
	}
	// Whether a step is traced has been decided before a span of it is made.
	provider := sdk.NewTracerProvider(sdk.WithSampler(sdk.AlwaysSample()), sdk.WithResource(about), sdk.WithBatcher(exporter))
	return &Tracer{provider: provider, tracer: provider.Tracer("headwater.example"), ratio: ratio}, nil
}

// samplerRatio reads which part of the steps begins a trace. A step that carries a trace is always traced.
func samplerRatio(sampler, arg string) (float64, error) {
	switch sampler {
	case "", "always_on", "parentbased_always_on":
		return 1, nil
	case "always_off", "parentbased_always_off":
		return 0, nil
	case "traceidratio", "parentbased_traceidratio":
		if arg == "" {
			return 1, nil
		}
		ratio, err := strconv.ParseFloat(arg, 64)
		if err != nil || !(ratio >= 0 && ratio <= 1) {
			return 0, fmt.Errorf("%s: %q is not in 0 to 1", samplerArgVar, arg)
		}
		return ratio, nil
	}
	return 0, fmt.Errorf("%s: %q is none of always_on, always_off, traceidratio and these with parentbased_ before", samplerVar, sampler)
}

// Close sends what is left, for as long as ctx allows.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("send the last traces: %w", err)
	}
	return nil
}

// StepFacts say which step a span is of.
type StepFacts struct {
	Session          [16]byte
	Layer            uint32
	Appended, Attend uint32
}

func (f *StepFacts) attributes() trace.SpanStartEventOption {
	return trace.WithAttributes(
		attribute.String("headwater.session", fmt.Sprintf("%x", f.Session)), attribute.Int("headwater.layer", int(f.Layer)),
		attribute.Int("headwater.append_tokens", int(f.Appended)), attribute.Int("headwater.attend_tokens", int(f.Attend)))
}

// in returns a context with a span as the parent of others.
func in(parent SpanContext) context.Context {
	if parent == (SpanContext{}) {
		return context.Background()
	}
	return trace.ContextWithRemoteSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID(parent[:16]), SpanID: trace.SpanID(parent[16:]), TraceFlags: trace.FlagsSampled, Remote: true,
	}))
}

func contextOf(s trace.Span) (c SpanContext) {
	id, span := s.SpanContext().TraceID(), s.SpanContext().SpanID()
	copy(c[:16], id[:])
	copy(c[16:], span[:])
	return c
}

// Span is a span that has begun. A nil *Span is none.
type Span struct {
	tracer *Tracer
	ctx    context.Context
	span   trace.Span
}

// Relayed begins the span of a step at a coordinator, nil if the step is not traced.
func (t *Tracer) Relayed(parent SpanContext, f *StepFacts, arrived time.Time) *Span {
	if t == nil || parent == (SpanContext{}) && rand.Float64() >= t.ratio {
		return nil
	}
	ctx, span := t.tracer.Start(in(parent), "step", trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(arrived), f.attributes())
	return &Span{t, ctx, span}
}

// Wire begins the span of what one worker is asked, and returns the context that goes with it.
func (s *Span) Wire(worker string) (SpanContext, *Span) {
	ctx, span := s.tracer.tracer.Start(s.ctx, "wire", trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attribute.String("headwater.worker", worker)))
	return contextOf(span), &Span{s.tracer, ctx, span}
}

// End ends the span.
func (s *Span) End(at time.Time, err error) {
	if s == nil {
		return
	}
	if err != nil {
		s.span.SetStatus(codes.Error, err.Error())
	}
	s.span.End(trace.WithTimestamp(at))
}

// Worked makes the spans of a step at a worker that carried a trace: the step, and in it how long it waited and how long its
// kernel took.
func (t *Tracer) Worked(parent SpanContext, f *StepFacts, arrived time.Time, queue, kernel time.Duration, err error) {
	if t == nil || parent == (SpanContext{}) {
		return
	}
	ctx, span := t.tracer.Start(in(parent), "worker step", trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(arrived), f.attributes())
	began := arrived.Add(queue)
	if err == nil {
		_, waited := t.tracer.Start(ctx, "queue", trace.WithTimestamp(arrived))
		waited.End(trace.WithTimestamp(began))
		if kernel > 0 {
			_, computed := t.tracer.Start(ctx, "kernel", trace.WithTimestamp(began))
			computed.End(trace.WithTimestamp(began.Add(kernel)))
		}
	}
	(&Span{t, ctx, span}).End(time.Now(), err)
}
