package script

import (
	"context"
	"fmt"
	"path"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// post stands before a holder: it writes down what the holder is told, and lets calls fail as a script says.
type post struct {
	cut func() // breaks the holder's connections

	mu      sync.Mutex
	lines   []string
	faults  []fault
	hanging chan struct{} // closed when the holder goes on; nil while it does not hang
}

// fault is that of the next message of a kind.
type fault struct {
	on    string // "step", "fork", "truncate" and so on
	after bool   // once it is done, but before it is answered
}

func newPost() *post { return &post{} }

// fault reads "on=step when=before|after times=1".
func (p *post) fault(args map[string]string) error {
	when := args["when"]
	if when != "before" && when != "after" {
		return fmt.Errorf("fault: when=%s is neither before nor after", when)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, fault{on: args["on"], after: when == "after"})
	return nil
}

// hang makes each message wait from now on.
func (p *post) hang() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hanging == nil {
		p.hanging = make(chan struct{})
	}
}

// resume lets them go on.
func (p *post) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hanging != nil {
		close(p.hanging)
		p.hanging = nil
	}
}

// told returns the lines so far, and forgets them.
func (p *post) told() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	lines := p.lines
	p.lines = nil
	return lines
}

// take writes a message down, waits if the holder hangs, and returns the fault that the message meets.
func (p *post) take(ctx context.Context, kind, line string) (*fault, error) {
	p.mu.Lock()
	// A drop may be sent again while nobody knows whether it was done.
	if again := line == "drop" && len(p.lines) > 0 && p.lines[len(p.lines)-1] == line; line != "" && !again {
		p.lines = append(p.lines, line)
	}
	hanging := p.hanging
	var met *fault
	for i, f := range p.faults {
		if f.on == kind {
			met = &f
			p.faults = append(p.faults[:i:i], p.faults[i+1:]...)
			break
		}
	}
	p.mu.Unlock()
	if hanging != nil {
		select {
		case <-hanging:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	return met, nil
}

var errCut = status.Error(codes.Unavailable, "the script cut the connection")

func (p *post) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	kind, line := describe(path.Base(info.FullMethod), req)
	if kind == "" {
		return handle(ctx, req)
	}
	met, err := p.take(ctx, kind, line)
	if err != nil {
		return nil, err
	}
	if met != nil && !met.after {
		p.cut()
		return nil, errCut
	}
	resp, err := handle(ctx, req)
	if met != nil {
		p.cut()
		return nil, errCut
	}
	return resp, err
}

func (p *post) stream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return handle(srv, &watched{ServerStream: stream, post: p})
}

// watched is a stream whose messages pass a post.
type watched struct {
	grpc.ServerStream
	post *post
	cut  bool // instead of the next answer the connection breaks
}

func (w *watched) RecvMsg(m any) error {
	if err := w.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	r, ok := m.(*session.Request)
	if !ok {
		return nil
	}
	met, err := w.post.take(w.Context(), "step", describeStep(&r.Step))
	switch {
	case err != nil:
		return err
	case met == nil:
		return nil
	case met.after:
		w.cut = true
		return nil
	}
	w.post.cut()
	return errCut
}

func (w *watched) SendMsg(m any) error {
	if w.cut {
		w.post.cut()
		return errCut
	}
	return w.ServerStream.SendMsg(m)
}

// describe names a call by its kind and tells it in one line. Calls that look around are not told: how often they are made is
// nobody's promise.
func describe(method string, req any) (kind, line string) {
	switch r := req.(type) {
	case *headwaterv1.CreateSessionRequest:
		return "open", "open"
	case *headwaterv1.TakeSessionRequest:
		if r.GetCheckOnly() {
			return "", ""
		}
		return "take", fmt.Sprintf("take, epoch %d", r.GetEpoch().GetCounter())
	case *headwaterv1.ForkSessionRequest:
		if r.Position != nil {
			return "fork", fmt.Sprintf("fork at %d", r.GetPosition())
		}
		return "fork", "fork"
	case *headwaterv1.TruncateSessionRequest:
		if r.GetCheckOnly() {
			return "", ""
		}
		if lengths := r.GetLengths(); len(lengths) > 0 {
			return "truncate", "truncate to " + strings.Trim(fmt.Sprint(lengths), "[]")
		}
		return "truncate", fmt.Sprintf("truncate to %d", r.GetPosition())
	case *headwaterv1.PinSessionRequest:
		return "pin", fmt.Sprintf("pin %v", r.GetPinned())
	case *headwaterv1.DropSessionRequest:
		return "drop", "drop"
	}
	return "", ""
}

func describeStep(s *session.Step) string {
	line := fmt.Sprintf("step of layer %d at %d", s.Layer, s.Length)
	if s.Append > 0 {
		line += fmt.Sprintf(", append %d", s.Append)
	}
	if s.Attend > 0 {
		line += fmt.Sprintf(", attend %d from %d", s.Attend, s.QueryPosition)
	}
	return line
}
