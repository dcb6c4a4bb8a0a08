package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// older is a coordinator of three workers. Its caches are those that a coordinator may hear of: nil is one that serves no
// sessions.
type older struct {
	headwaterv1.UnimplementedCoordinatorServiceServer
	headwaterv1.UnimplementedSessionServiceServer
	caches []*headwaterv1.CacheState
	silent []*headwaterv1.SilentWorker
	reason string // why w2 is left out
	matrix *bool  // whether each has a matrix unit; nil is not said
	none   bool   // of workers
}

func (o *older) Status(context.Context, *headwaterv1.StatusRequest) (*headwaterv1.StatusResponse, error) {
	resp := &headwaterv1.StatusResponse{Name: "c", Protocol: rpc.Version}
	if o.none {
		return resp, nil
	}
	for _, name := range []string{"w1", "w2", "w3"} {
		resp.Workers = append(resp.Workers, &headwaterv1.WorkerStatus{Worker: &headwaterv1.DescribeResponse{Name: name, Kernel: "x", MatrixUnit: o.matrix}})
	}
	resp.Workers[1].Error = o.reason
	return resp, nil
}

func (o *older) ListSessions(context.Context, *headwaterv1.ListSessionsRequest) (*headwaterv1.ListSessionsResponse, error) {
	return &headwaterv1.ListSessionsResponse{Caches: o.caches, Silent: o.silent}, nil
}

// status runs coord status at a coordinator.
func (o *older) status(t *testing.T, args ...string) string {
	t.Helper()
	out, _ := o.coord(t, append([]string{"status"}, args...)...)
	return out
}

// coord runs a command at a coordinator, which succeeds.
func (o *older) coord(t *testing.T, args ...string) (out, errs string) {
	t.Helper()
	server := grpc.NewServer(rpc.ServerOptions()...)
	headwaterv1.RegisterCoordinatorServiceServer(server, o)
	if o.caches != nil {
		headwaterv1.RegisterSessionServiceServer(server, o)
	}
	address := serve(t, server)
	var stdout, stderr bytes.Buffer
	if code := Coord(append(args, "--coordinator", address), Streams{Out: &stdout, Err: &stderr}); code != exitOK {
		t.Fatalf("coord %q ends with %d: %s", args, code, &stderr)
	}
	return stdout.String(), stderr.String()
}

// row returns the words of the last line that begins with a word.
func row(t *testing.T, text, word string) string {
	t.Helper()
	found := ""
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) > 0 && words[0] == word {
			found = strings.Join(words, " ")
		}
	}
	if found == "" {
		t.Fatalf("no line begins with %q:\n%s", word, text)
	}
	return found
}

func TestStatusOfACoordinatorWithoutSessions(t *testing.T) {
	text := (&older{}).status(t, "--output", "wide")
	if got := row(t, text, "w2"); got != "w2 - - - - - - - - - - -" {
		t.Errorf("got %q in\n%s", got, text)
	}
	var v struct {
		Workers []struct{ Cache *json.RawMessage }
	}
	if err := json.Unmarshal([]byte((&older{}).status(t, "--output", "json")), &v); err != nil || len(v.Workers) != 3 || v.Workers[0].Cache != nil {
		t.Errorf("got %+v: %v", v, err)
	}
}

