package observe

import (
	"errors"
	"testing"
)

func TestEventsAreSaidAndCounted(t *testing.T) {
	c := NewCoordinator()
	for kind := range texts {
		c.Happened(kind, "w1", 2)
	}
	c.Happened(WorkerGone, "w2", 0)
	c.Failed(CopyFailed, "w3", errors.New("the disk\nis full"))
	said := map[string]bool{}
	for _, e := range c.Events() {
		said[e.Text()] = true
	}
	for _, text := range []string{
		"worker w1 has joined",
		"worker w1 is gone, and with it its part of 2 sessions",
		"worker w2 is gone",
		"worker w1 was restarted: its part of 2 sessions is lost",
		"2 sessions go on without worker w1, from copies",
		"2 copies were made at worker w1",
		"worker w1 was lost to a job: others take its share",
		"under-replicated: 2 shards",
		"no copies are missing",
		"worker w1 freed 2 sessions that have gone on without it",
		"worker w1 keeps what it has of 2 sessions that went on there as well",
		"worker w1 is drained: its sessions move away",
		"worker w1 is drained no longer",
		"worker w1 is drained and holds no sessions",
		"2 sessions were moved to worker w1",
		"2 copies could not be made at worker w1",
		"1 copy could not be made at worker w3: the disk is full",
	} {
		if !said[text] {
			t.Errorf("no event says %q", text)
		}
		delete(said, text)
	}
	for text := range said {
		t.Errorf("an event says %q", text)
	}
	if got := c.Losses(); got != (Losses{Moved: 2, Jobs: 2}) {
		t.Errorf("counted are %+v", got)
	}
	if n := told(c.happened[CopyFailed]).GetCounter().GetValue(); n != 3 {
		t.Errorf("%v copies are counted that failed, want 3", n)
	}
}
