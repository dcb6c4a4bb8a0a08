//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// entry is one tensor of a safetensors file that may be wrong in any way, so nothing of the project's own writes it.
type entry struct {
	name, dtype string
	shape       []int
	data        []byte // zeros where nil
}

var sizes = map[string]int{"F64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1}

// encode writes a safetensors file with the options in its metadata.
func encode(options string, entries ...entry) []byte {
	var header, data bytes.Buffer
	fmt.Fprintf(&header, `{"__metadata__":{"headwater":%s}`, strconv.Quote(options))
	for _, e := range entries {
		size := sizes[e.dtype]
		shape := []string{}
		for _, n := range e.shape {
			size *= n
			shape = append(shape, strconv.Itoa(n))
		}
		if e.data == nil {
			e.data = make([]byte, size)
		}
		fmt.Fprintf(&header, `,"%s":{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}`, e.name, e.dtype, strings.Join(shape, ","), data.Len(), data.Len()+len(e.data))
		data.Write(e.data)
	}
	header.WriteByte('}')
	file := binary.LittleEndian.AppendUint64(nil, uint64(header.Len()))
	return append(append(file, header.Bytes()...), data.Bytes()...)
}

// sound is a job of 4 queries, 4 heads in 2 groups, head_dim 8, v_dim 3 and 6 positions, with some tensors replaced or
// added, and without those that have no dtype.
func sound(changed ...entry) []entry {
	all := []entry{{"q", "F32", []int{4, 4, 8}, nil}, {"k", "F32", []int{6, 2, 8}, nil}, {"v", "F32", []int{6, 2, 3}, nil}}
	for _, e := range changed {
		if at := slices.IndexFunc(all, func(have entry) bool { return have.name == e.name }); at < 0 {
			all = append(all, e)
		} else {
			all[at] = e
		}
	}
	return slices.DeleteFunc(all, func(e entry) bool { return e.dtype == "" })
}

// f32 is n numbers, all 0 but one.
func f32(n, at int, value float64) []byte {
	data := make([]byte, 4*n)
	binary.LittleEndian.PutUint32(data[4*at:], math.Float32bits(float32(value)))
	return data
}

// f16 is n numbers, all 0 but one, by its bits.
func f16(n, at int, bits uint16) []byte {
	data := make([]byte, 2*n)
	binary.LittleEndian.PutUint16(data[2*at:], bits)
	return data
}

// replaced is a file with some of its text changed for another of the same length.
func replaced(file []byte, from, to string) []byte {
	if len(from) != len(to) || bytes.Count(file, []byte(from)) != 1 {
		panic(from + " can not be replaced by " + to)
	}
	return bytes.Replace(file, []byte(from), []byte(to), 1)
}

// lying is a file with another length of its header.
func lying(file []byte, length uint64) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, length), file[8:]...)
}

