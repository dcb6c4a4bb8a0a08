package client_test

import (
	"errors"
	"strings"
	"testing"

	"headwater.example/client"
)

// TestStepsThatFailAlikeAreOneLine: the text has their reason once and how many they are, and each step has its own error.
func TestStepsThatFailAlikeAreOneLine(t *testing.T) {
	each(t, func(t *testing.T, c *cluster, direct bool) {
		s := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct})
		if err := c.DropSession(t.Context(), s.ID()); err != nil {
			t.Fatal(err)
		}
		for n := 1; n <= 3; n++ {
			var steps []*client.Step
			for range n {
				x := project(rng(1), layers[0], 1)
				steps = append(steps, &client.Step{Session: s, K: x.k, V: x.v})
			}
			err := client.Do(t.Context(), steps...)
			if !errors.Is(err, client.ErrGone) || strings.Count(err.Error(), "step layer 0 of session") != 1 {
				t.Errorf("direct %v: %d steps: %v", direct, n, err)
			}
			for suffix, of := range map[string]int{" (and 1 more step alike)": 2, " (and 2 more steps alike)": 3} {
				if strings.HasSuffix(err.Error(), suffix) != (n == of) {
					t.Errorf("direct %v: %d steps: %v", direct, n, err)
				}
			}
			for i, step := range steps {
				if !errors.Is(step.Err, client.ErrGone) {
					t.Errorf("direct %v: step %d of %d: %v", direct, i, n, step.Err)
				}
			}
		}
	})
}
