package rpc_test

import (
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// BenchmarkStream sends 256 MiB over a loopback connection in pieces of 1 MiB, and the same as generated messages.
func BenchmarkStream(b *testing.B) {
	for _, generated := range []bool{false, true} {
		name := "bulk"
		if generated {
			name = "generated"
		}
		b.Run(name, func(b *testing.B) {
			const size, pieces = 1 << 20, 256
			client := serve(b, &sink{generated: generated})
			b.SetBytes(size * pieces)
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				stream, err := client.Submit(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				same := make([]byte, size)
				for range pieces {
					var memory *rpc.Buffer
					data := same
					if !generated {
						memory = rpc.NewBuffer(size)
						data = memory.Bytes()
					}
					m := &headwaterv1.SubmitRequest{Request: &headwaterv1.SubmitRequest_Data{Data: data}}
					if generated {
						err = stream.Send(m)
					} else {
						err = rpc.SendBulk(stream, m, memory)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				if err := stream.CloseSend(); err != nil {
					b.Fatal(err)
				}
				if _, err := stream.Recv(); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1e3, "median-ms")
		})
	}
}

// sink takes submissions and forgets them.
type sink struct {
	headwaterv1.UnimplementedCoordinatorServiceServer
	generated bool
}

func (s *sink) Submit(stream headwaterv1.CoordinatorService_SubmitServer) error {
	for {
		var memory *rpc.Buffer
		m, err := &headwaterv1.SubmitRequest{}, error(nil)
		if s.generated {
			_, err = stream.Recv()
		} else {
			memory, err = rpc.RecvBulk(stream, m)
		}
		memory.Free()
		if err != nil {
			return stream.Send(&headwaterv1.SubmitResponse{})
		}
	}
}

// serve serves a coordinator's service and returns a client of it.
func serve(tb testing.TB, service headwaterv1.CoordinatorServiceServer) headwaterv1.CoordinatorServiceClient {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	server := grpc.NewServer(rpc.ServerOptions()...)
	headwaterv1.RegisterCoordinatorServiceServer(server, service)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///"+listener.Addr().String(), rpc.DialOptions()...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := conn.Close(); err != nil {
			tb.Error(err)
		}
		server.Stop()
		if err := <-served; err != nil {
			tb.Error(err)
		}
	})
	return headwaterv1.NewCoordinatorServiceClient(conn)
}