// TestBadJobsAreRefused submits by the command line what is no job. Each is refused in one line that names file, tensor,
// index and rule, as far as there are any, and nothing has changed.
func TestBadJobsAreRefused(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 2, Memory: 1 << 20})
	good := encode("{}", sound()...)
	nan, inf := math.NaN(), math.Inf(1)
	cases := []struct {
		name  string
		file  []byte
		flags []string
		code  int // 4 where none is given
		says  []string
	}{
		{name: "empty", file: []byte{}, says: []string{"truncated", "0 bytes"}},
		{name: "truncated length", file: good[:5], says: []string{"truncated", "5 bytes"}},
		{name: "truncated header", file: good[:100], says: []string{"truncated", "file of 100"}},
		{name: "truncated data", file: good[:len(good)-1], says: []string{`tensor "v"`, "truncated"}},
		{name: "data after the last tensor", file: append(slices.Clone(good), 0), says: []string{"1 bytes of data follow"}},
		{name: "header longer than it is", file: lying(good, binary.LittleEndian.Uint64(good)+8), says: []string{"header"}},
		{name: "header shorter than it is", file: lying(good, binary.LittleEndian.Uint64(good)-8), says: []string{"header"}},
		{name: "header of 2^64-1 bytes", file: lying(good, math.MaxUint64), says: []string{"header of 18446744073709551615 bytes exceeds the limit"}},
		{name: "header that is no JSON", file: replaced(good, `{"__metadata__":`, `{"__metadata__";`), says: []string{"header"}},
		{name: "offsets that overlap", file: replaced(good, "[512,896]", "[508,892]"), says: []string{`tensor "k"`, "overlaps", `"q"`}},
		{name: "offsets that leave a hole", file: replaced(good, "[512,896]", "[516,900]"), says: []string{`tensor "k"`, "hole"}},
		{name: "offsets backwards", file: replaced(good, "[512,896]", "[896,512]"), says: []string{`tensor "k"`, "before they begin"}},
		{name: "offsets of another size", file: replaced(good, "[512,896]", "[512,892]"), says: []string{`tensor "k"`, "380 bytes", "needs 384"}},
		{name: "shape that overflows", file: encode("{}", sound(entry{"k", "F32", []int{1 << 40, 1 << 40, 8}, []byte{}})...), says: []string{`tensor "k"`}},
		{name: "tensor twice", file: encode("{}", append(sound(), entry{"q", "F32", []int{4, 4, 8}, nil})...), says: []string{`"q"`}},
		{name: "wrong dtype", file: encode("{}", sound(entry{"q", "I32", []int{4, 4, 8}, nil})...), says: []string{`tensor "q"`, "I32"}},
		{name: "f64 keys", file: encode("{}", sound(entry{"k", "F64", []int{6, 2, 8}, nil})...), says: []string{`tensor "k"`, "F64"}},
		{name: "keys and values of two dtypes", file: encode("{}", sound(entry{"v", "F16", []int{6, 2, 3}, nil})...), says: []string{`tensor "v"`, "F16", "F32"}},
		{name: "int8 without scales", file: encode("{}", sound(entry{"k", "I8", []int{6, 2, 8}, nil}, entry{"v", "I8", []int{6, 2, 3}, nil})...), says: []string{`"k_scale"`}},
		{name: "unknown dtype", file: encode("{}", sound(entry{"k", "F8_E4M3", []int{6, 2, 8}, nil})...), says: []string{`tensor "k"`, `"F8_E4M3"`}},
		{name: "keys of another head_dim", file: encode("{}", sound(entry{"k", "F32", []int{6, 2, 7}, nil})...), says: []string{`tensor "k"`, "[6, 2, 7]", "head_dim"}},
		{name: "values of other positions", file: encode("{}", sound(entry{"v", "F32", []int{5, 2, 3}, nil})...), says: []string{`tensor "v"`, "[5, 2, 3]", "kv_tokens"}},
		{name: "values of other heads", file: encode("{}", sound(entry{"v", "F32", []int{6, 1, 3}, nil})...), says: []string{`tensor "v"`, "[6, 1, 3]", "n_kv_heads"}},
		{name: "queries of two dimensions", file: encode("{}", sound(entry{"q", "F32", []int{16, 8}, nil})...), says: []string{`tensor "q"`, "[16, 8]"}},
		{name: "mask of another shape", file: encode("{}", sound(entry{"mask", "BOOL", []int{1, 4, 5}, nil})...), says: []string{`tensor "mask"`, "[1, 4, 5]"}},
		{name: "heads that groups do not divide", file: encode("{}", sound(entry{"q", "F32", []int{4, 5, 8}, nil})...), says: []string{`tensor "q"`, "n_heads 5 is not a multiple of n_kv_heads 2"}},
		{name: "head_dim 0", file: encode("{}", sound(entry{"q", "F32", []int{4, 4, 0}, nil}, entry{"k", "F32", []int{6, 2, 0}, nil})...), says: []string{`tensor "q"`, "head_dim", "512"}},
		{name: "head_dim 513", file: encode("{}", sound(entry{"q", "F32", []int{4, 4, 513}, nil}, entry{"k", "F32", []int{6, 2, 513}, nil})...), says: []string{`tensor "q"`, "head_dim", "513", "512"}},
		{name: "v_dim 513", file: encode("{}", sound(entry{"v", "F32", []int{6, 2, 513}, nil})...), says: []string{`tensor "v"`, "v_dim", "513", "512"}},
		{name: "zero tokens", file: encode("{}", sound(entry{"q", "F32", []int{0, 4, 8}, nil})...), says: []string{`tensor "q"`, "tokens"}},
		{name: "zero positions", file: encode("{}", sound(entry{"k", "F32", []int{0, 2, 8}, nil}, entry{"v", "F32", []int{0, 2, 3}, nil})...), says: []string{`tensor "k"`, "kv_tokens"}},
		{name: "missing tensor", file: encode("{}", sound(entry{name: "v"})...), says: []string{`tensor "v"`, "missing"}},
		{name: "no tensors", file: encode("{}"), says: []string{"tensor"}},
		{name: "tensor that nothing uses", file: encode("{}", sound(entry{"kk", "F32", []int{1}, nil})...), says: []string{`tensor "kk"`}},
		{name: "NaN in q", file: encode("{}", sound(entry{"q", "F32", []int{4, 4, 8}, f32(128, 77, nan)})...), says: []string{`tensor "q"[77]`, "NaN", "must be finite"}},
		{name: "Inf in k", file: encode("{}", sound(entry{"k", "F32", []int{6, 2, 8}, f32(96, 95, inf)})...), says: []string{`tensor "k"[95]`, "Inf", "must be finite"}},
		{name: "-Inf in v", file: encode("{}", sound(entry{"v", "F32", []int{6, 2, 3}, f32(36, 0, -inf)})...), says: []string{`tensor "v"[0]`, "-Inf", "must be finite"}},
		{name: "NaN in half precision", file: encode("{}", sound(entry{"k", "F16", []int{6, 2, 8}, f16(96, 5, 0x7e00)}, entry{"v", "F16", []int{6, 2, 3}, nil})...), says: []string{`tensor "k"[5]`, "NaN"}},
		{name: "Inf in bfloat16", file: encode("{}", sound(entry{"k", "BF16", []int{6, 2, 8}, nil}, entry{"v", "BF16", []int{6, 2, 3}, f16(36, 35, 0xff80)})...), says: []string{`tensor "v"[35]`, "-Inf"}},
		{name: "+Inf in bias", file: encode("{}", sound(entry{"bias", "F32", []int{4, 4, 6}, f32(96, 50, inf)})...), says: []string{`tensor "bias"[50]`, "Inf"}},
		{name: "NaN that is hidden", file: encode(`{"kv_len":3}`, sound(entry{"v", "F32", []int{6, 2, 3}, f32(36, 30, nan)})...), says: []string{`tensor "v"[30]`, "NaN"}},
		{name: "unknown option", file: encode(`{"casual":true}`, sound()...), says: []string{`metadata "headwater"`, `option "casual" is unknown`}},
		{name: "option twice", file: encode(`{"causal":true,"causal":false}`, sound()...), says: []string{`metadata "headwater"`, `"causal"`}},
		{name: "option of another type", file: encode(`{"softcap":"30"}`, sound()...), says: []string{`metadata "headwater"`, `"softcap"`}},
		{name: "option out of range", file: encode(`{"kv_len":7}`, sound()...), says: []string{`kv_len`, "7", "6"}},
		{name: "sinks of other heads", file: encode(`{"sinks":[1,2,3]}`, sound()...), says: []string{`sinks`, "3", "4"}},
		{name: "options that are no object", file: encode(`[]`, sound()...), says: []string{`metadata "headwater"`}},
		{name: "unknown flag", file: good, flags: []string{"--casual"}, code: 2, says: []string{"--casual"}},
		{name: "flag out of range", file: good, flags: []string{"--kv-len", "7"}, says: []string{"kv_len", "7", "6"}},
		{name: "flag that is no number", file: good, flags: []string{"--window-left", "x"}, code: 2, says: []string{"window-left", `"x"`}},
		{name: "more than all memory", code: 6, file: encode("{}", sound(entry{"k", "F32", []int{32768, 2, 8}, nil}, entry{"v", "F32", []int{32768, 2, 16}, nil})...), says: []string{"need 6291456 bytes", "the cluster's 2 workers have 2097152 together", "w1 1048576, w2 1048576"}},
		{name: "more than one worker's memory", code: 6, file: encode("{}", sound(entry{"q", "F32", []int{4, 4, 8}, nil}, entry{"k", "F32", []int{16384, 1, 8}, nil}, entry{"v", "F32", []int{16384, 1, 16}, nil})...), says: []string{"worker", "would hold 1572864 bytes", "its budget is 1048576"}},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			folder := t.TempDir()
			job := filepath.Join(folder, "job.safetensors")
			if err := os.WriteFile(job, test.file, 0o600); err != nil {
				t.Fatal(err)
			}
			args := append([]string{"submit", job, "--coordinator", c.Address(), "--out", filepath.Join(folder, "out.safetensors"), "--quiet"}, test.flags...)
			code := cmp.Or(test.code, 4)
			if code == 4 {
				test.says = append(test.says, "job.safetensors")
			}
			coord(t, args...).fails(t, code, test.says...)
			c.unchanged(t, folder, "job.safetensors")
		})
	}
	t.Run("header of 1 TiB", func(t *testing.T) {
		folder := t.TempDir()
		job := filepath.Join(folder, "job.safetensors")
		if err := os.WriteFile(job, lying(good, 1<<40), 0o600); err != nil {
			t.Fatal(err)
		}
		words := []string{"job.safetensors", "header of 1099511627776 bytes exceeds the limit"}
		coord(t, "submit", job, "--coordinator", c.Address(), "--quiet").fails(t, 4, words...)
		// As long as it says, in a file with holes.
		if err := os.Truncate(job, 1<<40+1<<20); err != nil {
			t.Logf("no file of 1 TiB here: %v", err)
			return
		}
		coord(t, "submit", job, "--coordinator", c.Address(), "--quiet").fails(t, 4, words...)
		c.unchanged(t, folder, "job.safetensors")
	})
	t.Run("archives and shards", func(t *testing.T) {
		folder := t.TempDir()
		for name, file := range map[string]string{
			"no.npz":                       "PK\x05\x06",
			"cut.safetensors.index.json":   `{"weight_map":{"q":"cut.safetensors"`,
			"away.safetensors.index.json":  `{"weight_map":{"q":"../away.safetensors"}}`,
			"other.safetensors.index.json": `{"weight_map":{"q":"part.safetensors"}}`,
			"part.safetensors":             string(encode("{}", sound(entry{name: "q"})...)),
		} {
			if err := os.WriteFile(filepath.Join(folder, name), []byte(file), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		before := list(t, folder)
		for name, says := range map[string]string{
			"no.npz":                       "no.npz",
			"cut.safetensors.index.json":   "cut.safetensors.index.json: index",
			"away.safetensors.index.json":  `tensor "q": shard "../away.safetensors"`,
			"other.safetensors.index.json": `is not in the index other.safetensors.index.json`,
			"part.safetensors":             `tensor "q"`,
		} {
			coord(t, "submit", filepath.Join(folder, name), "--coordinator", c.Address(), "--quiet").fails(t, 4, says)
		}
		coord(t, "submit", filepath.Join(folder, "absent.safetensors"), "--coordinator", c.Address(), "--quiet").fails(t, 1, "absent.safetensors", "no such file")
		c.unchanged(t, folder, before...)
	})
	t.Run("the sound one", func(t *testing.T) {
		folder := t.TempDir()
		job, out := filepath.Join(folder, "job.safetensors"), filepath.Join(folder, "out.safetensors")
		if err := os.WriteFile(job, good, 0o600); err != nil {
			t.Fatal(err)
		}
		coord(t, "submit", job, "--coordinator", c.Address(), "--out", out, "--quiet").succeeds(t)
		if names := open(t, out).Names(); !slices.Equal(names, []string{"context", "lse"}) {
			t.Errorf("the result holds %q", names)
		}
	})
}

// unchanged checks that a folder holds these files alone, and the coordinator neither jobs nor files of them.
func (c *cluster) unchanged(t *testing.T, folder string, files ...string) {
	t.Helper()
	if have := list(t, folder); !slices.Equal(have, files) {
		t.Errorf("the folder holds %q", have)
	}
	if jobs := c.jobs(t); len(jobs) > 0 {
		t.Errorf("the coordinator knows %v", jobs)
	}
	if have := c.spool(t); len(have) > 0 {
		t.Errorf("the spool holds %q", have)
	}
}

// TestAJobThatIsTooLargeIsRefusedBeforeItIsSent counts the bytes that are sent.
func TestAJobThatIsTooLargeIsRefusedBeforeItIsSent(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 2, Memory: 1 << 20})
	job := put(t, "job.safetensors", encode("{}", sound(entry{"k", "F32", []int{65536, 2, 8}, nil}, entry{"v", "F32", []int{65536, 2, 16}, nil})...))
	sent := false
	_, err := c.Submit(bounded(t), client.SubmitOptions{Path: job, Sent: func(int64, int64) { sent = true }})
	if err == nil || sent || !strings.Contains(err.Error(), "need 12582912 bytes") {
		t.Errorf("sent %t, %v", sent, err)
	}
	c.unchanged(t, filepath.Dir(job), "job.safetensors")
}

