package amx

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	emulator "headwater.example/internal/emulator/amx"
	"headwater.example/internal/processor"
)

// TestMain runs the tests on an emulated processor where this one has no AMX.
func TestMain(m *testing.M) {
	if processor.Tiles() == nil || os.Getenv(emulator.Variable) == emulator.Emulated {
		os.Exit(m.Run())
	}
	self := exec.Command(os.Args[0], os.Args[1:]...)
	self.Stdout, self.Stderr = os.Stdout, os.Stderr
	result, err := emulator.Run(self)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(result.Code)
}

// configuration gives the first tiles these rows and bytes of a row.
func configuration(shapes ...[2]int) *[64]byte {
	c := &[64]byte{1}
	for i, s := range shapes {
		c[48+i] = byte(s[0])
		binary.LittleEndian.PutUint16(c[16+2*i:], uint16(s[1]))
	}
	return c
}

// flushed is x rounded to 24 bits, to nearest even, and a zero if that is subnormal.
func flushed(x *big.Float) *big.Float {
	r := new(big.Float).SetPrec(24).SetMode(big.ToNearestEven).Set(x)
	if least := big.NewFloat(0x1p-126); new(big.Float).Abs(r).Cmp(least) < 0 {
		zero := new(big.Float)
		if r.Signbit() {
			zero.Neg(zero)
		}
		return zero
	}
	return r
}

// number is a finite binary32 with subnormals as zeros.
func number(bits uint32) *big.Float {
	return flushed(new(big.Float).SetPrec(24).SetFloat64(float64(math.Float32frombits(bits))))
}

// model is what TDPBF16PS makes of one element, in numbers of any exponent: what overflows is an infinity at the end.
func model(d uint32, a, b []uint32) uint32 {
	exact := func() *big.Float { return new(big.Float).SetPrec(1000) }
	sums := [2]*big.Float{new(big.Float), new(big.Float)}
	for k := range a {
		for half := range sums {
			x, y := number(a[k]<<16), number(b[k]<<16)
			if half == 1 {
				x, y = number(a[k]&0xffff0000), number(b[k]&0xffff0000)
			}
			sums[half] = flushed(exact().Add(exact().Mul(x, y), sums[half]))
		}
	}
	both := flushed(exact().Add(sums[0], sums[1]))
	all, _ := flushed(exact().Add(number(d), both)).Float32()
	return math.Float32bits(all)
}

// half returns the bits of a random bf16, and single those of a binary32, finite, of one of several ranges.
func half(rnd *rand.Rand, kind int) uint32 {
	x := uint32(rnd.IntN(1 << 16))
	exponent := func(low, n int) uint32 { return x&0x807f | uint32(low+rnd.IntN(n))<<7 }
	switch kind {
	case 0: // near 1
		return exponent(120, 14)
	case 1: // products about 2^-126
		return exponent(60, 10)
	case 2: // subnormal, or zero
		return exponent(0, 2)
	case 3: // wide gaps
		return exponent(20, 150)
	}
	return x & 0x807f * uint32(rnd.IntN(2)) // zeros of both signs, and subnormal
}

func single(rnd *rand.Rand, kind int) uint32 { return half(rnd, kind)<<16 | uint32(rnd.IntN(1<<16)) }

