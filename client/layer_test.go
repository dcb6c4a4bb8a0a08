package client_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"headwater.example/client"
	"headwater.example/tensor"
)

// TestWindowsAreWhatWasAskedFor: a window of no position beside the own one is not an unbounded one, in what is computed and
// in what a session tells of its layers, also to a client that attaches.
func TestWindowsAreWhatWasAskedFor(t *testing.T) {
	c, ctx := start(t, 2), context.Background()
	windows := []client.Window{client.Unbounded, client.Within(0), client.Within(1), client.Within(100)}
	var asked []client.Layer
	for i, w := range windows {
		asked = append(asked, client.Layer{Heads: 2, KVHeads: 2, HeadDim: 2, WindowLeft: w},
			client.Layer{Heads: 2, KVHeads: 2, HeadDim: 2, NotCausal: true, WindowLeft: windows[len(windows)-1-i], WindowRight: w})
	}
	s := open(t, c.Client, client.SessionOptions{Layers: asked})
	check := func(s *client.Session) {
		t.Helper()
		for i, l := range s.Layers() {
			if l.WindowLeft != asked[i].WindowLeft || l.WindowRight != asked[i].WindowRight || l.Storage != tensor.F32 || l.VDim != 2 {
				t.Errorf("layer %d was asked for as %v and %v, and is %v and %v: %+v", i, asked[i].WindowLeft, asked[i].WindowRight, l.WindowLeft, l.WindowRight, l)
			}
		}
	}
	check(s)
	const n = 3 // value of position p is p+1, all keys are alike
	k, v, q := make([]float32, n*4), make([]float32, n*4), make([]float32, n*4)
	for p := range n {
		for e := range 4 {
			v[p*4+e] = float32(p + 1)
		}
	}
	for i, l := range asked {
		got := make([]float32, n*4)
		if err := s.Step(ctx, i, q, k, v, got, nil); err != nil {
			t.Fatal(err)
		}
		for p := range n {
			var sum, count float32
			for at := range n {
				left, bounded := l.WindowLeft.Positions()
				right, boundedRight := l.WindowRight.Positions()
				if bounded && p-at > left || at > p && (!l.NotCausal || boundedRight && at-p > right) {
					continue
				}
				sum, count = sum+float32(at+1), count+1
			}
			if want := sum / count; got[p*4]-want > 1e-6 || want-got[p*4] > 1e-6 {
				t.Errorf("layer %d, windows %v and %v: position %d sees %v, want %v", i, l.WindowLeft, l.WindowRight, p, got[p*4], want)
			}
		}
	}
	s.Keep(true)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := c.Attach(ctx, s.ID(), client.AttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	check(again)
	for _, w := range []client.Layer{{Heads: 1, HeadDim: 1, WindowLeft: client.Within(-1)}, {Heads: 1, HeadDim: 1, NotCausal: true, WindowRight: client.Within(-5)}} {
		if _, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{w}}); err == nil || !strings.Contains(err.Error(), "less than 0") {
			t.Errorf("windows %v and %v: %v", w.WindowLeft, w.WindowRight, err)
		}
	}
	if text := fmt.Sprint(client.Unbounded, client.Within(7)); text != "unbounded 7" {
		t.Error(text)
	}
}
