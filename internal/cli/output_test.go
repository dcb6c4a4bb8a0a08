package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// stranger is a coordinator whose every name is the same: long, or hostile.
type stranger struct {
	headwaterv1.UnimplementedCoordinatorServiceServer
	headwaterv1.UnimplementedSessionServiceServer
	name string
	fail bool
}

func (s *stranger) job() *headwaterv1.Job {
	now := timestamppb.Now()
	worker := func() *headwaterv1.WorkerReport {
		return &headwaterv1.WorkerReport{Name: s.name, Units: 1e6, BytesOut: 1e13, BytesInRaw: 1e13, BytesInWire: 1e13, Compute: durationpb.New(time.Hour), Wire: durationpb.New(time.Hour), Lost: true}
	}
	plan, err := json.Marshal(map[string]any{
		"workers": []any{map[string]any{"name": s.name, "weight": 1}}, "epoch": 1, "idle": []string{s.name},
		"layers": []any{map[string]any{"n_heads": 32, "n_kv_heads": 8, "head_dim": 128, "v_dim": 128, "groups": map[string]any{s.name: []int{0, 1, 2, 3, 4, 5, 6, 7}}}},
	})
	if err != nil {
		panic(err)
	}
	return &headwaterv1.Job{
		Id: s.name[:min(len(s.name), 36)] + "-01JD0000000000000000000000", Key: s.name, Name: s.name, Kind: s.name, Error: s.name, State: headwaterv1.JobState_JOB_STATE_SUCCEEDED,
		ContentHash: strings.Repeat("a", 64), ResultSha256: strings.Repeat("b", 64), ResultBytes: 1e13, SizeBytes: 1e13, Created: now, Started: now, Ended: now,
		Report: &headwaterv1.Report{Workers: []*headwaterv1.WorkerReport{worker(), worker()}, WorkersLost: 12, Elapsed: durationpb.New(100 * time.Hour), Plan: plan},
	}
}

func (s *stranger) error() error {
	if s.fail {
		return status.Error(codes.InvalidArgument, s.name)
	}
	return nil
}

func (s *stranger) Status(context.Context, *headwaterv1.StatusRequest) (*headwaterv1.StatusResponse, error) {
	worker := &headwaterv1.WorkerStatus{
		Worker:  &headwaterv1.DescribeResponse{Name: s.name, Version: s.name, Kernel: s.name, BudgetBytes: 1e13, UsedBytes: 1e13, Threads: 1000, Weight: 1000},
		Address: s.name, Error: s.name,
	}
	return &headwaterv1.StatusResponse{
		Name: s.name, Version: s.name, Protocol: rpc.Version, Workers: []*headwaterv1.WorkerStatus{worker, worker},
		Jobs: []*headwaterv1.StateCount{{State: headwaterv1.JobState_JOB_STATE_SUCCEEDED, Count: math.MaxUint64}},
	}, s.error()
}

func (s *stranger) ListJobs(context.Context, *headwaterv1.ListJobsRequest) (*headwaterv1.ListJobsResponse, error) {
	return &headwaterv1.ListJobsResponse{Jobs: []*headwaterv1.Job{s.job(), s.job()}}, s.error()
}

func (s *stranger) GetJob(context.Context, *headwaterv1.GetJobRequest) (*headwaterv1.GetJobResponse, error) {
	return &headwaterv1.GetJobResponse{Job: s.job()}, s.error()
}

func (s *stranger) CancelJob(context.Context, *headwaterv1.CancelJobRequest) (*headwaterv1.CancelJobResponse, error) {
	return &headwaterv1.CancelJobResponse{Job: s.job()}, s.error()
}