// TestOutputThatCanNotBeWritten is found before the job is sent.
func TestOutputThatCanNotBeWritten(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 1})
	folder := t.TempDir()
	job := filepath.Join(folder, "job.safetensors")
	if err := os.WriteFile(job, encode("{}", sound()...), 0o600); err != nil {
		t.Fatal(err)
	}
	for out, says := range map[string]string{
		filepath.Join(folder, "no", "folder", "out.safetensors"): "no such file or directory",
		filepath.Join(job, "out.safetensors"):                    "not a directory",
		folder:                                                   "is a folder",
		"/proc/self/out.safetensors":                             "/proc/self/out.safetensors",
	} {
		coord(t, "submit", job, "--coordinator", c.Address(), "--out", out, "--quiet").fails(t, 1, out, says)
		c.unchanged(t, folder, "job.safetensors")
	}
}

// TestTheSameKeyWithAnotherContent is refused, and the job of that key is what it was.
func TestTheSameKeyWithAnotherContent(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 1})
	folder := t.TempDir()
	first, second, out := filepath.Join(folder, "first.safetensors"), filepath.Join(folder, "second.safetensors"), filepath.Join(folder, "out.safetensors")
	for path, number := range map[string]float64{first: 1, second: 2} {
		if err := os.WriteFile(path, encode("{}", sound(entry{"q", "F32", []int{4, 4, 8}, f32(128, 0, number)})...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := []string{"--coordinator", c.Address(), "--key", "nightly", "--out", out, "--quiet"}
	coord(t, append([]string{"submit", first}, at...)...).succeeds(t)
	before := c.jobs(t)
	if err := os.Remove(out); err != nil {
		t.Fatal(err)
	}
	coord(t, append([]string{"submit", second}, at...)...).fails(t, 4, "second.safetensors", `key "nightly"`, "another content", before[0].ID, before[0].ContentHash)
	// The same file with other options is another content.
	coord(t, append([]string{"submit", first, "--causal"}, at...)...).fails(t, 4, "first.safetensors", `key "nightly"`, "another content")
	if files := list(t, folder); slices.Contains(files, "out.safetensors") || len(files) != 2 {
		t.Errorf("the folder holds %q", files)
	}
	// The same content is the same job, also over a restart.
	c.KillCoordinator()
	c.restart(t)
	coord(t, append([]string{"submit", first}, at...)...).succeeds(t)
	after := c.jobs(t)
	if len(after) != 1 || after[0].ID != before[0].ID || after[0].Attempts != 1 {
		t.Errorf("the jobs were %v, and are %v", before, after)
	}
	open(t, out)
}

// TestNobodyIsThere: no coordinator, and a coordinator without workers.
func TestNobodyIsThere(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	job, out := filepath.Join(folder, "job.safetensors"), filepath.Join(folder, "out.safetensors")
	if err := os.WriteFile(job, encode("{}", sound()...), 0o600); err != nil {
		t.Fatal(err)
	}
	nobody := free(t)
	for _, args := range [][]string{{"submit", job, "--out", out, "--quiet"}, {"status"}, {"jobs", "list"}, {"jobs", "show", "x"}, {"jobs", "result", "x", "--out", out}} {
		coord(t, append(args, "--coordinator", nobody)...).fails(t, 3, nobody, "unreachable", "connection refused")
	}
	alone := serve(t, "--workers", "w1="+free(t))
	coord(t, "submit", job, "--out", out, "--quiet", "--coordinator", alone).fails(t, 6, "job.safetensors", `no worker answers: worker "w1"`, "connection refused")
	coord(t, "jobs", "show", "x", "--coordinator", alone).fails(t, 4, `"x"`)
	if files := list(t, folder); len(files) != 1 {
		t.Errorf("the folder holds %q", files)
	}
}

// free is an address on which nobody listens.
func free(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// serve runs a coordinator by itself until the test ends, and returns its address.
func serve(t *testing.T, args ...string) string {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	var stderr bytes.Buffer
	// Not by the test's context: at the test's end it is asked to stop, and shall do so.
	cmd := command(context.Background(), program, append([]string{"serve", "--name", "alone", "--listen", "127.0.0.1:0", "--data-dir", t.TempDir(), "--" + localcluster.ReadyFlag, "3"}, args...)...)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{write}, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer time.AfterFunc(patience, func() { _ = cmd.Process.Kill() }).Stop()
		if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
			t.Errorf("the coordinator was asked to stop: %v: %s", err, stderr.String())
		}
	})
	var ready localcluster.Ready
	if err := readLine(bounded(t), read, &ready); err != nil {
		t.Fatal(err)
	}
	return ready.Address
}

