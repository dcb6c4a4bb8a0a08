package localcluster

import "syscall"

// attributes make a child die with its parent, and keep the terminal's Ctrl-C to the parent, which stops its children in
// order.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
