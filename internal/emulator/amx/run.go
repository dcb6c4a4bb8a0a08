//go:build linux && amd64

package amx

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"headwater.example/internal/processor"
)

// Variable is set in the environment of a program that is emulated.
const Variable = "HEADWATER_AMX"

// Emulated is the value of Variable.
const Emulated = "emulated"

// Result is how a program ended.
type Result struct {
	Code         int // as a shell has it: 128 and the number of the signal that ended it
	Instructions int // of AMX that were computed
}

// Run starts a program, which must not have been started, and waits until it has ended. Where it is one of Go with package processor,
// that finds AMX. Programs that it starts are not emulated. The program does not outlive the caller.
func Run(program *exec.Cmd) (Result, error) { return RunWith(program, nil) }

// RunWith is Run that passes signals on to the program, and closes the program's ExtraFiles here.
func RunWith(program *exec.Cmd, signals <-chan os.Signal) (Result, error) {
	if processor.Has(processor.AMXTile) {
		return Result{}, errors.New("emulate AMX: this processor has it: run the program as it is")
	}
	type outcome struct {
		result Result
		err    error
	}
	ended := make(chan outcome)
	go func() {
		runtime.LockOSThread() // The thread that starts a program is its tracer. It ends with this goroutine.
		result, err := run(program, signals)
		ended <- outcome{result, err}
	}()
	o := <-ended
	if o.err != nil {
		return Result{}, fmt.Errorf("emulate AMX: %w", o.err)
	}
	return o.result, nil
}

func run(program *exec.Cmd, signals <-chan os.Signal) (Result, error) {
	program.Env = append(program.Environ(), Variable+"="+Emulated)
	if program.SysProcAttr == nil {
		program.SysProcAttr = &syscall.SysProcAttr{}
	}
	// A group of its own, so that no other child of this process is waited for here.
	program.SysProcAttr.Ptrace, program.SysProcAttr.Setpgid, program.SysProcAttr.Pdeathsig = true, true, syscall.SIGKILL
	err := program.Start()
	for _, f := range program.ExtraFiles {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return Result{}, err
	}
	t := tracer{pid: program.Process.Pid, threads: map[int]*state{}}
	if err := t.begin(); err != nil {
		return Result{}, errors.Join(err, program.Process.Kill())
	}
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case s := <-signals:
				_ = program.Process.Signal(s) // if it can't be sent, the program has ended
			case <-over:
				return
			}
		}
	}()
	for !t.over {
		if err := t.next(); err != nil {
			return Result{}, errors.Join(err, program.Process.Kill())
		}
	}
	// What exec.Cmd copies from and to pipes ends with the program; that it can't be waited for again is no error.
	if err := program.Wait(); err != nil && !errors.Is(err, syscall.ECHILD) {
		return Result{}, err
	}
	return t.result, nil
}

// tracer stands between a program and its signals.
type tracer struct {
	pid     int
	threads map[int]*state
	asks    map[uint64]*question
	over    bool
	result  Result
}

// begin waits for the stop at which the program has been loaded.
func (t *tracer) begin() error {
	var status unix.WaitStatus
	if _, err := wait(t.pid, &status); err != nil {
		return err
	}
	if !status.Stopped() {
		return fmt.Errorf("the program has not begun: status %#x", uint32(status))
	}
	t.threads[t.pid] = &state{}
	var err error
	if t.asks, err = disguise(t.pid); err != nil {
		return err
	}
	if err := unix.PtraceSetOptions(t.pid, unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL); err != nil {
		return err
	}
	return unix.PtraceCont(t.pid, 0)
}

// wait waits for a process, or if id is negative for any of a group.
func wait(id int, status *unix.WaitStatus) (thread int, err error) {
	for {
		if thread, err = unix.Wait4(id, status, unix.WALL, nil); !errors.Is(err, unix.EINTR) {
			return thread, err
		}
	}
}

