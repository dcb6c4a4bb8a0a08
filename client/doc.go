// Package client is the Go client of Headwater: attention over keys and values that a cluster holds.
//
// # Quick start
//
// A [Session] is a sequence held open on the cluster. A model appends each token's keys and values to it, layer by layer,
// and its queries attend over all positions so far:
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
// Tensors are slices of float32, tokens first: q [tokens, n_heads, head_dim], k [tokens, n_kv_heads, head_dim], v
// [tokens, n_kv_heads, v_dim]; context [tokens, n_heads, v_dim] and lse [tokens, n_heads] are filled. Several tokens, for
// example of a prompt or a draft, go in one step. A step allocates nothing.
//
// A job is attention over whole tensors, from a file into a file. [Client.Submit] streams it to the coordinator.
// [Client.Wait] follows it to its end, even over lost connections. [Client.Download] writes the result; the file appears
// under its name only if it is complete and its SHA-256 is right.
//
// # What a session can do
//
//   - [Session.Step] and [Session.Do] append, or attend, or both; [Step] has all options: a mask for trees of drafts,
//     positions, rows that are already in the storage type.
//   - [Do] sends steps of many sessions and layers at once; each [Step.Err] is that step's error.
//   - [Session.Fork] begins another session with the same positions, in shared memory: beams, samples of one prompt.
//   - [Session.Truncate] takes the newest positions back: drafts that were not accepted, a prompt that was edited.
//   - With [SessionOptions].Tokens a session begins with the positions that another one of the same tenant, model and layers
//     has left; [Session.Prefix] is how many need not be projected and appended.
//   - [Session.Pin] keeps it from being evicted; [Session.Drop] ends it and frees its memory, and so does [Session.Close],
//     unless the session was attached or is to be kept; [Client.Attach] continues a session, here or in another process.
//   - [Session.Snapshot] writes it to a file or stream, and [Client.RestoreSession] continues from there on any cluster, with
//     the same bits; [Client.SnapshotSession] writes a session that another client drives.
//
// # Relayed or direct
//
// By default a session's steps go to the coordinator, which cuts them by group for the workers and gathers the answers:
// one address, one connection. With [SessionOptions].Direct the client speaks to the workers itself. That saves a hop and
// the coordinator's copy of every byte, but the client must reach all workers. Both have the same calls, bits and
// guarantees.
//
// [Codec] says how contexts come back. [Auto] measures the link and picks [Raw] or [Exact], which both return every bit.
// [BF16], [F16] and [Int8] lose bits, and are used only by name. Keys and values are sent in the layer's storage type,
// narrowed here to the same bits as the workers would narrow them, or as float32 with [SessionOptions].SendF32.
//
// # Errors
//
// A call on a session fails with a [*SessionError], a call on a job with an [*Error]. If a job ends without a result, the
// error is a [*JobError]. All say what was being done, to what, and who refused it. errors.Is tells what to do
// (docs/errors.md):
//
//   - [ErrTryAgain]: the same call may succeed later. Among these are [ErrUnreachable]: the coordinator did not answer;
//     [ErrLost]: a worker with a part of the session does not answer; [ErrOverBudget]: the workers have no room.
//   - [ErrGone]: the session no longer exists: it was dropped or evicted, or a worker that held a part has restarted. Open
//     another one, or restore a snapshot.
//   - [ErrRefused]: the same call fails in the same way. One of these is [ErrTakenOver]: another client drives the session now;
//     [Client.Attach] takes it back.
//   - [ErrClosed]: the program itself has closed the client, or closed or dropped the session.
//   - context.Canceled and context.DeadlineExceeded: the caller's context has ended.
//
// After a call that failed, the session is as it was, or the same call completes it when it is repeated: an append names
// the state that it builds on, and one that was done already is not done twice. So a step may be repeated with the same
// tensors. If a step is too large for one message and goes in several, [Session.LayerLen] says how far it came.
//
// # Concurrency
//
// A [Client] is safe for concurrent use, and one is enough for a program: all its sessions share a stream to each worker.
// Only one goroutine may use a [Session] at a time; this is checked. When a call has returned, its tensors are the
// caller's again. Files are read and written in pieces; neither a job nor a result is ever held in memory.
package client
