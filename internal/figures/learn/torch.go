package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"headwater.example/attention"
)

// pair is the seconds of one pass forward and backward, PyTorch's and ours, in turn.
type pair struct {
	Torch float64 `json:"torch_seconds"`
	Ours  float64 `json:"seconds"`
}

// torchWith is the Python that has torch, and the script that it runs.
type torchWith struct{ python, script string }

// torchThreads is how many threads both have.
const torchThreads = 2

// bothWays times attention forward and backward of all groups.
func bothWays(ctx context.Context, p *attention.Pool, forward []attention.Item, items []attention.Differentiation) (float64, error) {
	t, err := p.Acquire(ctx, attention.Foreground)
	if err != nil {
		return 0, err
	}
	defer t.Release()
	began := time.Now()
	err = t.AttendAll(ctx, forward)
	if err == nil {
		err = t.Differentiate(ctx, items)
	}
	return time.Since(began).Seconds(), err
}

// againstTorch times attention forward and backward in turn with PyTorch, in a process of its own.
func againstTorch(ctx context.Context, with torchWith, rounds int) (_ []pair, err error) {
	items, err := layer(ctx, speedTokens)
	if err != nil {
		return nil, err
	}
	forward := make([]attention.Item, len(items))
	for i, d := range items {
		forward[i] = attention.Item{KV: d.KV, Query: d.Query, Options: d.Options, Output: d.Output}
	}
	c := exec.CommandContext(ctx, with.python, with.script, strconv.Itoa(speedTokens), strconv.Itoa(heads), strconv.Itoa(groups), strconv.Itoa(headDim), strconv.Itoa(torchThreads))
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("start PyTorch: %w", err)
	}
	defer func() { err = errors.Join(err, in.Close(), c.Wait()) }()
	answers := bufio.NewReader(out)
	torch := func() (float64, error) {
		if _, err := io.WriteString(in, "\n"); err != nil {
			return 0, err
		}
		line, err := answers.ReadString('\n')
		if err != nil {
			return 0, fmt.Errorf("PyTorch says %q: %w", line, err)
		}
		return strconv.ParseFloat(strings.TrimSpace(line), 64)
	}
	p := attention.NewPool(torchThreads)
	defer p.Close()
	all := make([]pair, rounds+1)
	for i := range all {
		if all[i].Torch, err = torch(); err != nil {
			return nil, err
		}
		if all[i].Ours, err = bothWays(ctx, p, forward, items); err != nil {
			return nil, err
		}
	}
	return all[1:], nil // the first pass of each makes its room
}
