// Package cut takes from processes what they need of a machine: it runs a program in a network namespace of its own, in which packets to
// and from ports can be dropped without a word, pass slowly, or come late and out of order, and with mounts of its own, so that it can have
// small disks; and it lets a process have no more memory. It needs Linux, nft and ip, for a slow network tc, for a late one /dev/net/tun,
// and either root or a kernel that lets users make namespaces.
package cut
