package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// python measures a step from the Python client against one from Go, on a session each of one worker.
func python(ctx context.Context, f *figures) error {
	return f.besidePython(ctx, 16384, func(python, goes float64, parts map[string]float64) { f.add("py_step", python/goes, parts) })
}

// overheadOfPython measures what Python adds to a short step.
func overheadOfPython(ctx context.Context, f *figures) error {
	return f.besidePython(ctx, 128, func(python, goes float64, parts map[string]float64) {
		f.add("py_overhead_us", 1e6*(python-goes), parts)
	})
}

// besidePython times steps that see so many positions from Python and from Go, in turns, and adds a round's medians in seconds.
func (f *figures) besidePython(ctx context.Context, positions int, add func(python, goes float64, parts map[string]float64)) (err error) {
	const steps, turns = 30, 5
	c, err := f.start(ctx, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop(ctx)) }()
	p, err := f.startPython(ctx, "step.py", c.Address(), strconv.Itoa(positions))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	m := newModel(1024)
	s, err := c.open(ctx, m, positions-1)
	if err != nil {
		return err
	}
	one := m.step(s, 0, 1, true)
	for round := range f.rounds + 1 {
		if err := s.Truncate(ctx, positions-1); err != nil {
			return err
		}
		var fromGo, fromPython []float64
		for range turns {
			took, err := times(steps/turns, func() error { return s.Do(ctx, one) })
			if err != nil {
				return err
			}
			fromGo = append(fromGo, took)
			if took, err = p.ask(strconv.Itoa(steps / turns)); err != nil {
				return err
			}
			fromPython = append(fromPython, took)
		}
		if round > 0 { // the first warms up
			python, goes := median(fromPython), median(fromGo)
			add(python, goes, map[string]float64{"python_seconds": python, "go_seconds": goes})
		}
	}
	return s.Drop(ctx)
}

// process is a Python program that answers each line with a number.
type process struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *bufio.Scanner
}

func (f *figures) startPython(ctx context.Context, program string, args ...string) (*process, error) {
	source, err := filepath.Abs("clients/python/src")
	if err != nil {
		return nil, err
	}
	coord, err := filepath.Abs(filepath.Join(f.bin, "coord"))
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.CommandContext(ctx, f.python, append([]string{filepath.Join("clients", "python", "bench", program)}, args...)...)}
	p.cmd.Env, p.cmd.Stderr = append(os.Environ(), "PYTHONPATH="+source, "HEADWATER_COORD="+coord), os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.answers = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s (make test-python installs what it needs): %w", f.python, err)
	}
	if _, err := p.line(); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

// ask sends a line and returns the number that comes back.
func (p *process) ask(line string) (float64, error) {
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		return 0, err
	}
	answer, err := p.line()
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(answer), 64)
}

func (p *process) line() (string, error) {
	if !p.answers.Scan() {
		return "", errors.Join(fmt.Errorf("%s ended early", p.cmd.Args[1]), p.answers.Err())
	}
	return p.answers.Text(), nil
}

// stop ends the program and waits for it.
func (p *process) stop() error {
	return errors.Join(p.in.Close(), p.cmd.Wait())
}
