package coordinator_test

import (
	"context"
	"math"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// heaviest is a worker that announces the largest weight that the protocol can say.
type heaviest struct {
	headwaterv1.UnimplementedWorkerServiceServer
	headwaterv1.UnimplementedSessionServiceServer
}

func (heaviest) Describe(context.Context, *headwaterv1.DescribeRequest) (*headwaterv1.DescribeResponse, error) {
	return &headwaterv1.DescribeResponse{Name: "greedy", Boot: make([]byte, 16), Weight: math.MaxUint32, BudgetBytes: 1 << 40}, nil
}

// TestAWorkerOfAnImpossibleWeightIsLeftOut of jobs, which the others do, and the status says why.
func TestAWorkerOfAnImpossibleWeightIsLeftOut(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(1), config: coordinator.Config{}})
	s := grpc.NewServer(rpc.ServerOptions()...)
	headwaterv1.RegisterWorkerServiceServer(rpc.Registrar(s), heaviest{})
	headwaterv1.RegisterSessionServiceServer(rpc.Registrar(s), heaviest{})
	greedy := membership.Member{Name: "greedy", Role: membership.RoleWorker, Address: serve(t, s), Weight: 1}
	c.view.set(c.workers[0].Member, greedy)
	c.run(t, client.SubmitOptions{Path: variety(t)})
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	said := ""
	for _, w := range status.Workers {
		if w.Name == "greedy" {
			said = w.Error
		}
	}
	if !strings.Contains(said, "left out: its weight 4294967295 is not in 1 to 1073741824") {
		t.Errorf("of %+v the status says %q", status.Workers, said)
	}
}
