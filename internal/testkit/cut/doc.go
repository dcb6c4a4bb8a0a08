// Package cut takes from processes what they need of a machine: it runs a program in a network namespace of its own, in which packets to
// and from ports can be dropped without a word, and with mounts of its own, so that it can have small disks. It needs Linux, nft and ip,
// and either root or a kernel that lets users make namespaces.
package cut
