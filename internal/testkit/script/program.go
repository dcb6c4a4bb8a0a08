package script

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"headwater.example/internal/testkit/await"
)

// Program returns a driver that is a program: it is started with the coordinator's address and "relayed" or "direct", reads a
// Command in JSON on each line, and answers each with a line of JSON: {"out": …} or, for an error of its own, {"error": …}.
func Program(name string, args ...string) func(t testing.TB, address string, direct bool) Driver {
	return func(t testing.TB, address string, direct bool) Driver {
		way := "relayed"
		if direct {
			way = "direct"
		}
		p := &programDriver{cmd: exec.Command(name, append(args, address, way)...)}
		p.cmd.Stderr = os.Stderr
		in, errIn := p.cmd.StdinPipe()
		out, errOut := p.cmd.StdoutPipe()
		if err := errors.Join(errIn, errOut); err != nil {
			t.Fatal(err)
		}
		if err := p.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p.in, p.out = in, bufio.NewReader(out)
		return p
	}
}

type programDriver struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// Do implements Driver.
func (p *programDriver) Do(c Command) (string, error) {
	line, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	defer p.bounded()()
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		return "", fmt.Errorf("tell the driver: %w", err)
	}
	answer, err := p.out.ReadBytes('\n')
	if err != nil {
		return "", fmt.Errorf("the driver ended, or was killed since it had not answered within %v: %w", await.Patience, err)
	}
	var a struct{ Out, Error string }
	if err := json.Unmarshal(answer, &a); err != nil {
		return "", fmt.Errorf("the driver answered %q: %w", answer, err)
	}
	if a.Error != "" {
		return "", errors.New(a.Error)
	}
	return a.Out, nil
}

// Close implements Driver: the program ends when its input does.
func (p *programDriver) Close() error {
	defer p.bounded()()
	return errors.Join(p.in.Close(), p.cmd.Wait())
}

// bounded kills the program if it hangs until done is called.
func (p *programDriver) bounded() (done func()) {
	late := time.AfterFunc(await.Patience, func() { _ = p.cmd.Process.Kill() }) // if it fails, the program has ended
	return func() { late.Stop() }
}
