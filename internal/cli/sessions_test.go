package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

func TestAListOfSessionsNamesTheWorkersThatDidNotAnswer(t *testing.T) {
	o := &older{caches: []*headwaterv1.CacheState{}, silent: []*headwaterv1.SilentWorker{
		{Worker: "w2", Address: "10.0.0.2:7601", Error: "connection refused"}, {Worker: "w3", Address: "10.0.0.3:7601", Error: "no answer within 5s"},
	}}
	const warning = "warning: worker w2 at 10.0.0.2:7601 did not answer, what it holds is not listed: connection refused\n" +
		"warning: worker w3 at 10.0.0.3:7601 did not answer, what it holds is not listed: no answer within 5s\n"
	if _, errs := o.coord(t, "sessions", "list"); errs != warning {
		t.Errorf("got %q", errs)
	}
	out, errs := o.coord(t, "sessions", "list", "--output", "json")
	if errs != warning {
		t.Errorf("got %q", errs)
	}
	var v sessionsView
	want := []silentView{{"w2", "10.0.0.2:7601", "connection refused"}, {"w3", "10.0.0.3:7601", "no answer within 5s"}}
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.Sessions == nil || !slices.Equal(v.Silent, want) {
		t.Errorf("got %+v: %v", v, err)
	}
}

// halves is a coordinator that is told of the parts of sessions: one is whole, of one a group is gone.
type halves struct {
	headwaterv1.UnimplementedSessionServiceServer
	silent bool
}

func (h *halves) ListSessions(_ context.Context, req *headwaterv1.ListSessionsRequest) (*headwaterv1.ListSessionsResponse, error) {
	resp := &headwaterv1.ListSessionsResponse{}
	for i, groups := range [][]uint32{{0, 1}, {0}} {
		s := &headwaterv1.SessionState{
			Session: bytes.Repeat([]byte{byte(i + 1)}, 16), Layers: []*headwaterv1.LayerState{{Length: 3}},
			Holders: []*headwaterv1.Holder{{Name: "w1", Boot: make([]byte, 16), Address: "127.0.0.1:1", Layers: []*headwaterv1.HeldLayer{{Groups: groups}}}},
		}
		if len(req.GetSessions()) > 0 {
			s.Config = &headwaterv1.SessionConfig{Layers: []*headwaterv1.SessionLayer{{
				NHeads: 2, NKvHeads: 2, HeadDim: 8, VDim: 8, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, WindowLeft: -1, WindowRight: -1,
			}}}
		}
		resp.Sessions = append(resp.Sessions, s)
	}
	if h.silent {
		resp.Silent = []*headwaterv1.SilentWorker{{Worker: "w2", Address: "127.0.0.1:2", Error: "no answer within 5s"}}
	}
	return resp, nil
}

// TestASessionThatIsHalfLostLooksIt, and one of which a part may be at a worker that does not answer is not said to be lost.
func TestASessionThatIsHalfLostLooksIt(t *testing.T) {
	for silent, want := range map[bool]string{false: "half lost", true: "part unseen"} {
		server := grpc.NewServer(rpc.ServerOptions()...)
		headwaterv1.RegisterSessionServiceServer(server, &halves{silent: silent})
		address := serve(t, server)
		for _, format := range []string{"table", "wide", "json"} {
			var out, errs bytes.Buffer
			if code := Coord([]string{"sessions", "list", "--coordinator", address, "-o", format}, Streams{Out: &out, Err: &errs}); code != exitOK {
				t.Fatalf("exit code %d: %s", code, &errs)
			}
			if format == "json" {
				var v sessionsView
				if err := json.Unmarshal(out.Bytes(), &v); err != nil || v.Sessions[0].State != "whole" || v.Sessions[1].State != want {
					t.Errorf("got %+v: %v", v, err)
				}
				continue
			}
			for id, state := range map[string]string{"010101010101": "whole", "020202020202": want} {
				found := false
				for line := range strings.Lines(out.String()) {
					found = found || strings.Contains(line, id) && strings.Contains(line, state)
				}
				if !found {
					t.Errorf("%s does not say that %s is %s: %s", format, id, state, &out)
				}
			}
		}
	}
}