// TestWorkersOfAnotherVersion are refused by name, whether they refuse or answer.
func TestWorkersOfAnotherVersion(t *testing.T) {
	t.Parallel()
	job := put(t, "job.safetensors", encode("{}", sound()...))
	for name, answers := range map[string]bool{"a worker that refuses": false, "a worker that answers": true} {
		t.Run(name, func(t *testing.T) {
			var ran atomic.Int64
			address := foreign(t, "2.7", answers, &ran)
			alone := serve(t, "--workers", "stranger="+address)
			coord(t, "submit", job, "--quiet", "--coordinator", alone).fails(t, 4, "job.safetensors", `worker "stranger"`, "2.7", rpc.Version)
			if ran.Load() > 0 {
				t.Error("the worker was given work")
			}
			list := coord(t, "jobs", "list", "--coordinator", alone, "--output", "json")
			list.succeeds(t)
			if strings.Contains(list.out, "job.safetensors") {
				t.Errorf("a job is left: %s", list.out)
			}
		})
	}
}

// foreign is a worker of another protocol version.
func foreign(t *testing.T, version string, answers bool, ran *atomic.Int64) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		if err := stream.SetHeader(metadata.Pairs(rpc.MetadataKey, version)); err != nil {
			return err
		}
		method, _ := grpc.MethodFromServerStream(stream)
		if method != headwaterv1.WorkerService_Describe_FullMethodName {
			ran.Add(1)
		}
		if !answers {
			return status.Errorf(codes.FailedPrecondition, "peer speaks headwater protocol %s, this side speaks %s: the major versions differ", rpc.Version, version)
		}
		if err := stream.RecvMsg(&headwaterv1.DescribeRequest{}); err != nil {
			return err
		}
		return stream.SendMsg(&headwaterv1.DescribeResponse{Name: "stranger", Weight: 1, BudgetBytes: 1 << 30, Threads: 1})
	}))
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