func (s *stranger) ListSessions(_ context.Context, req *headwaterv1.ListSessionsRequest) (*headwaterv1.ListSessionsResponse, error) {
	session := &headwaterv1.SessionState{
		Session: bytes.Repeat([]byte{0xab}, 16), Name: s.name, Tenant: s.name, PageBytes: 1e13, OwnBytes: 1e13, Used: timestamppb.Now(), Created: timestamppb.Now(), Pinned: true,
		Epoch: &headwaterv1.Epoch{Counter: 1e6}, Truncations: 1e6, Layers: []*headwaterv1.LayerState{{Length: 1e8}},
		Holders: []*headwaterv1.Holder{{Name: s.name, Address: s.name, PageBytes: 1e13, OwnBytes: 1e13, Layers: []*headwaterv1.HeldLayer{{Groups: []uint32{0, 1, 2}}}}},
	}
	resp := &headwaterv1.ListSessionsResponse{
		Sessions: []*headwaterv1.SessionState{session},
		Caches: []*headwaterv1.CacheState{{
			Worker: s.name, Sessions: 1e5, UsedBytes: 1e13, RoomBytes: proto.Uint64(1e13), PrefixAsked: 100, PrefixHits: 100, PrefixSavedBytes: 1e13, Evicted: 1e6, Lanes: 1e4, QueuedSteps: 1e5,
			Pages: []*headwaterv1.PageState{{PageBytes: 1 << 20, Used: 1e6, Free: 1e6}, {PageBytes: 1 << 10, Used: 1, Free: 1}},
		}},
	}
	if len(req.GetSessions()) == 0 {
		resp.Silent = []*headwaterv1.SilentWorker{{Worker: s.name, Address: s.name, Error: s.name}}
	}
	return resp, s.error()
}

// serve serves the coordinator until the test ends, and returns its address.
func (s *stranger) serve(t *testing.T) string {
	t.Helper()
	server := grpc.NewServer(rpc.ServerOptions()...)
	headwaterv1.RegisterCoordinatorServiceServer(server, s)
	headwaterv1.RegisterSessionServiceServer(server, s)
	rpc.Register(server, headwaterv1.CoordinatorService_ServiceDesc.ServiceName)
	return serve(t, server)
}

// serve serves until the test ends, and returns the address.
func serve(t *testing.T, server *grpc.Server) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }() // ends with Stop
	t.Cleanup(func() { server.Stop(); <-done })
	return listener.Addr().String()
}

// remoteCommands are those that print what a coordinator tells.
var remoteCommands = [][]string{
	{"status"},
	{"health"},
	{"version"},
	{"jobs", "list"},
	{"jobs", "show", "x"},
	{"jobs", "cancel", "x"},
	{"sessions", "list"},
	{"sessions", "show", "abababababababababababababababab"},
	{"sessions", "show", "abab"},
	{"__complete", "jobs", "show", ""},
	{"__complete", "sessions", "show", ""},
}

// TestNamesWithEscapesAreCleanedWhereverTheyArePrinted: tables, messages, errors, JSON and what shells complete.
func TestNamesWithEscapesAreCleanedWhereverTheyArePrinted(t *testing.T) {
	const hostile = "a\x1b]0;owned\x07\x1b[31mb\u009b2J\u202ec\r\nforged line\td"
	for _, fail := range []bool{false, true} {
		address := (&stranger{name: hostile, fail: fail}).serve(t)
		for _, command := range remoteCommands {
			for _, format := range []string{"table", "wide", "json"} {
				args := append(command[:len(command):len(command)], "--coordinator", address, "--output", format)
				if command[0] == "__complete" {
					args = append([]string{"__complete", "--coordinator", address}, command[1:]...)
				}
				var out, errs bytes.Buffer
				code := Coord(args, Streams{Out: &out, Err: &errs})
				for _, text := range []string{out.String(), errs.String()} {
					for line := range strings.Lines(text) {
						line = strings.TrimSuffix(line, "\n")
						if command[0] == "__complete" {
							line = strings.Replace(line, "\t", "", 1) // between a word and what it means
						}
						if strings.HasPrefix(line, "forged") || !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
							t.Errorf("coord %q, exit code %d, prints %q", args, code, line)
						}
					}
				}
				if format == "json" && code == exitOK && command[0] != "__complete" {
					var back any
					if err := json.Unmarshal(out.Bytes(), &back); err != nil || !strings.Contains(fmt.Sprint(back), hostile) && command[0] != "health" {
						t.Errorf("coord %q: %v; JSON has not the name itself: %s", args, err, &out)
					}
				}
			}
		}
	}
}