// next handles what happens next to a thread of the program.
func (t *tracer) next() error {
	var status unix.WaitStatus
	thread, err := wait(-t.pid, &status)
	if err != nil {
		return err
	}
	if !status.Stopped() { // it has ended
		delete(t.threads, thread)
		if thread == t.pid {
			t.over = true
			if t.result.Code = status.ExitStatus(); status.Signaled() {
				t.result.Code = 128 + int(status.Signal())
			}
		}
		return nil
	}
	signal := int(status.StopSignal())
	s, known := t.threads[thread]
	switch {
	case !known: // it begins with a stop
		t.threads[thread] = &state{}
		signal = 0
	case status.TrapCause() > 0: // it has begun another one
		signal = 0
	case signal == int(unix.SIGILL):
		if signal, err = t.emulate(thread, s); err != nil {
			return err
		}
	}
	// A thread that was killed meanwhile is told of next.
	if err := unix.PtraceCont(thread, signal); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// emulate does the instruction at which a thread has stopped, and those of AMX that follow it. It returns the signal that the thread
// gets, 0 if there is none.
func (t *tracer) emulate(thread int, s *state) (signal int, err error) {
	v := view{thread: thread}
	if err := unix.PtraceGetRegs(thread, &v.registers); err != nil {
		return 0, err
	}
	if q := t.asks[v.registers.Rip]; q != nil {
		if !v.reply(q) {
			return int(unix.SIGSEGV), nil
		}
		return 0, unix.PtraceSetRegs(thread, &v.registers)
	}
	var code [256]byte
	at, n := 0, 0
	for first := true; ; first = false {
		if n-at < longest {
			at, n = 0, v.readSome(v.registers.Rip, code[:]) // fewer where a mapping ends
		}
		length, err := s.execute(code[at:n], v.registers.Rip, &v)
		switch {
		case err != nil && !first: // what it is is seen when the thread comes to it
			return 0, unix.PtraceSetRegs(thread, &v.registers)
		case errors.Is(err, errUndefined):
			return int(unix.SIGILL), nil
		case errors.Is(err, errProtection):
			return int(unix.SIGSEGV), nil
		case err != nil:
			return 0, err
		}
		t.result.Instructions++
		v.registers.Rip += uint64(length)
		at += length
	}
}

// view is what a stopped thread has.
type view struct {
	thread    int
	registers unix.PtraceRegs
	here      [tileRows]unix.Iovec
	there     [tileRows]unix.RemoteIovec
}

func (v *view) register(number int) uint64 {
	r := &v.registers
	return [...]uint64{r.Rax, r.Rcx, r.Rdx, r.Rbx, r.Rsp, r.Rbp, r.Rsi, r.Rdi, r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15}[number]
}

func (v *view) readSome(address uint64, into []byte) int {
	n, err := unix.ProcessVMReadv(v.thread, []unix.Iovec{{Base: &into[0], Len: uint64(len(into))}}, []unix.RemoteIovec{{Base: uintptr(address), Len: len(into)}}, 0)
	if err != nil {
		return 0
	}
	return n
}

// rows says where rows lie here and there, and how many bytes they have in all.
func (v *view) rows(address, stride uint64, all [][]byte) (here []unix.Iovec, there []unix.RemoteIovec, bytes int) {
	for i, row := range all {
		v.here[i] = unix.Iovec{Base: &row[0], Len: uint64(len(row))}
		v.there[i] = unix.RemoteIovec{Base: uintptr(address + uint64(i)*stride), Len: len(row)}
		bytes += len(row)
	}
	return v.here[:len(all)], v.there[:len(all)], bytes
}

func (v *view) read(address, stride uint64, into ...[]byte) error {
	here, there, bytes := v.rows(address, stride, into)
	if n, err := unix.ProcessVMReadv(v.thread, here, there, 0); err != nil || n < bytes {
		return errProtection
	}
	return nil
}

func (v *view) write(address, stride uint64, from ...[]byte) error {
	here, there, bytes := v.rows(address, stride, from)
	if n, err := unix.ProcessVMWritev(v.thread, here, there, 0); err != nil || n < bytes {
		return errProtection
	}
	return nil
}
