// Package fanout sends the calls on a session to all of its holders and merges their answers into one, as if one holder
// had all groups. Direct clients use it, and so do coordinators and relays.
//
// The way of a step: Start cuts its tensors by the groups of each holder of the layer (Holding) and queues them on the
// lane's stream to that holder; Wait takes the answers, checks that each is the one that was asked for, and hands out
// contexts group by group. A step is done when every holder has done it. If a step fails on the way, it is sent to all
// holders again: a holder that has done it recognizes its id and gives the same answer. Other calls go to all holders
// concurrently (control.go).
//
// The package keeps nothing of a session: lengths, hashes and epochs are the caller's.
package fanout
