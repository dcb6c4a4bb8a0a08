package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/tensor"
)

// Test is what is measured.
type Test string

// The tests.
const (
	Prefill Test = "prefill" // a prompt is appended and attends, in chunks
	Decode  Test = "decode"  // one token after the other is appended and attends, in all sessions of a batch at once
	Load    Test = "load"    // tokens come at a fixed rate, whether those before are answered or not
)

// Case is one measurement.
type Case struct {
	Test    Test
	Layers  int // of one geometry
	Heads   int
	KVHeads int
	HeadDim int
	Storage tensor.DType
	// Arithmetic is that of the layers; other than attention.Chain it is for BF16. Of attention.Auto a Row has what was taken.
	Arithmetic attention.Arithmetic
	Codec      client.Codec
	SendF32    bool // keys and values go out as float32, and not as they are stored
	Direct     bool // the client speaks to the workers itself
	Workers    int  // at most so many hold a session; 0 is all
	Stripes    int  // in which a session's groups are held; 0 and 1 are none

	Positions int           // that each session has before a token, or in all after a prefill
	Batch     int           // sessions at once
	Chunk     int           // tokens of one step of a prefill
	Spend     time.Duration // about how long steps are made, over all repetitions
	Repeat    int           // repetitions, of which each has a rate; 0 is 1. A load has one
	Rate      float64       // tokens a second that come, of all sessions; Load only
}

// Row is what a measurement gave.
type Row struct {
	Case
	Tokens    int64         // that attended
	Elapsed   time.Duration // while they did
	Latencies *hdrhistogram.Histogram
	Rates     []float64 // tokens per second of each repetition

	kernel time.Duration // that the steps attended, each at its slowest holder, while Elapsed passed
}

// Latencies are recorded in microseconds from 1 to ten minutes, to three digits.
const (
	leastLatency = 1
	mostLatency  = int64(10 * time.Minute / time.Microsecond)
	digits       = 3
)

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(leastLatency, mostLatency, digits)
}

// record adds a latency; one that the histogram can not hold counts as the largest it can.
func record(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(min(max(d.Microseconds(), leastLatency), mostLatency)) // it is in range
}

// Quantile returns the latency that a share of them, in 0 to 1, does not exceed.
func (r *Row) Quantile(q float64) time.Duration {
	return time.Duration(r.Latencies.ValueAtQuantile(100*q)) * time.Microsecond
}

// tokensPerSecond returns how many tokens attended in a second, over all sessions; a token passes all layers.
func (r *Row) tokensPerSecond() float64 { return float64(r.Tokens) / r.Elapsed.Seconds() }

// MeanRate returns the mean of the repetitions' rates, in tokens per second, and their standard deviation. Where there is one
// repetition, known is false, and the mean is tokensPerSecond.
func (r *Row) MeanRate() (mean, deviation float64, known bool) {
	n := float64(len(r.Rates))
	if n < 2 {
		return r.tokensPerSecond(), 0, false
	}
	for _, rate := range r.Rates {
		mean += rate / n
	}
	for _, rate := range r.Rates {
		deviation += (rate - mean) * (rate - mean)
	}
	return mean, math.Sqrt(deviation / (n - 1)), true
}

// KernelShare returns the part of the time in which kernels computed, each step's at its slowest holder: what sessions reach of the
// kernels' own rate. It is known of one session, which makes its steps one after the other.
func (r *Row) KernelShare() (share float64, known bool) {
	if r.Batch != 1 || r.Test == Load {
		return 0, false
	}
	return r.kernel.Seconds() / r.Elapsed.Seconds(), true
}

// BytesPerSecond returns the bytes of keys and values that a decode's tokens had to read in a second; 0 for a prefill, whose
// tokens share what is read.
func (r *Row) BytesPerSecond() float64 {
	if r.Test == Prefill {
		return 0
	}
	position := 2 * r.KVHeads * r.HeadDim * r.Storage.Size()
	if r.Storage == tensor.I8 {
		position += 2 * 4 * r.KVHeads
	}
	return r.tokensPerSecond() * float64(r.Layers) * float64(r.Positions) * float64(position)
}

