//go:build !linux

package localcluster

import "syscall"

// attributes has nothing to say where the kernel does not tell children of their parent's death.
func attributes() *syscall.SysProcAttr { return nil }
