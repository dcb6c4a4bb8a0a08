package session

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// BenchmarkRoundTrip is a step of 16 KiB each way over a loopback connection, and the same through generated messages.
func BenchmarkRoundTrip(b *testing.B) {
	const size = 16 << 10
	b.Run("messages", func(b *testing.B) {
		s, err := Open(b.Context(), serveEcho(b), someID)
		if err != nil {
			b.Fatal(err)
		}
		var r Request
		var p Response
		trip(b, func() error {
			r.Reset()
			r.Payload = rpc.NewBuffer(size)
			if err := s.Send(&r); err != nil {
				return err
			}
			err := s.Recv(&p)
			p.Payload.Free()
			p.Payload = nil
			return err
		})
	})
	b.Run("generated", func(b *testing.B) {
		s, err := headwaterv1.NewSessionServiceClient(serveEcho(b)).Lane(metadata.AppendToOutgoingContext(b.Context(), MetadataKey, someID.String()))
		if err != nil {
			b.Fatal(err)
		}
		trip(b, func() error {
			r := &headwaterv1.LaneRequest{Step: &headwaterv1.Step{Session: make([]byte, 16)}, Payload: make([]byte, size)}
			if err := s.Send(r); err != nil {
				return err
			}
			_, err := s.Recv()
			return err
		})
	})
}

func trip(b *testing.B, do func() error) {
	b.ReportAllocs()
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		if err := do(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(0, "ns/op")
}
