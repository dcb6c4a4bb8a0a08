package attention

import (
	"context"
	"strings"
	"testing"
)

// panicky are tasks of which one panics.
type panicky struct{ bad int }

func (p panicky) task(_ context.Context, _ *Thread, i int) error {
	if i == p.bad {
		panic("injected")
	}
	return nil
}

// A panic of a task, on whichever thread it is, is raised in its call once no other thread works for that. The pool goes on.
func TestAPanicIsItsCallers(t *testing.T) {
	p := NewPool(3)
	defer p.Close()
	for bad := range 200 {
		thread := acquire(t, p, Class(bad%2))
		func() {
			defer thread.Release()
			defer func() {
				if err, ok := recover().(error); !ok || !strings.Contains(err.Error(), "injected") || !strings.Contains(err.Error(), "panicky") {
					t.Errorf("task %d: recovered %v", bad, err)
				}
			}()
			_ = thread.share(context.Background(), panicky{bad}, 200, true)
			t.Errorf("task %d: no panic", bad)
		}()
	}
	thread := acquire(t, p, Foreground)
	defer thread.Release()
	if err := thread.share(context.Background(), panicky{-1}, 200, true); err != nil {
		t.Error(err)
	}
}
