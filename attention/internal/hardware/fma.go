// Package hardware gives the processor's own fused multiply-add of binary32, an oracle for the tests of the portable one.
package hardware
