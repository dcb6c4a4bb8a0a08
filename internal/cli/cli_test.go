package cli

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/tensor"
)

// TestMain lets scripts run the programs, and local clusters run this binary as them.
func TestMain(m *testing.M) {
	streams := Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}
	testscript.Main(m, map[string]func(){
		"coord":  func() { os.Exit(Coord(os.Args[1:], streams)) },
		"worker": func() { os.Exit(Worker(os.Args[1:], streams)) },
	})
}

// TestScripts runs the commands as a terminal would. "exits N command…" demands an exit code.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: false,
		Setup: func(env *testscript.Env) error {
			writeJob(t, filepath.Join(env.WorkDir, "job.safetensors"), 0)
			writeJob(t, filepath.Join(env.WorkDir, "other.safetensors"), 1)
			writeOverflow(t, filepath.Join(env.WorkDir, "overflow.safetensors"))
			writeFar(t, filepath.Join(env.WorkDir, "far.safetensors"))
			env.Setenv("HOME", env.WorkDir)
			fixtures, err := filepath.Abs("../../test/data/smollm2")
			env.Setenv("FIXTURES", fixtures)
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "cluster": cluster, "session": session},
	})
}

// cluster starts a cluster of N workers, which the commands that follow find, until the script ends. The first worker's
// address is $WORKER.
func cluster(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(strings.Join(args, " "))
	ts.Check(err)
	program, err := exec.LookPath("coord")
	ts.Check(err)
	c, err := localcluster.Start(context.Background(), localcluster.Options{Workers: n, Command: []string{program}, Memory: 64 << 20})
	ts.Check(err)
	ts.Defer(func() { ts.Check(c.Stop(context.Background())) })
	ts.Setenv("HEADWATER_COORDINATOR", c.Address())
	dialed, err := client.Dial(c.Address())
	ts.Check(err)
	defer dialed.Close()
	status, err := dialed.Status(context.Background())
	ts.Check(err)
	ts.Setenv("WORKER", status.Workers[0].Address)
}

// session makes a session NAME of two layers, which have 3 groups and 1, with as many TOKENS, whose ids others know it by, and
// puts its id into $NAME and how many of the tokens were there already into $NAME_PREFIX.
func session(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: session NAME TOKENS")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	ctx := context.Background()
	c, err := client.Dial(ts.Getenv("HEADWATER_COORDINATOR"))
	ts.Check(err)
	defer c.Close()
	layers := []client.Layer{{Heads: 3, HeadDim: 8}, {Heads: 2, KVHeads: 1, HeadDim: 16, Storage: tensor.BF16}}
	ids := make([]uint32, n)
	s, err := c.OpenSession(ctx, client.SessionOptions{Layers: layers, Name: args[0], Tokens: ids})
	ts.Check(err)
	for layer, kv := range []int{3 * 8, 16} {
		rows := make([]float32, (n-s.Prefix())*kv)
		ts.Check(s.Do(ctx, &client.Step{Layer: layer, K: rows, V: rows, Tokens: ids[s.Prefix():]}))
	}
	ts.Setenv(args[0], s.ID().String())
	ts.Setenv(args[0]+"_PREFIX", strconv.Itoa(s.Prefix()))
}

// exits runs a program of this package and demands its exit code, and that an error is one line that begins with its name.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGUMENT…")
	}
	ts.Check(os.WriteFile(ts.MkAbs("exit.sh"), []byte("\"$@\" >out.txt 2>err.txt\necho $? >code.txt\n"), 0o600))
	ts.Check(ts.Exec("sh", append([]string{"exit.sh"}, args[1:]...)...))
	code := strings.TrimSpace(ts.ReadFile("code.txt"))
	message := ts.ReadFile("err.txt")
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s; stderr: %s", code, args[0], message)
	}
	lines := strings.Split(strings.TrimSpace(message), "\n")
	if len(lines) != 1 || !strings.HasPrefix(lines[0], args[1]+": ") {
		ts.Fatalf("stderr is not one line that begins with %q: %q", args[1]+": ", message)
	}
}

