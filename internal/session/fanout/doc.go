// Package fanout carries the calls on a session to all who hold a part of it, and joins what they answer, so that they look
// like one holder of all groups. Clients that speak to workers use it, and so does a coordinator that relays.
//
// The way of a step: Start cuts its tensors by the groups of each holder of the layer (Holding) and queues them on the lane's
// stream to that holder; Wait takes the answers, checks that each is the one that was asked for, and hands out contexts
// group by group. A step is done when every holder has done it. What failed on the way is sent again, to all: who has done
// it knows it by its hashes and answers alike. Calls other than steps go to all holders beside each other (control.go).
//
// The package keeps nothing of a session: lengths, hashes and epochs are the caller's.
package fanout
