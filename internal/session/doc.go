// Package session carries the messages of SessionService.Lane (LaneRequest and LaneResponse of headwater.v1) without copying
// their tensors, and the errors of sessions.
//
// The way of a message: its sender fills an rpc.Buffer and passes it to Send. MarshalMessage writes the other fields
// into a buffer of its own, and gRPC sends both. On the other side UnmarshalMessage reads the fields in place. It
// copies the payload once, from the 16 KiB pieces in which gRPC reads, into a Buffer at a 64-byte boundary. Recv gives
// that Buffer to the receiver, who frees it. Buffers are pooled, and requests and responses keep their fields' slices:
// once all have grown, only gRPC allocates for a message.
//
// The bytes are those of session.proto, so one server speaks to Headwater's own client, to generated clients of any
// language, and to reflection.
//
// A round trip of 16 KiB each way over loopback takes 49 µs at the median, and 75 µs through generated messages, on two cores
// of a Zen 3 machine (one run of go test ./internal/session -run '^$' -bench RoundTrip, which prints both medians).
//
// On one machine a lane has no gRPC (plain.go, local.go): the same messages go over a Unix socket, and only their way is another.
//
// Lengths are checked against the message before memory is allocated. A message that can't be read ends its lane with
// an error.
package session
