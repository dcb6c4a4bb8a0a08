package cli

import (
	"bytes"
	"testing"

	"headwater.example/client"
)

// TestProgressEndsAPhaseAtWhatWasReached: the coordinator tells of a job now and then, so a phase may end between two times.
func TestProgressEndsAPhaseAtWhatWasReached(t *testing.T) {
	var out bytes.Buffer
	p := (&app{Streams: Streams{Err: &out}}).progress(false)
	for _, at := range []client.Progress{
		{},
		{LoadedBytes: 0, LoadBytes: 1024, Units: 6},
		{LoadedBytes: 1024, LoadBytes: 1024, UnitsDone: 2, Units: 6},
		{LoadedBytes: 1024, LoadBytes: 1024, UnitsDone: 6, Units: 6},
	} {
		p.job(&client.Job{State: client.JobRunning, Progress: at})
	}
	p.end()
	if want := "loading workers: 1.0 KiB of 1.0 KiB\nattending: 6 of 6\n"; out.String() != want {
		t.Errorf("it says %q, want %q", out.String(), want)
	}
	out.Reset()
	quiet := (&app{Streams: Streams{Err: &out}}).progress(true)
	quiet.show("hashing", 1, 2, true)
	quiet.end()
	if out.Len() > 0 {
		t.Errorf("it was to be quiet and says %q", out.String())
	}
}
