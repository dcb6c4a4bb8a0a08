// Package lane carries the frames of SessionService.Lane: LaneRequest and LaneResponse of headwater.v1, as structs whose
// tensors are not copied by a protobuf codec, and the errors of sessions.
//
// The way of a frame: its sender fills a Buffer and gives it away with Send. Codec writes what comes before the payload into
// a buffer of its own, and gRPC sends both. On the other side Codec reads the fields where they lie, and copies the payload
// once, out of the 16 KiB pieces in which gRPC reads, into a Buffer at a 64-byte boundary. Recv gives that Buffer to the
// receiver, who frees it. Buffers are pooled, and so are the fields' slices if requests and responses are used again: when
// all have grown, a frame allocates nothing but what gRPC does.
//
// The bytes are those of session.proto. Codec leaves every other message to the protobuf codec, so one server speaks to
// Headwater's own client, to generated clients of any language, and to reflection.
//
// A round trip of 16 KiB each way over loopback takes 49 µs at the median, and 75 µs through generated messages, on two cores
// of a Zen 3 machine (one run of go test ./lane -run '^$' -bench RoundTrip, which prints both medians).
//
// Lengths are checked against what is there before memory is taken; what can not be read is an error that ends the lane.
package lane
