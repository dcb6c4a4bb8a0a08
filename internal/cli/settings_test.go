package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

func TestSizesAndFoldersThatCanNotBeAreRefused(t *testing.T) {
	for _, c := range []struct {
		args, says string
	}{
		{"worker serve --memory 0", "less than the 1.0 MiB"},
		{"worker serve --memory 10", `"10" is 10 B, less than the 1.0 MiB`},
		{"worker serve --memory -1", "not a size"},
		{"worker serve --session-ttl 0", "--session-ttl is 0s, must be more than 0"},
		{"worker serve --max-sessions 0", "--max-sessions is 0"},
		{"coord serve --data-dir=", "--data-dir is empty"},
		{"coord serve --keep-bytes 0", "--keep-bytes is 0"},
		{"coord serve --keep-jobs 0", "--keep-jobs is 0"},
		{"coord serve --keep-for 0s", "--keep-for is 0s"},
		{"coord serve --block 0", "--block is 0"},
		{"coord serve --worker-wait 0s", "--worker-wait is 0s"},
		{"coord serve --max-duration -1s", "--max-duration is -1s"},
		{"coord local --memory 1", "less than the 1.0 MiB"},
	} {
		args := strings.Fields(c.args)
		program, args := args[0], args[1:]
		var stderr bytes.Buffer
		run := Coord
		if program == "worker" {
			run = Worker
		}
		if code := run(args, Streams{In: strings.NewReader(""), Out: io.Discard, Err: &stderr}); code != exitUsage || !strings.Contains(stderr.String(), c.says) {
			t.Errorf("%s: exit %d, want %d and %q: %s", c.args, code, exitUsage, c.says, &stderr)
		}
	}
}

func TestColoursAreForTerminalsThatWantThem(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("there is no terminal here: %v", err)
	}
	defer terminal.Close()
	for _, c := range []struct {
		stream        any
		noColor, term string
		want          bool
	}{
		{terminal, "", "xterm", true},
		{terminal, "1", "xterm", false},
		{terminal, "", "dumb", false},
		{&bytes.Buffer{}, "", "xterm", false},
	} {
		t.Setenv("NO_COLOR", c.noColor)
		t.Setenv("TERM", c.term)
		if got := colours(c.stream); got != c.want {
			t.Errorf("%T with NO_COLOR=%s and TERM=%s: %t", c.stream, c.noColor, c.term, got)
		}
	}
}

func TestLogLinesHaveADateAndNumbersTheirUnits(t *testing.T) {
	var out bytes.Buffer
	a := &app{Streams: Streams{Err: &out}}
	a.global.logLevel = "info"
	say := func() string {
		out.Reset()
		a.logger().Info("it is so", "took", 1500*time.Millisecond, "memory"+bytesKey, int64(3<<29), "state", headwaterv1.JobState_JOB_STATE_RUNNING, "error", nil)
		return out.String()
	}
	if got := say(); !regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INF it is so took=1\.5s memory="1\.50 GiB" state=running\n$`).MatchString(got) {
		t.Errorf("for people: %q", got)
	}
	a.global.logFormat = "json"
	var got map[string]any
	if err := json.Unmarshal([]byte(say()), &got); err != nil {
		t.Fatal(err)
	}
	if got["took_seconds"] != 1.5 || got["memory_bytes"] != float64(3<<29) || got["state"] != "running" {
		t.Errorf("for programs: %v", got)
	}
}
