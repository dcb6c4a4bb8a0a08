package main

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"headwater.example/internal/figures/limits"
)

// TestMain makes this binary the program where it has started itself.
func TestMain(m *testing.M) {
	if os.Getenv(asChild) != "" {
		if err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func skipWithoutLimits(t *testing.T) {
	t.Helper()
	if len(limits.ISAs()) == 0 {
		t.Skip("there are no loops for this processor")
	}
}

func TestEveryFigureIsPrintedOnce(t *testing.T) {
	skipWithoutLimits(t)
	samples := filepath.Join(t.TempDir(), "more", "kernels.json")
	var out, log bytes.Buffer
	if err := run(t.Context(), []string{"-quick", "-samples", samples, "-model", "../../../test/data/smollm2/attention.safetensors"}, nil, &out, &log); err != nil {
		t.Fatalf("%v\n%s", err, &log)
	}
	printed := make(map[string]int)
	for line := range strings.Lines(out.String()) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "figure" {
			t.Fatalf("line %q is no figure", line)
		}
		if x, err := strconv.ParseFloat(f[2], 64); err != nil || math.IsNaN(x) || math.IsInf(x, 0) || x <= 0 {
			t.Errorf("line %q has no finite value", line)
		}
		printed[f[1]]++
	}
	names := []string{
		"decode_f32", "decode_f16", "decode_bf16", "decode_int8", "decode_g8", "decode_2core", "decode_2threads", "decode_2threads_2k",
		"decode_b8_2threads", "prefill_512_2k", "prefill_mha",
		"project", "decode_short", "append_f16", "append_int8", "decode_bf16_tiles", "prefill_tiles_q16", "prefill_tiles_bf16", "tiles_units",
		"tiles_bf16_rms",
	}
	if slices.Contains(limits.ISAs(), limits.AVX2) {
		names = append(names, "decode_avx2", "prefill_avx2")
	}
	for _, name := range names {
		if printed[name] != 1 {
			t.Errorf("%s is printed %d times", name, printed[name])
		}
		delete(printed, name)
	}
	if len(printed) > 0 {
		t.Errorf("more is printed: %v", printed)
	}
	r, err := load(samples)
	if err != nil {
		t.Fatal(err)
	}
	// Two more rows are of callers beside a figure.
	if len(r.Rows) != len(names)+2 || len(r.Rows[0].Samples) != 1 || r.Kernel == "" {
		t.Errorf("samples: %+v", r)
	}
	picture := filepath.Join(t.TempDir(), "roofline.png")
	if err := run(t.Context(), []string{"-samples", samples, "-plot", picture}, nil, &out, &log); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(picture); err != nil || info.Size() < 1000 {
		t.Errorf("the picture: %v, %v", info, err)
	}
}

func TestATableHasALineForEveryRow(t *testing.T) {
	skipWithoutLimits(t)
	var out, log bytes.Buffer
	args := []string{"-quick", "-bench", "-run", "^decode_f|_g8|_256", "-samples", filepath.Join(t.TempDir(), "bench.json")}
	if err := run(t.Context(), args, nil, &out, &log); err != nil {
		t.Fatalf("%v\n%s", err, &log)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	// A line of the machine, an empty one, two of the head, and then decode_f32, the four of f16, and two of 256.
	if len(lines) != 4+7 {
		t.Fatalf("%d lines:\n%s", len(lines), &out)
	}
	for _, line := range lines[2:] {
		if strings.Count(line, "|") != 10 || len([]rune(line)) != len([]rune(lines[2])) {
			t.Errorf("line %q does not fit the table", line)
		}
	}
}

func TestSizesOfCachesAreRead(t *testing.T) {
	for text, want := range map[string]int64{"32768K": 32 << 20, "1M": 1 << 20, "2G": 2 << 30, "512": 512, "K": -1, "": -1, "1T": -1, "-1K": -1} {
		got, err := parseSize(text)
		if want < 0 != (err != nil) || err == nil && got != want {
			t.Errorf("%q is %d, %v", text, got, err)
		}
	}
	if n := lastLevelCache(); n <= 0 {
		t.Errorf("a cache of %d bytes", n)
	}
}

func TestMedian(t *testing.T) {
	for want, all := range map[float64][]float64{0: nil, 3: {3}, 2: {1, 3}, 5: {9, 1, 5}} {
		if got := median(all); got != want {
			t.Errorf("median of %v is %g, want %g", all, got, want)
		}
	}
}

func TestUnknownArgumentsAreRefused(t *testing.T) {
	for _, args := range [][]string{{"more"}, {"-no"}, {"-run", "("}} {
		if err := run(t.Context(), args, nil, &bytes.Buffer{}, &bytes.Buffer{}); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
}

func TestBareStreamsCarryTheBytes(t *testing.T) {
	p, err := startBare(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range [][2]int64{{0, 0}, {1, 0}, {0, 1}, {3*bareChunk + 1, 2*bareChunk - 1}} {
		if err := p.move(t.Context(), n[0], n[1]); err != nil {
			t.Errorf("%d bytes there and %d back: %v", n[0], n[1], err)
		}
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
}
