package client_test

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/client"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// TestAForkWhoseConnectionBrokeIsMadeUnderAnotherName: the coordinator does not know that the client asks again. It drops what it has made,
// so the id of that child is not to be had any more.
func TestAForkWhoseConnectionBrokeIsMadeUnderAnotherName(t *testing.T) {
	c := start(t, 2)
	var children []string
	breaks := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		err := invoke(ctx, method, req, reply, cc, opts...)
		fork, ok := req.(*headwaterv1.ForkSessionRequest)
		if err != nil || !ok {
			return err
		}
		if children = append(children, string(fork.GetChild())); len(children) > 1 {
			return nil
		}
		drop := &headwaterv1.DropSessionRequest{Session: fork.GetChild(), Epoch: fork.GetChildEpoch(), Call: fork.GetCall()}
		if err := invoke(ctx, headwaterv1.SessionService_DropSession_FullMethodName, drop, &headwaterv1.DropSessionResponse{}, cc, opts...); err != nil {
			return err
		}
		return status.Error(codes.Unavailable, "the connection broke")
	}
	own, err := client.Dial(c.Address(), grpc.WithChainUnaryInterceptor(breaks))
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	s, m, r := open(t, own, client.SessionOptions{Layers: layers}), newModel(layers), rng(1)
	grow(t, s, m, r, 3)
	child, err := s.Fork(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(children) != 2 || children[0] == children[1] {
		t.Errorf("the children are %x", children)
	}
	grow(t, child, m, r, 2)
}