// TestProductIsTheModel: shapes of all sizes, with garbage outside of them, against numbers of any precision.
func TestProductIsTheModel(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	const stride = 96
	for i := range 60 {
		rows, columns, pairs := 1+rnd.IntN(16), 1+rnd.IntN(16), 1+rnd.IntN(16)
		kind := i % 5
		var d, a, b [16 * stride]byte
		for _, to := range []*[16 * stride]byte{&d, &a, &b} {
			for at := 0; at < len(to); at += 4 {
				x := single(rnd, kind)
				if to != &d {
					x = half(rnd, kind)<<16 | half(rnd, kind)
				}
				binary.LittleEndian.PutUint32(to[at:], x)
			}
		}
		word := func(t *[16 * stride]byte, row, column int) uint32 {
			return binary.LittleEndian.Uint32(t[row*stride+4*column:])
		}
		want := d
		for r := range rows {
			for c := range columns {
				var x, y []uint32
				for k := range pairs {
					x, y = append(x, word(&a, r, k)), append(y, word(&b, k, c))
				}
				binary.LittleEndian.PutUint32(want[r*stride+4*c:], model(word(&d, r, c), x, y))
			}
		}
		product(configuration([2]int{rows, 4 * columns}, [2]int{rows, 4 * pairs}, [2]int{pairs, 4 * columns}), &d[0], &a[0], &b[0], stride, stride, stride)
		for at := 0; at < len(d); at += 4 {
			if got, want := binary.LittleEndian.Uint32(d[at:]), binary.LittleEndian.Uint32(want[at:]); got != want {
				t.Fatalf("kind %d, %d × %d × %d: row %d, column %d is %08x, not %08x", kind, rows, columns, pairs, at/stride, at%stride/4, got, want)
			}
		}
	}
}

// TestProductAtTheBorders: directed cases of one element: what is flushed after it was rounded, what overflows, and what is no
// number.
func TestProductAtTheBorders(t *testing.T) {
	bf := func(x float64) uint32 { return math.Float32bits(float32(x)) >> 16 }
	const inf, nan = 0x7f80, 0x7fc1
	pair := func(even, odd uint32) uint32 { return even | odd<<16 }
	for _, c := range []struct {
		name string
		d    uint32
		a, b []uint32
		want uint32
	}{
		{"2^-126 - 2^-151 rounds up", 0, []uint32{bf(0x1p-63), bf(-0x1p-76)}, []uint32{bf(0x1p-63), bf(0x1p-75)}, 0x00800000},
		{"2^-126 - 2^-150 is flushed", 0, []uint32{bf(0x1p-63), bf(-0x1p-75)}, []uint32{bf(0x1p-63), bf(0x1p-75)}, 0},
		{"a negative product below the least", 0, []uint32{bf(-0x1p-64)}, []uint32{bf(0x1p-64)}, 0},
		{"a subnormal d is a zero", 0x007fffff, []uint32{0}, []uint32{0}, 0},
		{"a negative zero and nothing", 0x80000000, []uint32{0}, []uint32{0}, 0},
		{"overflow", 0, []uint32{bf(0x1p64)}, []uint32{bf(0x1p64)}, 0x7f800000},
		{"overflow of the sum", 0x7f7fffff, []uint32{bf(0x1p127)}, []uint32{bf(1)}, 0x7f800000},
		{"infinity less infinity", 0, []uint32{pair(inf, inf)}, []uint32{pair(bf(1), bf(-1))}, 0xffc00000},
		{"infinity by zero", 0, []uint32{inf}, []uint32{0}, 0xffc00000},
		{"no number", 0, []uint32{nan}, []uint32{bf(1)}, 0xffc00000},
		{"no number in d", 0x7fc12345, []uint32{0}, []uint32{0}, 0xffc00000},
	} {
		n := len(c.a)
		var d [64]byte
		var a, b [16 * 64]byte
		binary.LittleEndian.PutUint32(d[:], c.d)
		for k := range n {
			binary.LittleEndian.PutUint32(a[4*k:], c.a[k])
			binary.LittleEndian.PutUint32(b[64*k:], c.b[k])
		}
		product(configuration([2]int{1, 4}, [2]int{1, 4 * n}, [2]int{n, 4}), &d[0], &a[0], &b[0], 64, 64, 64)
		if got := binary.LittleEndian.Uint32(d[:]); got != c.want {
			t.Errorf("%s: %08x, not %08x", c.name, got, c.want)
		}
	}
}

