// Package amx runs a program on a processor without AMX as if it had tiles of bf16: the program is stopped at each of their
// instructions, which are illegal there, and they are computed for it. It is for tests, and thousands of times as slow.
//
// What they compute was found on a processor that has them. For each element of the result, TDPBF16PS sums the products of the
// even pairs' elements and those of the odd ones, ascending, each rounded once to nearest even with its addition, then both sums,
// and the element at last. Subnormal inputs are taken for zeros, and a result that is subnormal after it was rounded becomes one.
package amx