// TestAClientOfAnotherVersion is refused by the coordinator.
func TestAClientOfAnotherVersion(t *testing.T) {
	t.Parallel()
	alone := serve(t, "--workers", "w1="+free(t))
	c, err := client.Dial(alone)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// Of two versions, the server refuses the one that it does not speak.
	_, err = c.Status(metadata.AppendToOutgoingContext(bounded(t), rpc.MetadataKey, "3.1"))
	if err == nil || !strings.Contains(err.Error(), "3.1") || !strings.Contains(err.Error(), rpc.Version) {
		t.Errorf("got %v", err)
	}
}

// small mounts a file system of a few bytes until the test ends.
func small(t *testing.T, bytes int) string {
	t.Helper()
	folder := t.TempDir()
	if err := syscall.Mount("tmpfs", folder, "tmpfs", 0, "size="+strconv.Itoa(bytes)); err != nil {
		t.Skipf("a full disk needs a small file system, and this test may not mount one: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(folder, 0); err != nil {
			t.Error(err)
		}
	})
	return folder
}

// TestTheDiskOfTheResultIsFull: the job has succeeded, and its result is still to be had elsewhere.
func TestTheDiskOfTheResultIsFull(t *testing.T) {
	t.Parallel()
	folder := small(t, 512<<10)
	c := start(t, localcluster.Options{Workers: 1})
	out := filepath.Join(folder, "out.safetensors")
	coord(t, "submit", fixtures+"attention.safetensors", "--coordinator", c.Address(), "--key", "k", "--out", out, "--quiet").
		fails(t, 6, out, "bytes of disk", "no space left on device")
	if files := list(t, folder); len(files) > 0 {
		t.Errorf("the full disk holds %q", files)
	}
	// What was there stays.
	if err := os.WriteFile(out, []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	coord(t, "jobs", "result", "k", "--coordinator", c.Address(), "--out", out, "--quiet").fails(t, 6, out, "no space left on device")
	if older, err := os.ReadFile(out); err != nil || string(older) != "older" {
		t.Errorf("it holds %q, %v", older, err)
	}
	result := c.fetch(t, "k")
	same(t, "elsewhere", firstResult(t, "attention", result), result)
}

// TestTheCoordinatorsDiskIsFull: a job that can not be kept is refused, and one whose result can not be, before it is sent; and
// the coordinator goes on.
func TestTheCoordinatorsDiskIsFull(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		room int // 1.8 MiB of input, then 1.1 MiB of result
		says []string
	}{
		{"for the job", 1 << 20, []string{"submit attention.safetensors", "disk is full", "no space left on device"}},
		{"for the result", 5 << 19, []string{"submit attention.safetensors", "disk is full", "no space left on device"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := start(t, localcluster.Options{Workers: 1, DataDir: small(t, test.room)})
			folder := t.TempDir()
			out := filepath.Join(folder, "out.safetensors")
			coord(t, "submit", fixtures+"attention.safetensors", "--coordinator", c.Address(), "--out", out, "--quiet").fails(t, 6, test.says...)
			if files := append(list(t, folder), c.spool(t)...); len(files) > 0 {
				t.Errorf("left are %q", files)
			}
			if jobs := c.jobs(t); len(jobs) != 0 {
				t.Errorf("the coordinator knows %v", jobs)
			}
			coord(t, "submit", put(t, "job.safetensors", encode("{}", sound()...)), "--coordinator", c.Address(), "--out", out, "--quiet").succeeds(t)
		})
	}
}

