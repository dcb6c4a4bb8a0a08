// Package client is the Go client of Headwater: attention over keys and values that a cluster holds.
//
// # Quick start
//
// A [Session] is a sequence held open on the cluster. A model appends each token's keys and values to it, layer by layer, and
// its queries attend over all that is there:
//
//	c, err := client.Dial("coordinator.example:7600")
//	...
//	defer c.Close()
//	layer := client.Layer{Heads: 32, KVHeads: 8, HeadDim: 128, Storage: tensor.BF16}
//	s, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer, layer}})
//	...
//	for l := range 2 { // for each token
//		err := s.Step(ctx, l, q, k, v, context, lse)
//	}
//
// Tensors are slices of float32, tokens first: q [tokens, n_heads, head_dim], k [tokens, n_kv_heads, head_dim],
// v [tokens, n_kv_heads, v_dim]; context [tokens, n_heads, v_dim] and lse [tokens, n_heads] are filled. Several tokens, as of
// a prompt or a draft, go in one step. A step allocates nothing.
//
// A job is attention over whole tensors, from a file into a file: [Client.Submit] streams it to the coordinator,
// [Client.Wait] follows it to its end over lost connections, and [Client.Download] writes the result, which appears under its
// name only when it is complete and its SHA-256 is right.
//
// # What a session can do
//
//   - [Session.Step] and [Session.Do] append and attend, both or either; [Step] has all that one can ask for: a mask for trees
//     of drafts, positions, rows that are in the storage type already.
//   - [Do] has steps of many sessions and layers in flight at once, and each [Step.Err] says what came of it.
//   - [Session.Fork] begins another session with the same positions, whose memory both share: beams, samples of one prompt.
//   - [Session.Truncate] takes the newest positions back: drafts that were not accepted, a prompt that was edited.
//   - [SessionOptions].Tokens begins with the positions that another session of the same tenant, model and layers has left;
//     [Session.Prefix] says how many need neither be projected nor appended.
//   - [Session.Pin] keeps it from being dropped for want of use or room; [Session.Drop] ends it and frees its memory;
//     [Session.Close] leaves it on the cluster until its TTL, and [Client.Attach] takes it up again, there or elsewhere.
//   - [Session.Snapshot] writes it to a file or stream, and [Client.RestoreSession] goes on from there on any cluster with the
//     same bits; [Client.SnapshotSession] writes one that another client drives.
//
// # Relayed or direct
//
// By default a session's steps go to the coordinator, which cuts them by group for the workers and gathers what they answer:
// one address to reach, one connection. With [SessionOptions].Direct the client speaks to the workers itself, which saves a hop
// and the coordinator's copy of every byte; it must reach all of them. Both have the same calls, bits and guarantees.
//
// Contexts come back as [Codec] says: [Auto] picks, by what it measures on the link, between [Raw] and [Exact], which both
// return every bit. [BF16], [F16] and [Int8] lose some, and are used only where they are named. Keys and values go out in the
// layer's storage type, narrowed here to the bits that the workers would have made of them, or as float32 with
// [SessionOptions].SendF32.
//
// # Errors
//
// A call on a session fails with a [*SessionError], a call on a job with an [*Error], and a job that ended without a result is a
// [*JobError]. All say what was being done, to what, and who refused it. errors.Is tells what to do (docs/errors.md):
//
//   - [ErrTryAgain]: the same call may go well later. Among these [ErrUnreachable]: the coordinator did not answer; [ErrLost]: a
//     worker that holds a part of the session does not; [ErrOverBudget]: the workers have no room.
//   - [ErrGone]: the session is no more, since it was dropped or evicted, or a worker that held a part has restarted. Open
//     another, or restore a snapshot.
//   - [ErrRefused]: the same call fails in the same way. Among these [ErrTakenOver]: another client drives the session now, and
//     [Client.Attach] takes it back.
//   - [ErrClosed]: the program itself has closed the client, or closed or dropped the session.
//   - context.Canceled and context.DeadlineExceeded: the caller's context has ended.
//
// A call that fails leaves the session as it was, or else the same call again makes it whole: appends carry the chained hash
// that they build on, and one that is there already is not done twice. So a step may be repeated with the same tensors; of one
// that is too large for a message, and goes in several, [Session.LayerLen] says how far it came.
//
// # Concurrency
//
// A [Client] is safe for concurrent use, and one is enough for a program: all its sessions share a stream to each worker. One
// goroutine uses a [Session] at a time, which is checked. Tensors are the caller's again when a call has returned. Files are
// read and written in pieces; neither a job nor a result is ever held in memory.
package client
