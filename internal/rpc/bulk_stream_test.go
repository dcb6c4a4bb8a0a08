package rpc_test

import (
	"errors"
	"io"
	"testing"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// summing answers each piece with its hash, as a job's name, and uses its memory again.
type summing struct {
	headwaterv1.UnimplementedCoordinatorServiceServer
}

func (summing) Submit(stream headwaterv1.CoordinatorService_SubmitServer) error {
	for {
		m := &headwaterv1.SubmitRequest{}
		memory, err := rpc.RecvBulk(stream, m)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if m.GetBegin() != nil {
			return status.Error(codes.Aborted, "enough")
		}
		hash := xxh3.Hash(m.GetData())
		clear(memory.Bytes())
		memory.Free()
		if err := rpc.SendBulk(stream, &headwaterv1.SubmitResponse{Job: &headwaterv1.Job{SizeBytes: hash}}, nil); err != nil {
			return err
		}
	}
}

func TestMemoryIsUsedAgainOnlyOnceItIsWritten(t *testing.T) {
	stream, err := serve(t, summing{}).Submit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const pieces = 200
	hashes := make(chan uint64, pieces)
	sent := make(chan error, 1)
	go func() {
		defer close(hashes)
		sent <- func() error {
			for i := range pieces {
				memory := rpc.NewBuffer(1 << (8 + i%12))
				for j := range memory.Bytes() {
					memory.Bytes()[j] = byte(i + j)
				}
				hashes <- xxh3.Hash(memory.Bytes())
				m := &headwaterv1.SubmitRequest{Request: &headwaterv1.SubmitRequest_Data{Data: memory.Bytes()}}
				if err := rpc.SendBulk(stream, m, memory); err != nil {
					return err
				}
			}
			return stream.CloseSend()
		}()
	}()
	i := 0
	for hash := range hashes {
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if resp.GetJob().GetSizeBytes() != hash {
			t.Fatalf("piece %d came with other bytes", i)
		}
		i++
	}
	if err := await.One(t, sent, "the end of sending"); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) || i != pieces {
		t.Fatalf("%d pieces, %v", i, err)
	}
}

func TestMemoryIsTakenByASendThatFails(t *testing.T) {
	stream, err := serve(t, summing{}).Submit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&headwaterv1.SubmitRequest{Request: &headwaterv1.SubmitRequest_Begin{Begin: &headwaterv1.SubmitBegin{}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Aborted {
		t.Fatal(err)
	}
	memory := rpc.NewBuffer(1 << 13)
	if err := rpc.SendBulk(stream, &headwaterv1.SubmitRequest{Request: &headwaterv1.SubmitRequest_Data{Data: memory.Bytes()}}, memory); err == nil {
		t.Fatal("sent on a stream that has ended")
	}
	defer func() {
		if recover() == nil {
			t.Error("the memory was not freed")
		}
	}()
	memory.Free()
}
