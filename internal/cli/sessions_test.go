package cli

import (
	"encoding/json"
	"slices"
	"testing"

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
