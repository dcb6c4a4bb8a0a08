package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"headwater.example/internal/localcluster"
)

// signals returns a context that ends when the process is asked to end: by Ctrl-C, by SIGTERM, and by SIGHUP, which a
// terminal sends when it is closed, unless that is ignored as under nohup. The second signal ends the process at once, with
// the local clusters that it has started. A reader that is gone does not: the write fails, and what was begun is cleaned up.
func signals() (context.Context, context.CancelFunc) {
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		ends = append(ends, syscall.SIGHUP)
	}
	came, unheard := make(chan os.Signal, 2), make(chan os.Signal, 1)
	signal.Notify(came, ends...)
	signal.Notify(unheard, syscall.SIGPIPE)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for range 2 {
			select {
			case s := <-came:
				if ctx.Err() != nil {
					localcluster.Abandon()
					number, _ := s.(syscall.Signal)
					os.Exit(128 + int(number)) // as a shell says it
				}
				cancel()
			case <-ended:
				return
			}
		}
	})
	return ctx, sync.OnceFunc(func() {
		signal.Stop(came)
		signal.Stop(unheard)
		close(ended)
		watch.Wait()
		cancel()
	})
}