// TestOtherInstructions: all tiles, all forms of addresses, the configuration as it is kept.
func TestOtherInstructions(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var from, to [8][1024]byte
	for i := range from {
		for at := 0; at < 1024; at += 4 {
			binary.LittleEndian.PutUint32(from[i][at:], half(rnd, 0)<<16|half(rnd, 0))
		}
	}
	full := [2]int{16, 64}
	config := configuration(full, full, full, full, full, full, full, full)
	var kept [64]byte
	others(config, &to, &from, &kept)
	if kept != *config {
		t.Errorf("the configuration is %x, not %x", kept, *config)
	}
	for i := range 7 {
		want := from[7-i]
		if i == 2 {
			want = [1024]byte{}
		}
		if to[i] != want {
			t.Errorf("tile %d is not what was loaded", 7-i)
		}
	}
	word := func(t *[1024]byte, row, column int) uint32 { return binary.LittleEndian.Uint32(t[64*row+4*column:]) }
	for r := range 16 {
		for c := range 16 {
			var x, y []uint32
			for k := range 16 {
				x, y = append(x, word(&from[4], r, k)), append(y, word(&from[7], k, c))
			}
			if got, want := word(&to[7], r, c), model(word(&from[0], r, c), x, y); got != want {
				t.Fatalf("the product at %d, %d is %08x, not %08x", r, c, got, want)
			}
		}
	}
}

// TestTilesBelongToThreads: goroutines beside each other, with collections that stop them, get the product that one alone gets.
func TestTilesBelongToThreads(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	var d, a, b [1024]byte
	for at := 0; at < 1024; at += 4 {
		binary.LittleEndian.PutUint32(d[at:], single(rnd, 0))
		binary.LittleEndian.PutUint32(a[at:], half(rnd, 0)<<16|half(rnd, 0))
		binary.LittleEndian.PutUint32(b[at:], half(rnd, 0)<<16|half(rnd, 0))
	}
	full := [2]int{16, 64}
	config := configuration(full, full, full)
	want := d
	product(config, &want[0], &a[0], &b[0], 64, 64, 64)
	ctx, cancel := context.WithCancel(t.Context())
	var collector, all sync.WaitGroup
	collector.Go(func() {
		for ctx.Err() == nil {
			runtime.GC()
		}
	})
	for range 8 {
		all.Go(func() {
			for range 30 {
				got := d
				product(config, &got[0], &a[0], &b[0], 64, 64, 64)
				if got != want {
					t.Error("another product beside others")
					return
				}
			}
		})
	}
	all.Wait()
	cancel()
	collector.Wait()
}

// TestEncodings has LLVM's assembler, where there is one, make every instruction that is written as bytes.
func TestEncodings(t *testing.T) {
	llvm, err := exec.LookPath("llvm-mc")
	if err != nil {
		t.Skip("no llvm-mc (Debian package llvm)")
	}
	var source []byte
	for _, name := range []string{"amx_amd64.s", "multiply_amd64.s"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, text...)
	}
	var texts, codes []string
	for _, m := range regexp.MustCompile(`(?m)^\t((?:(?:LONG|BYTE) \$0x[0-9a-f]+(?:; )?)+) // (.*)$`).FindAllStringSubmatch(string(source), -1) {
		var code strings.Builder
		for _, part := range regexp.MustCompile(`(LONG|BYTE) \$0x([0-9a-f]+)`).FindAllStringSubmatch(m[1], -1) {
			value, err := strconv.ParseUint(part[2], 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			for range map[string]int{"LONG": 4, "BYTE": 1}[part[1]] {
				fmt.Fprintf(&code, ",0x%02x", byte(value))
				value >>= 8
			}
		}
		texts, codes = append(texts, m[2]), append(codes, code.String()[1:])
	}
	if n := strings.Count(string(source), "\tLONG"); n < 120 || n != len(texts) {
		t.Fatalf("%d of %d instructions that are written as bytes were found", len(texts), n)
	}
	run := exec.Command(llvm, "-triple=x86_64", "-mattr=+amx-tile,+amx-bf16", "-show-encoding")
	run.Stdin = strings.NewReader(strings.Join(texts, "\n") + "\n")
	out, err := run.Output()
	if err != nil {
		t.Fatal(err)
	}
	made := regexp.MustCompile(`encoding: \[([^\]]*)\]`).FindAllStringSubmatch(string(out), -1)
	if len(made) != len(texts) {
		t.Fatalf("LLVM made %d instructions of %d", len(made), len(texts))
	}
	for i, text := range texts {
		if codes[i] != made[i][1] {
			t.Errorf("%s is %s, not %s", text, made[i][1], codes[i])
		}
	}
}