// TestTablesFit80Columns with the longest names and numbers.
func TestTablesFit80Columns(t *testing.T) {
	address := (&stranger{name: strings.Repeat("long", 16)}).serve(t)
	for _, command := range remoteCommands {
		if command[0] != "jobs" && command[0] != "sessions" && command[0] != "status" {
			continue
		}
		var out, errs bytes.Buffer
		if code := Coord(append(command[:len(command):len(command)], "--coordinator", address), Streams{Out: &out, Err: &errs}); code != exitOK {
			t.Errorf("%q: %s", command, &errs)
		}
		for line := range strings.Lines(out.String()) {
			// Messages of names alone are no tables.
			wide := strings.HasPrefix(line, "coordinator ") || strings.Contains(line, " at longlong") || strings.HasPrefix(line, "idle, ") || strings.HasPrefix(line, "session ")
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 && !wide {
				t.Errorf("%q prints %d columns: %s", command, n, line)
			}
		}
	}
}

// TestStatesHaveColoursOnATerminalAlone, and none where the user wants none.
func TestStatesHaveColoursOnATerminalAlone(t *testing.T) {
	var out bytes.Buffer
	a := &app{Streams: Streams{Out: &out}}
	plain := a.newTable("", "state")
	plain.AppendRow(table.Row{state("failed")})
	if strings.Contains(plain.Render(), "\x1b") {
		t.Errorf("a file gets %q", plain.Render())
	}
	text.EnableColors()
	painted := a.newTable("", "state")
	painted.colours = true
	painted.AppendRow(table.Row{state("failed")})
	painted.AppendRow(table.Row{"\x1b[31mforged"})
	if got := painted.Render(); !strings.Contains(got, text.FgRed.Sprint("failed")) || strings.Contains(got, "\x1b[31mforged") {
		t.Errorf("a terminal gets %q", got)
	}
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminal: %v", err)
	}
	defer tty.Close()
	for _, c := range []struct {
		noColor, term string
		want          bool
	}{{"", "xterm", true}, {"1", "xterm", false}, {"", "dumb", false}} {
		t.Setenv("NO_COLOR", c.noColor)
		t.Setenv("TERM", c.term)
		if got := colours(tty); got != c.want {
			t.Errorf("NO_COLOR=%s TERM=%s: colours %v", c.noColor, c.term, got)
		}
	}
}

// TestProgressOfABenchLeavesNothing: the line is taken away on a terminal, and is never there elsewhere.
func TestProgressOfABenchLeavesNothing(t *testing.T) {
	var out bytes.Buffer
	line := &transient{out: &out, width: 20}
	line.show("row 1 of 4, filling: 1024 of 8192 positions")
	if got := strings.TrimPrefix(out.String(), eraseLine); utf8.RuneCountInString(got) != 19 || strings.Contains(got, "\n") {
		t.Errorf("it shows %q in 20 columns", got)
	}
	line.end()
	if !strings.HasSuffix(out.String(), eraseLine) {
		t.Errorf("it leaves %q", out.String())
	}
	out.Reset()
	line.end()
	elsewhere := (&app{Streams: Streams{Err: &out}}).transient(false)
	elsewhere.show("row 1 of 4")
	elsewhere.end()
	if out.Len() > 0 {
		t.Errorf("a pipe gets %q", out.String())
	}
}

func TestDurationsAreToThreeDigits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0ns", 999: "999ns", 776253: "776µs", 5712345: "5.71ms", 57123456: "57.1ms", 571234567: "571ms", 999499999: "999ms", 999500000: "1.00s",
		5712345678: "5.71s", 99949 * time.Microsecond: "99.9ms", 59 * time.Second: "59.0s", 61500 * time.Millisecond: "1m2s", 2 * time.Hour: "2h0m0s", -5712345: "-5.71ms",
	} {
		if got := duration(d); got != want {
			t.Errorf("%d ns is %s, want %s", d, got, want)
		}
	}
}

// TestTextGoesOutInOnePlace: what cleans it is not passed by.
func TestTextGoesOutInOnePlace(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || name == "text.go" || name == "table.go" {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if f, ok := call.Fun.(*ast.SelectorExpr); ok && strings.HasPrefix(f.Sel.Name, "Fprint") {
				t.Errorf("%s prints by fmt.%s: say and note clean what others chose", name, f.Sel.Name)
			}
			return true
		})
	}
}
