// Package bench measures sessions on a running cluster from a client's side, as a model would use them: how fast a prompt is
// taken in, how long a token takes, and how latency stands under a load that does not wait for answers.
//
// The way of a measurement: sessions are opened and filled with seeded random keys and values, steps are made and timed, and
// the sessions are dropped. Every time is one that a client sees, with slicing, wire, queues and kernels in it.
package bench
