//go:build linux

// Command init is the first process of an emulated machine: it runs the test programs in /tests with the arguments in
// /args, says how each ended, and turns the machine off. `make test-avx512` puts it there.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Println("init:", err)
	}
	// What was said may still be on its way through the serial line.
	_ = unix.IoctlSetInt(1, unix.TCSBRK, 1)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	args, err := os.ReadFile("/args")
	if err != nil {
		return err
	}
	tests, err := filepath.Glob("/tests/*.test")
	if err != nil {
		return err
	}
	for _, test := range tests {
		c := exec.Command(test, strings.Fields(string(args))...)
		c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
		if err := c.Run(); err != nil {
			return fmt.Errorf("%s: %w", test, err)
		}
	}
	fmt.Println("init: all tests passed")
	return nil
}
