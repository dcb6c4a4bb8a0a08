//go:build linux && amd64

// Command emulate runs a program as if the processor had AMX, with the signals and the pipe of descriptor 3 that it gets itself.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"headwater.example/internal/emulator/amx"
)

// inherited is the one descriptor that is handed on, beside the three of every program, if it is a pipe.
const inherited = 3

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: emulate PROGRAM ARGUMENT...")
		os.Exit(2)
	}
	program := exec.Command(os.Args[1], os.Args[2:]...)
	program.Stdin, program.Stdout, program.Stderr = os.Stdin, os.Stdout, os.Stderr
	var pipe syscall.Stat_t
	if err := syscall.Fstat(inherited, &pipe); err == nil && pipe.Mode&syscall.S_IFMT == syscall.S_IFIFO {
		program.ExtraFiles = []*os.File{os.NewFile(inherited, "pipe")}
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	result, err := amx.RunWith(program, signals)
	if err != nil {
		fmt.Fprintln(os.Stderr, "emulate:", err)
		os.Exit(1)
	}
	os.Exit(result.Code)
}
