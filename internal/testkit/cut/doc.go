// Package cut cuts processes off the network: it runs a program in a network namespace of its own, in which packets to and from
// ports can be dropped without a word. It needs Linux, nft and ip, and either root or a kernel that lets users make namespaces.
package cut
