// Package readiness says whether a process is ready for work: whether it attends rightly through its own port, and, before the
// first time, whether the cluster has what it should have.
package readiness

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"headwater.example/attention"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// The tiny session: one group of two query heads, as many positions as take a second page, in bf16.
const (
	heads     = 2
	dim       = 32
	positions = 70
	// sum is of the bits of its context and LSE, which are the same on every machine (docs/numerics.md).
	sum = 0x2c7c2a49db6dbabf
	// life is how long the session may stay if it can not be dropped.
	life = time.Minute
	name = "readiness"
)

// ErrWrong is the error of bits that are not those of the contract.
var ErrWrong = errors.New("it attends wrongly")

// Probe attends at a server of sessions. One goroutine uses it.
type Probe struct {
	conns           *fanout.Conns
	worker, address string
	lane            *fanout.Lane // from one time to the next; nil before the first, and after an error
}

// NewProbe makes a probe of a worker, which is named, or of a coordinator, which is not.
func NewProbe(conns *fanout.Conns, worker, address string) *Probe {
	return &Probe{conns: conns, worker: worker, address: address}
}

// Close ends what the probe has open.
func (p *Probe) Close() {
	if p.lane != nil {
		p.lane.Close()
		p.lane = nil
	}
}

// Attend makes a tiny session, appends to it, has it attend, compares the bits, and drops it.
func (p *Probe) Attend(ctx context.Context) error {
	got, err := p.attend(ctx)
	if err != nil {
		p.Close()
		return err
	}
	if is := got.sum(); is != sum {
		return fmt.Errorf("%w: the sum of a tiny context is %016x, not %016x", ErrWrong, is, uint64(sum))
	}
	return nil
}

func (p *Probe) attend(ctx context.Context) (*work, error) {
	layer, err := shard.NewLayerSpec(shard.LayerShape{Heads: heads, KVHeads: 1, HeadDim: dim, VDim: dim}, tensor.BF16, attention.DefaultOptions(dim))
	if err != nil {
		return nil, err
	}
	layers := []shard.LayerSpec{layer}
	holder := &fanout.Holder{Name: cmp.Or(p.worker, p.address), Address: p.address}
	if p.worker != "" {
		holder.Groups = [][]int{{0}} // a coordinator places it
	}
	holding, err := fanout.NewHolding(layers, holder)
	if err != nil {
		return nil, err
	}
	id := p.conns.NewName()
	if p.lane == nil {
		p.lane = fanout.NewLane(session.LaneID(p.conns.NewName()), p.conns)
	}
	by := p.lane.ID()
	state, err := p.conns.Create(ctx, holding, &headwaterv1.CreateSessionRequest{
		Session: id[:], Epoch: &headwaterv1.Epoch{Counter: 1, Lane: by[:]},
		Config: &headwaterv1.SessionConfig{Layers: layerproto.SessionLayers(layers), Name: name, Unshared: true, Ttl: durationpb.New(life), Replicas: proto.Uint32(0)},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = p.conns.Drop(ctx, []*fanout.Holder{holder}, &headwaterv1.DropSessionRequest{Session: id[:]}) // or its life ends
	}()
	if len(state.GetLayers()) != 1 {
		return nil, fmt.Errorf("%w: a new session of one layer has %d", ErrWrong, len(state.GetLayers()))
	}
	got := &work{}
	call := p.lane.Start(ctx, fanout.NewPlace(id, holding), &fanout.Step{
		Step: session.Step{
			Session: id, Epoch: 1, Length: state.GetLayers()[0].GetLength(), Hashes: state.GetLayers()[0].GetHashes(), Chain: state.GetLayers()[0].GetChain(),
			Append: positions, Attend: 1, QueryPosition: positions - 1, AppendID: p.conns.NewID(),
			Encoding: headwaterv1.StorageType_STORAGE_TYPE_F32, Codec: headwaterv1.StepCodec_STEP_CODEC_RAW,
		},
		Input: got, Output: got,
	})
	if err := call.Wait(ctx); err != nil {
		return nil, err
	}
	return got, nil
}

// work is what goes in, and what comes out.
type work struct{ context, lse []float32 }

// value is an element of the inputs: a number of few bits, which bf16 holds exactly.
func value(i, seed int) float32 { return float32((i*37+seed*29)%64-32) / 32 }

func fill(dst []byte, seed int) {
	for i := range len(dst) / 4 {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(value(i, seed)))
	}
}

// The seeds of the inputs.
const (
	querySeed = 1 + iota
	keySeed
	valueSeed
)

// Query implements fanout.Input, as do the next four.
func (w *work) Query(dst []byte, _ int)       { fill(dst, querySeed) }
func (w *work) Key(dst []byte, _, _ int)      { fill(dst, keySeed) }
func (w *work) Value(dst []byte, _, _ int)    { fill(dst, valueSeed) }
func (w *work) KeyScale([]byte, int, int)     {} // of int8 alone
func (w *work) ValueScale(_ []byte, _, _ int) {}

// Take implements fanout.Output.
func (w *work) Take(_ int, context, lse []float32) {
	w.context, w.lse = append(w.context, context...), append(w.lse, lse...)
}

func (w *work) sum() uint64 {
	var b []byte
	for _, x := range append(w.context[:len(w.context):len(w.context)], w.lse...) {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return xxh3.Hash(b)
}
