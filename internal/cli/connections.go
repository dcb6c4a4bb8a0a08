package cli

import (
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// Of the files that a process may have open, those that are not for connections of clients, and bounds of these.
const (
	otherFiles = 32
	leastConns = 8
	mostConns  = 1 << 14
	// defaultPerAddress is the default of --address-conns: a program has a connection or two, and a gateway that hides many shows one
	// address.
	defaultPerAddress = 256
)

// maxConnections is how many connections a server may have, by the files that the process may have open.
func maxConnections() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return mostConns
	}
	return int(max(min(int64(min(limit.Cur, mostConns+otherFiles))-otherFiles, mostConns), leastConns))
}

// addressFlag bounds the connections of an address.
func addressFlag(flags *pflag.FlagSet, most *int) {
	flags.IntVar(most, "address-conns", defaultPerAddress, "most connections from one address, of IPv6 from one /64; 0 is no bound")
}