// FlopsPerSecond returns the useful floating-point operations in a second: a multiply and an add for each element of each
// score and of each weighted value that a token sees.
func (r *Row) FlopsPerSecond() float64 {
	seen := float64(r.Positions)
	if r.Test == Prefill {
		seen = float64(r.Positions+1) / 2 // on average: position i sees i+1
	}
	return r.tokensPerSecond() * float64(r.Layers) * float64(r.Heads) * seen * 4 * float64(r.HeadDim)
}

func (c *Case) check() error {
	switch {
	case c.Positions < 1 || c.Batch < 1 || c.Layers < 1:
		return fmt.Errorf("%d positions, %d sessions and %d layers must each be at least 1", c.Positions, c.Batch, c.Layers)
	case c.Test == Prefill && c.Chunk < 1:
		return fmt.Errorf("a chunk of %d tokens must have at least 1", c.Chunk)
	case c.Test == Load && !(c.Rate > 0 && c.Rate <= 1e6):
		return fmt.Errorf("a rate of %g tokens a second is not above 0 and at most 1000000", c.Rate)
	}
	return nil
}

// Measure makes one measurement and drops the sessions that it made. Told, if it is not nil, hears what is being done.
func Measure(ctx context.Context, c *client.Client, of Case, told func(string)) (_ *Row, err error) {
	if err := of.check(); err != nil {
		return nil, fmt.Errorf("bench %s: %w", of.Test, err)
	}
	if told == nil {
		told = func(string) {}
	}
	b := &bench{Case: of, client: c, told: told, row: &Row{Case: of, Latencies: newHistogram()}}
	defer func() { err = errors.Join(err, b.drop(context.WithoutCancel(ctx))) }()
	b.makeTensors()
	switch of.Test {
	case Prefill:
		err = b.prefill(ctx)
	case Decode:
		err = b.decode(ctx)
	case Load:
		err = b.load(ctx)
	default:
		err = fmt.Errorf("it is not known")
	}
	if err != nil {
		return nil, fmt.Errorf("bench %s: %w", of.Test, err)
	}
	return b.row, nil
}

// bench is a measurement under way.
type bench struct {
	Case
	client   *client.Client
	told     func(string)
	row      *Row
	sessions []*client.Session
	// Tensors of fillTokens or of a chunk; a token takes the first rows. What attends does not look at their values.
	q, k, v []float32
	steps   []*client.Step // one for each session
}

// fillTokens is how many tokens one step appends where nothing attends.
const fillTokens = 1024

func (b *bench) makeTensors() {
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = rng.Float32()*2 - 1
		}
		return x
	}
	tokens := max(min(b.Chunk, b.Positions), 1)
	filled := max(tokens, min(fillTokens, b.Positions))
	b.q = random(tokens * b.Heads * b.HeadDim)
	b.k, b.v = random(filled*b.KVHeads*b.HeadDim), random(filled*b.KVHeads*b.HeadDim)
}

// open opens the batch's sessions, with so many positions in each layer.
func (b *bench) open(ctx context.Context, positions int) error {
	layers := make([]client.Layer, b.Layers)
	for i := range layers {
		layers[i] = client.Layer{Heads: b.Heads, KVHeads: b.KVHeads, HeadDim: b.HeadDim, Storage: b.Storage, Arithmetic: b.Arithmetic}
	}
	for i := range b.Batch {
		s, err := b.client.OpenSession(ctx, client.SessionOptions{
			Layers: layers, Name: fmt.Sprintf("bench %d", i), Workers: b.Workers, Direct: b.Direct, Codec: b.Codec, SendF32: b.SendF32, Stripes: b.Stripes,
		})
		if err != nil {
			return err
		}
		b.sessions = append(b.sessions, s)
		b.row.Arithmetic = s.Layers()[0].Arithmetic
	}
	row := b.KVHeads * b.HeadDim
	for done := 0; done < positions; {
		n := min(fillTokens, positions-done)
		for layer := range layers {
			var steps []*client.Step
			for _, s := range b.sessions {
				steps = append(steps, &client.Step{Session: s, Layer: layer, K: b.k[:n*row], V: b.v[:n*row]})
			}
			if err := client.Do(ctx, steps...); err != nil {
				return err
			}
		}
		done += n
		b.told(fmt.Sprintf("filling: %d of %d positions", done, positions))
	}
	return nil
}