func TestStatusTellsOfCaches(t *testing.T) {
	o := &older{caches: []*headwaterv1.CacheState{
		{
			Worker: "w1", UsedBytes: 5 << 20, RoomBytes: proto.Uint64(3 << 30), Sessions: 7, PrefixAsked: 400, PrefixHits: 300, PrefixSavedBytes: 2048,
			Evicted: 9, QueuedSteps: 4, QueuedTokens: 44, Lanes: 2,
			Pages: []*headwaterv1.PageState{{PageBytes: 1 << 14, Used: 64, Free: 1000}, {PageBytes: 1 << 15, Used: 128, Free: 500}},
		},
		{Worker: "w2", UsedBytes: 1 << 10, Lanes: 1},
	}}
	text := o.status(t, "--output", "wide")
	for word, want := range map[string]string{
		"w1":   "w1 7 16.0 KiB 64 1000 5.0 MiB 3.00 GiB 300/400 (75%) 2.0 KiB 9 4 2",
		"32.0": "32.0 KiB 128 500", // the other size of w1
		"w2":   "w2 - - - - 1.0 KiB - none asked 0 B 0 0 1",
		"w3":   "w3 - - - - - - - - - - -",
	} {
		if got := row(t, text, word); got != want {
			t.Errorf("got %q, want %q in\n%s", got, want, text)
		}
	}
	var v struct {
		Workers []struct{ Cache *cacheView }
	}
	if err := json.Unmarshal([]byte(o.status(t, "--output", "json")), &v); err != nil {
		t.Fatal(err)
	}
	if c := v.Workers[0].Cache; c == nil || len(c.Pages) != 2 || c.Pages[1] != (pageView{1 << 15, 128, 500}) || *c.FreeBytes != 3<<30 || c.QueuedTokens != 44 {
		t.Errorf("got %+v", c)
	}
	if c := v.Workers[1].Cache; c == nil || c.Pages != nil || c.FreeBytes != nil || v.Workers[2].Cache != nil {
		t.Errorf("got %+v and %+v", c, v.Workers[2].Cache)
	}
}

// TestStatusSaysWholeWhyAWorkerIsLeftOut, below the table, which has no room for it.
func TestStatusSaysWholeWhyAWorkerIsLeftOut(t *testing.T) {
	reason := strings.Repeat("the reason is long, ", 20) + "and ends here"
	text := (&older{reason: reason}).status(t)
	if !strings.Contains(text, "w2 at : "+reason+"\n") {
		t.Errorf("the reason is not whole in\n%s", text)
	}
	if got := row(t, text[:strings.Index(text, "caches")], "w1"); !strings.HasSuffix(got, " answers") {
		t.Errorf("got %q", got)
	}
	found := false
	for line := range strings.Lines(text) {
		found = found || strings.HasPrefix(line, " w2 ") && strings.HasSuffix(line, " left out\n")
	}
	if !found {
		t.Errorf("w2 is not left out in\n%s", text)
	}
}

// TestWithoutWorkersCommandsSayWhatToDo instead of an empty table, or that the coordinator is unreachable.
func TestWithoutWorkersCommandsSayWhatToDo(t *testing.T) {
	o := &older{none: true}
	if text := o.status(t); !strings.Contains(text, "no workers: start some with worker serve --join") {
		t.Errorf("status says\n%s", text)
	}
	server := grpc.NewServer(rpc.ServerOptions()...)
	headwaterv1.RegisterCoordinatorServiceServer(server, o)
	rpc.Register(server, headwaterv1.CoordinatorService_ServiceDesc.ServiceName)
	address := serve(t, server)
	for command, want := range map[string]struct {
		code int
		says string
	}{
		"bench":  {exitTryAgain, "has no worker that answers: nothing to measure"},
		"health": {exitUnhealthy, "not healthy: 0 workers answer of at least 1"},
	} {
		var out, errs bytes.Buffer
		if code := Coord([]string{command, "--coordinator", address}, Streams{Out: &out, Err: &errs}); code != want.code || !strings.Contains(errs.String(), want.says) || strings.Contains(errs.String(), "unreachable") {
			t.Errorf("coord %s ends with %d and says %q", command, code, &errs)
		}
	}
}

// TestAWorkerSaysWhetherItHasAMatrixUnit: the kernel's name says nothing.
func TestAWorkerSaysWhetherItHasAMatrixUnit(t *testing.T) {
	for _, c := range []struct {
		told       *bool
		text, json string
	}{
		{nil, "-", "null"},
		{proto.Bool(false), "slower", "false"},
		{proto.Bool(true), "matrix unit", "true"},
	} {
		o := &older{matrix: c.told}
		workers, _, _ := strings.Cut(o.status(t, "-o", "wide"), "\ncaches")
		if text := row(t, workers, "w1"); !strings.Contains(text, " x "+c.text+" - - ") {
			t.Errorf("%q, want %q", text, c.text)
		}
		if text := o.status(t, "-o", "json"); strings.Count(text, `"matrix_unit": `+c.json) != 3 {
			t.Errorf("%s, want %s", text, c.json)
		}
	}
}