// writeJob writes a job of 4 tokens on 6 positions, 4 heads in 2 groups of head_dim 8, whose values depend on seed.
func writeJob(t *testing.T, path string, seed int) {
	t.Helper()
	writeTensors(t, path, []tensor.Data{waves("q", seed, 4, 4, 8), waves("k", seed, 6, 2, 8), waves("v", seed, 6, 2, 8)},
		map[string]string{"headwater": `{"causal":true}`, "tokens": `["the","river","runs","to","the","sea"]`})
}

// waves is a tensor of some numbers from −1 to 1.
func waves(name string, seed int, shape ...int) tensor.Data {
	n := 1
	for _, d := range shape {
		n *= d
	}
	raw := make([]byte, 0, 4*n)
	for i := range n {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(float32(math.Sin(float64(i*7+seed+len(shape))))))
	}
	return tensor.Data{Info: tensor.Info{Name: name, DType: tensor.F32, Shape: shape}, Bytes: raw}
}

// writeFar writes a job whose queries stand 50,000 positions beyond the keys, with ALiBi, and with a bias of about −10,000.
func writeFar(t *testing.T, path string) {
	t.Helper()
	bias := waves("bias", 3, 1, 4, 6)
	for i := 0; i < len(bias.Bytes); i += 4 {
		x := math.Float32frombits(binary.LittleEndian.Uint32(bias.Bytes[i:])) - 10000
		binary.LittleEndian.PutUint32(bias.Bytes[i:], math.Float32bits(x))
	}
	writeTensors(t, path, []tensor.Data{waves("q", 0, 4, 4, 8), waves("k", 0, 6, 2, 8), waves("v", 0, 6, 2, 8), bias},
		map[string]string{"headwater": `{"offset":50000,"alibi_slopes":[0.9,0.7,0.5,0.3]}`})
}

// writeOverflow writes a job of one query on one position, whose score is -1e40.
func writeOverflow(t *testing.T, path string) {
	t.Helper()
	one := func(name string, x float32) tensor.Data {
		return tensor.Data{Info: tensor.Info{Name: name, DType: tensor.F32, Shape: []int{1, 1, 1}}, Bytes: binary.LittleEndian.AppendUint32(nil, math.Float32bits(x))}
	}
	writeTensors(t, path, []tensor.Data{one("q", 1e20), one("k", -1e20), one("v", 1)}, nil)
}

func writeTensors(t *testing.T, path string, all []tensor.Data, metadata map[string]string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tensor.WriteSafetensors(f, all, metadata), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestHelpTeachesOnATerminal: the help of every command has an example, and no line that a terminal of 80 columns breaks.
func TestHelpTeachesOnATerminal(t *testing.T) {
	var out bytes.Buffer
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		if cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		out.Reset()
		if err := cmd.Help(); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, " \n")); n > 80 {
				t.Errorf("%s --help has a line of %d columns: %s", cmd.CommandPath(), n, line)
			}
		}
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	for _, program := range []string{"coord", "worker"} {
		a := &app{Streams: Streams{Out: &out, Err: &out}, program: program}
		visit(a.tree())
	}
}

// TestExitCodesAreDocumented in docs/errors.md and in the help of the commands, and nowhere else.
func TestExitCodesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "## Exit codes")
	for code := exitOK; code <= exitUnhealthy; code++ {
		if !strings.Contains(table, fmt.Sprintf("\n| %d | ", code)) || !strings.Contains(exitHelp, fmt.Sprintf(" %d ", code)) {
			t.Errorf("exit code %d is not documented", code)
		}
	}
	for err, want := range map[error]int{
		nil: exitOK, errors.New("x"): exitFailed, usage("x"): exitUsage, fmt.Errorf("write: %w", syscall.ENOSPC): exitTryAgain, syscall.EDQUOT: exitTryAgain,
		&client.Error{Code: codes.Unavailable}:                       exitUnreachable,
		&client.Error{Code: codes.Unavailable, Answered: true}:       exitTryAgain,
		&client.Error{Code: codes.ResourceExhausted, Answered: true}: exitTryAgain,
		&client.Error{Code: codes.InvalidArgument, Answered: true}:   exitRefused,
		&client.JobError{Job: &client.Job{State: client.JobFailed, ErrorCode: codes.ResourceExhausted, Error: "write: no space left on device"}}: exitTryAgain,
		&client.JobError{Job: &client.Job{State: client.JobFailed, ErrorCode: codes.OutOfRange}}:                                                 exitRefused,
		&client.JobError{Job: &client.Job{State: client.JobCancelled}}:                                                                           exitFailed,
	} {
		if got := exitCode(err); got != want {
			t.Errorf("%v ends with %d, want %d", err, got, want)
		}
	}
}