// attend prepares a step of n tokens for each session, at most as many as the one before.
func (b *bench) attend(n int) {
	q, kv := b.Heads*b.HeadDim, b.KVHeads*b.HeadDim
	if len(b.steps) == 0 {
		for _, s := range b.sessions {
			b.steps = append(b.steps, &client.Step{Session: s, Context: make([]float32, n*q), LSE: make([]float32, n*b.Heads)})
		}
	}
	for _, step := range b.steps {
		step.Q, step.K, step.V = b.q[:n*q], b.k[:n*kv], b.v[:n*kv]
		step.Context, step.LSE = step.Context[:n*q], step.LSE[:n*b.Heads]
	}
}

// pass lets the prepared steps go through all layers.
func (b *bench) pass(ctx context.Context) error {
	for layer := range b.Layers {
		for _, step := range b.steps {
			step.Layer = layer
		}
		if err := client.Do(ctx, b.steps...); err != nil {
			return err
		}
		for _, step := range b.steps {
			b.row.kernel += step.Kernel
		}
	}
	return nil
}

// truncate takes back what was appended beyond so many positions.
func (b *bench) truncate(ctx context.Context, positions int) error {
	for _, s := range b.sessions {
		if err := s.Truncate(ctx, positions); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) prefill(ctx context.Context) error {
	if err := b.open(ctx, 0); err != nil {
		return err
	}
	chunk := min(b.Chunk, b.Positions)
	return b.repeat(func() (tokens int64, took time.Duration, err error) {
		took, err = b.prompt(ctx, chunk)
		return int64(b.Positions) * int64(b.Batch), took, err
	})
}

// repeat makes each repetition measure for its part of Spend, and at least once. once does one thing that is timed.
func (b *bench) repeat(once func() (tokens int64, took time.Duration, err error)) error {
	n := max(b.Repeat, 1)
	for range n {
		var tokens int64
		var elapsed time.Duration
		for tokens == 0 || elapsed < b.Spend/time.Duration(n) {
			done, took, err := once()
			if err != nil {
				return err
			}
			record(b.row.Latencies, took)
			tokens += done
			elapsed += took
		}
		b.row.Tokens += tokens
		b.row.Elapsed += elapsed
		b.row.Rates = append(b.row.Rates, float64(tokens)/elapsed.Seconds())
	}
	return nil
}

// prompt takes a prompt in, and says how long it took.
func (b *bench) prompt(ctx context.Context, chunk int) (time.Duration, error) {
	if err := b.truncate(ctx, 0); err != nil {
		return 0, err
	}
	b.attend(chunk)
	began := time.Now()
	for done := 0; done < b.Positions; {
		n := min(chunk, b.Positions-done)
		b.attend(n)
		if err := b.pass(ctx); err != nil {
			return 0, err
		}
		done += n
		b.told(fmt.Sprintf("prefill: %d of %d positions", done, b.Positions))
	}
	return time.Since(began), nil
}

// decodeRun is how many tokens a session grows by before they are taken back, so that its length hardly changes.
const decodeRun = 64

func (b *bench) decode(ctx context.Context) error {
	// The token that is measured is the last of Positions.
	if err := b.open(ctx, b.Positions-1); err != nil {
		return err
	}
	b.attend(1)
	b.told("decode")
	if err := b.pass(ctx); err != nil { // the first touches what all others find warm
		return err
	}
	b.row.kernel = 0
	grown := 1
	return b.repeat(func() (int64, time.Duration, error) {
		if grown == decodeRun {
			if err := b.truncate(ctx, b.Positions-1); err != nil {
				return 0, 0, err
			}
			grown = 0
		}
		grown++
		began := time.Now()
		err := b.pass(ctx)
		return int64(b.Batch), time.Since(began), err
	})
}

// drop ends the sessions.
func (b *bench) drop(ctx context.Context) error {
	var errs []error
	for _, s := range b.sessions {
		errs = append(errs, s.Drop(ctx))
	}
	return errors.Join(errs...)
}