// TestCommandLinesThatAreWrong end with code 2, or with 5 where results differ.
func TestCommandLinesThatAreWrong(t *testing.T) {
	t.Parallel()
	job := put(t, "job.safetensors", encode("{}", sound()...))
	other := put(t, "other.safetensors", encode("{}", sound(entry{"q", "F32", []int{4, 4, 8}, f32(128, 9, 1)})...))
	worker := filepath.Join(workshop, "worker")
	for _, test := range []struct {
		program string
		args    []string
		code    int
		says    string
	}{
		{program, []string{"submit"}, 2, "JOB"},
		{program, []string{"submti"}, 2, "submti"},
		{program, []string{"submit", job, "--local", "0"}, 2, "--local"},
		{program, []string{"submit", job, "--codec", "int4"}, 2, "codec"},
		{program, []string{"serve", "--name", "No Name"}, 2, "No Name"},
		{program, []string{"serve", "--workers", "w1"}, 2, "--workers"},
		{program, []string{"serve", "--listen", "nowhere"}, 2, "nowhere"},
		{worker, []string{"serve", "--memory", "lots"}, 2, "lots"},
		{worker, []string{"serve", "--threads", "-1"}, 2, "threads"},
		{worker, []string{"serve", "--weight", "0"}, 2, "weight"},
		{worker, []string{"serve", "--listen", "127.0.0.1:0", "--gossip", "nowhere"}, 2, "nowhere"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			cmd := command(bounded(t), test.program, test.args...)
			cmd.Dir = t.TempDir()
			execute(cmd).fails(t, test.code, test.says)
		})
	}
	differ := coord(t, "diff", job, other)
	if differ.code != 5 || !strings.Contains(differ.out, `tensor "q": element 9`) {
		t.Errorf("diff ended with %d: %s%s", differ.code, differ.out, differ.stderr)
	}
	if equal := coord(t, "diff", job, job); equal.code != 0 {
		t.Errorf("diff ended with %d: %s%s", equal.code, equal.out, equal.stderr)
	}
}
