package cli

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"headwater.example/client"
)

// TestTopShowsWhatHappenedInTheInterval compares a view with rates that are reckoned by hand: of a worker that counts, of one that was
// restarted within the interval, of one that does not count, and of one that does not answer.
func TestTopShowsWhatHappenedInTheInterval(t *testing.T) {
	began := time.Unix(1000, 0)
	load := func(read, steps uint64, queue time.Duration, layers ...client.LayerLoad) *client.WorkerLoad {
		return &client.WorkerLoad{BusBytesPerSecond: 100e9, ReadBytes: read, Steps: steps, Queue: queue, Layers: layers}
	}
	before := topSample{at: began, status: &client.Status{Workers: []client.WorkerStatus{
		{Name: "a", Boot: []byte{1}, Load: load(1e9, 100, time.Second, client.LayerLoad{Layer: 0, Steps: 50, Kernel: time.Second}, client.LayerLoad{Layer: 1, Steps: 50, Kernel: time.Second})},
		{Name: "b", Boot: []byte{1}, Load: load(5e9, 500, 0)},
		{Name: "c", Boot: []byte{1}},
	}}}
	now := topSample{at: began.Add(2 * time.Second), copies: &client.Copies{LackingShards: 7}, caches: []client.Cache{{Worker: "a", Sessions: 3, QueuedSteps: 4, PrefixAsked: 10, PrefixHits: 9}}, status: &client.Status{
		Name: "coord", Jobs: map[client.JobState]uint64{client.JobStates[1]: 2},
		Workers: []client.WorkerStatus{
			{
				Name: "a", Boot: []byte{1}, BudgetBytes: 100, UsedBytes: 60, SpareBytes: 10,
				Load: load(51e9, 300, 3*time.Second, client.LayerLoad{Layer: 0, Steps: 150, Kernel: 2 * time.Second}, client.LayerLoad{Layer: 1, Steps: 50, Kernel: time.Second}, client.LayerLoad{Layer: 2, Steps: 100, Kernel: 4 * time.Second}),
			},
			{Name: "b", Boot: []byte{2}, Load: load(1, 1, 0, client.LayerLoad{Layer: 9, Steps: 1, Kernel: time.Hour})},
			{Name: "c", Boot: []byte{1}},
			{Name: "d", Error: "it is gone"},
		},
	}}
	number := func(v float64) *float64 { return &v }
	v := viewTop(before, now)
	want := []topWorker{
		{Name: "a", MemoryShare: 0.5, Sessions: 3, QueuedSteps: 4, HitShare: number(0.9), StepsPerSecond: number(100), QueueSeconds: number(0.01), ReadPerSecond: number(25e9), BusShare: number(0.25)},
		{Name: "b"},
		{Name: "c"},
		{Name: "d", Error: "it is gone"},
	}
	if !reflect.DeepEqual(v.Workers, want) {
		t.Errorf("workers are %+v, want %+v", v.Workers, want)
	}
	if want := []topShard{{2, "a", 50, 0.04}, {0, "a", 50, 0.01}}; !reflect.DeepEqual(v.Shards, want) {
		t.Errorf("the slowest shards are %v, want %v", v.Shards, want)
	}
	for _, live := range []bool{false, true} {
		var out bytes.Buffer
		if err := (&app{Streams: Streams{Out: &out}}).printTop(v, live); err != nil {
			t.Fatal(err)
		}
		text := out.String()
		if strings.Contains(text, "\x1b") != live {
			t.Errorf("live %v: it has escapes: %q", live, text)
		}
		for _, words := range []string{"2 queued", "under-replicated: 7 shards", "25%", "25.0 GB", "10.00 ms", "90%", "40.000 ms", "left out"} {
			if !strings.Contains(text, words) {
				t.Errorf("it does not say %q:\n%s", words, text)
			}
		}
		for line := range strings.Lines(text) {
			if len([]rune(strings.TrimRight(line, "\n"))) > 80+len(clearScreen) {
				t.Errorf("a line is wider than 80 columns: %q", line)
			}
		}
	}
}
