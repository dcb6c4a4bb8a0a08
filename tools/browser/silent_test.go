package browser

import (
	"context"
	"sync"

	"headwater.example/internal/dashboard"
)

// Silent is a Fake that can fall silent: its pictures do not come until it speaks again.
type Silent struct {
	Fake

	mu     sync.Mutex
	speaks chan struct{} // closed while it speaks
}

func (s *Silent) speak() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.speaks == nil {
		s.speaks = make(chan struct{})
	}
	close(s.speaks)
}

// fallSilent lets no more pictures begin.
func (s *Silent) fallSilent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.speaks = make(chan struct{})
}

// Picture implements dashboard.Cluster.
func (s *Silent) Picture(ctx context.Context) (*dashboard.Snapshot, error) {
	s.mu.Lock()
	speaks := s.speaks
	s.mu.Unlock()
	select {
	case <-speaks:
		return s.Fake.Picture(ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