func TestSizesAreRead(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "17": 17, "4GiB": 4 << 30, "1.5 KiB": 1536, "2Mi": 2 << 20, "3MB": 3e6, "9223372036854775807": math.MaxInt64, "5B": 5} {
		var size byteSize
		if err := size.Set(text); err != nil || int64(size) != want {
			t.Errorf("%q is %d, %v; want %d", text, size, err, want)
		}
	}
	for _, text := range []string{"", "-1", "GiB", "1e30", "NaN", "Inf", "9999999TiB", "4GiBs", "9223372036854775808"} {
		var size byteSize
		if err := size.Set(text); err == nil {
			t.Errorf("%q was read as %d", text, size)
		}
	}
}

// expand is the oracle of ranges: what a reader takes it to mean.
func TestRangesCanBeReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seen := rapid.SliceOfNDistinct(rapid.IntRange(0, 60), 0, 30, rapid.ID[int]).Draw(t, "numbers")
		var numbers []int
		for i := range 61 {
			for _, n := range seen {
				if n == i {
					numbers = append(numbers, i)
				}
			}
		}
		var back []int
		words := strings.Split(ranges(numbers), ",")
		for i := 0; i < len(words) && len(numbers) > 0; i++ {
			var from, to int
			if a, b, ok := strings.Cut(words[i], "-"); ok {
				from, to = number(t, a), number(t, b)
				for n := from; n <= to; n++ {
					back = append(back, n)
				}
				continue
			}
			if words[i] == "…" {
				step := back[len(back)-1] - back[len(back)-2]
				for n := back[len(back)-1] + step; n < number(t, words[i+1]); n += step {
					back = append(back, n)
				}
				continue
			}
			back = append(back, number(t, words[i]))
		}
		if len(back) != len(numbers) {
			t.Fatalf("%v became %q, which reads %v", numbers, ranges(numbers), back)
		}
		for i := range back {
			if back[i] != numbers[i] {
				t.Fatalf("%v became %q, which reads %v", numbers, ranges(numbers), back)
			}
		}
	})
}

func number(t *rapid.T, s string) int {
	var n int
	if err := json.Unmarshal([]byte(s), &n); err != nil {
		t.Fatalf("%q is no number", s)
	}
	return n
}

func FuzzPlanArguments(f *testing.F) {
	f.Add("3", "", 32, 8, 4)
	f.Add("a,b:2,c", "2", 9, 3, 30)
	f.Add("a,a", "x:0", 0, 0, 0)
	f.Add("99999999999999999999", ",", -1, 513, 1)
	f.Fuzz(func(t *testing.T, workers, from string, heads, kvHeads, layers int) {
		if layers > 64 || len(workers) > 1<<12 || len(from) > 1<<12 {
			return
		}
		a := &app{Streams: Streams{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}}, program: "coord"}
		cmd := a.plan()
		flags := planFlags{workers: workers, from: from, heads: heads, kvHeads: kvHeads, headDim: 64, vDim: 64, layers: layers}
		if cmd.Flags().Set("heads", "1") != nil || cmd.Flags().Set("kv-heads", "1") != nil {
			t.Fatal("flags are gone")
		}
		geometry, _, err := flags.geometry(cmd)
		if err != nil {
			return
		}
		plan, _, err := flags.plans(geometry)
		if err != nil {
			return
		}
		text, err := plan.JSON(nil)
		if err != nil {
			t.Fatal(err)
		}
		drawn, err := drawPlan(text)
		if err != nil {
			t.Fatalf("a plan that was made can not be read: %v", err)
		}
		if err := a.printPlan(drawn); err != nil {
			t.Fatal(err)
		}
	})
}
