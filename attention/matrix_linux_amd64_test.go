package attention

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"

	emulator "headwater.example/internal/emulator/amx"
	"headwater.example/internal/processor"
	"headwater.example/tensor"
)

// init leaves the program that TestOnAnEmulatedMatrixUnit starts the kernel with AMX, which it has found, and no other work than in tiles.
func init() {
	if os.Getenv(emulator.Variable) != emulator.Emulated || kernels[0].name != "amx" {
		return
	}
	kernels = []kernel{kernels[0], portable}
	selected.Store(&selection{kernel: &kernels[0]})
	storings = storings[len(storings)-2:]
	productLevels[0] = len(storings)
}

// TestOnAnEmulatedMatrixUnit runs tests of arithmetic in tiles, all of which are natively run where the processor has AMX.
func TestOnAnEmulatedMatrixUnit(t *testing.T) {
	skipIfRaced(t)
	switch {
	case processor.Tiles() == nil:
		t.Skip("the processor has AMX")
	case kernels[0].vector == nil:
		t.Skip("the processor has no AVX2")
	case os.Getenv(emulator.Variable) == emulator.Emulated:
		t.Skip("it is emulated")
	}
	run := "TestTileRoutines|TestGolden|TestBesideCollections"
	if !testing.Short() {
		run += "|TestVectorProduct|TestVectorAnyShape|TestQueriesThatHaveNoParts|TestBF16QueriesTakeOnePart|TestTilesNoAllocation"
	}
	self := exec.Command(os.Args[0], "-test.run=^("+run+")$", "-test.short", "-rapid.checks=250") // a fifth of them, as -short has it
	var out bytes.Buffer
	self.Stdout, self.Stderr = &out, &out
	result, err := emulator.Run(self)
	if err != nil {
		t.Fatal(err)
	}
	if result.Code != 0 || result.Instructions < 100 {
		t.Fatalf("exit code %d, %d instructions of AMX:\n%s", result.Code, result.Instructions, out.Bytes())
	}
	t.Logf("%d instructions of AMX", result.Instructions)
}

// TestBesideCollections: calls beside each other, on threads that collections and signals stop, get the bits that one alone gets.
func TestBesideCollections(t *testing.T) {
	skipIfRaced(t)
	if !kernels[0].vector.hasMatrix() {
		t.Skip("the processor has no AMX")
	}
	e := draw(t, 9, shape{headDim: 40, vDim: 24, tokens: 9, heads: 4, len: 130, spread: 1, offset: 121}.as(storing{tensor.BF16, Tiles}))
	want, err := e.by(&portable, 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var disturbers, callers sync.WaitGroup
	disturbers.Go(func() {
		for ctx.Err() == nil {
			runtime.GC()
		}
	})
	disturbers.Go(func() {
		for ctx.Err() == nil {
			// What the runtime preempts goroutines with; it may stop any thread of the process.
			if err := syscall.Kill(os.Getpid(), syscall.SIGURG); err != nil {
				t.Error(err)
			}
			runtime.Gosched()
		}
	})
	for range 4 {
		callers.Go(func() {
			for range 12 {
				got, err := e.by(&kernels[0], 2)
				if err != nil {
					t.Error(err)
					return
				}
				if !slices.Equal(got.Context, want.Context) || !slices.Equal(got.LSE, want.LSE) {
					t.Error("other bits beside collections and signals")
				}
			}
		})
	}
	callers.Wait()
	cancel()
	disturbers.Wait()
}
