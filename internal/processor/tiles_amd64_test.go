package processor

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestFeaturesAreThoseThatLinuxNames holds each feature against /proc/cpuinfo.
func TestFeaturesAreThoseThatLinuxNames(t *testing.T) {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Skip(err)
	}
	_, flags, ok := strings.Cut(string(text), "\nflags\t\t:")
	if !ok {
		t.Fatal("/proc/cpuinfo has no flags")
	}
	flags, _, _ = strings.Cut(flags, "\n")
	linux := map[string]bool{}
	for _, f := range strings.Fields(flags) {
		linux[f] = true
	}
	for _, f := range []Feature{AVX2, FMA, F16C, BMI1, BMI2, POPCNT, AVX512F, AVX512BW, AVX512DQ, AVX512VL, AVX512BF16, AMXTile, AMXBF16, ASIMD} {
		if Has(f) != linux[string(f)] {
			t.Errorf("%s: %v, Linux says %v", f, Has(f), linux[string(f)])
		}
	}
	if !Has(features...) || Has(append(slices.Clone(features), ASIMD)...) || !Has() {
		t.Error("Has does not look at all features")
	}
	if name := Name(); !strings.Contains(string(text), "model name\t: "+name) {
		t.Errorf("the processor calls itself %q, Linux otherwise", name)
	}
}

// granite is what a processor of the Granite Rapids class and Linux say of tiles.
func granite() (m machine, leaves map[[2]uint32][4]uint32) {
	leaves = map[[2]uint32][4]uint32{
		{0, 0}:           {0x20, 0, 0, 0},
		{1, 0}:           {0, 0, osxsave, 0},
		{featureLeaf, 0}: {2, 0, 0, amxBF16 | amxTile | 1<<25},
		{paletteLeaf, 0}: {1, 0, 0, 0},
		{paletteLeaf, 1}: {1024<<16 | 8192, 8<<16 | 64, 16, 0},
		{productLeaf, 0}: {0, 64<<8 | 16, 0, 0},
	}
	return machine{
		cpuid: func(leaf, part uint32) (a, b, c, d uint32) {
			r := leaves[[2]uint32{leaf, part}]
			return r[0], r[1], r[2], r[3]
		},
		xcr0:      func() uint32 { return 0x600e7 },
		supported: func() (uint64, error) { return 0x60000, nil },
		ask:       func() error { return nil },
	}, leaves
}

// TestTilesNeedAllOfThem: each of what is asked, taken away alone, is named.
func TestTilesNeedAllOfThem(t *testing.T) {
	refused := errors.New("refused")
	set := func(leaf, part uint32, register int, value uint32) func(*machine, map[[2]uint32][4]uint32) {
		return func(_ *machine, leaves map[[2]uint32][4]uint32) {
			r := leaves[[2]uint32{leaf, part}]
			r[register] = value
			leaves[[2]uint32{leaf, part}] = r
		}
	}
	for _, c := range []struct {
		name, says string
		spoil      func(*machine, map[[2]uint32][4]uint32)
	}{
		{"nothing", "", func(*machine, map[[2]uint32][4]uint32) {}},
		{"an old processor", "no AMX", set(0, 0, 0, 0x1d)},
		{"no bf16", "no AMX of bf16", set(featureLeaf, 0, 3, amxTile)},
		{"no tiles", "no AMX of bf16", set(featureLeaf, 0, 3, amxBF16)},
		{"no XSAVE", "does not save", set(1, 0, 2, 0)},
		{"no state of data", "does not save", func(m *machine, _ map[[2]uint32][4]uint32) { m.xcr0 = func() uint32 { return 0x200e7 } }},
		{"no state of the configuration", "does not save", func(m *machine, _ map[[2]uint32][4]uint32) { m.xcr0 = func() uint32 { return 0x400e7 } }},
		{"no palette", "no palette 1", set(paletteLeaf, 0, 0, 0)},
		{"fewer tiles", "4 tiles of 1024 bytes", set(paletteLeaf, 1, 1, 4<<16|64)},
		{"smaller tiles", "8 tiles of 512 bytes", set(paletteLeaf, 1, 0, 512<<16|8192)},
		{"less in all", "not 8 of 1024", set(paletteLeaf, 1, 0, 1024<<16|4096)},
		{"shorter rows", "16 rows of 32 bytes", set(paletteLeaf, 1, 1, 8<<16|32)},
		{"fewer rows", "8 rows of 64 bytes", set(paletteLeaf, 1, 2, 8)},
		{"smaller products", "multiplies 8 rows by 64 bytes", set(productLeaf, 0, 1, 64<<8|8)},
		{"narrower products", "multiplies 16 rows by 32 bytes", set(productLeaf, 0, 1, 32<<8|16)},
		{"a system that does not know the question", "gives no AMX tiles: refused", func(m *machine, _ map[[2]uint32][4]uint32) {
			m.supported = func() (uint64, error) { return 0, refused }
		}},
		{"a system that gives none", "gives no AMX tiles", func(m *machine, _ map[[2]uint32][4]uint32) {
			m.supported = func() (uint64, error) { return 0x20000, nil }
		}},
		{"a refusal", "refuses AMX tiles: refused", func(m *machine, _ map[[2]uint32][4]uint32) {
			m.ask = func() error { return refused }
		}},
	} {
		m, leaves := granite()
		c.spoil(&m, leaves)
		switch err := m.tiles(); {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: got %v, want %q", c.name, err, c.says)
		}
	}
}

// TestTilesAreAskedForWhereTheyAre: what this machine says agrees with what it has.
func TestTilesAreAskedForWhereTheyAre(t *testing.T) {
	if err := Tiles(); Has(AMXTile) != (err == nil) {
		t.Errorf("it has tiles: %v, and may use them: %v", Has(AMXTile), err)
	}
}
