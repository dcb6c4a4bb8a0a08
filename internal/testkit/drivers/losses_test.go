package drivers

import (
	"testing"
	"testing/synctest"

	"headwater.example/client"
)

// TestNobodySaysWhatIsOrphanedBeforeItIsKnown: while a worker dies at a moment that nobody knows, who asks whether a session may have lost
// something waits until that is known.
func TestNobodySaysWhatIsOrphanedBeforeItIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &losses{}
		orphan, whole := &book{id: client.SessionID{1}}, &book{id: client.SessionID{2}}
		since := l.tick()
		said := make(chan bool, 2)
		l.doubt(func() {
			go func() { said <- l.orphaned(orphan, since) }()
			synctest.Wait()
			if len(said) > 0 {
				t.Error("it is said before it is known")
			}
			l.orphan([]client.SessionID{orphan.id})
		})
		if !<-said {
			t.Error("an orphan is none")
		}
		if l.orphaned(whole, since) || l.orphaned(orphan, l.tick()) {
			t.Error("a session is an orphan that is none")
		}
	})
}
