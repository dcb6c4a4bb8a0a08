package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/grpc/metadata"
)

// maxLaneHeader bounds the metadata of a plain lane's greeting, whose length has two bytes.
const maxLaneHeader = 1<<16 - 1

// LaneHeader is the metadata of a call, as the greeting of a plain lane within TLS carries it: each key with a byte of its length before
// it, and each value with two.
func LaneHeader(ctx context.Context) ([]byte, error) {
	header, _ := metadata.FromOutgoingContext(outgoing(ctx, Version))
	var b []byte
	for _, key := range slices.Sorted(maps.Keys(header)) {
		for _, value := range header[key] {
			if len(key) > 1<<8-1 || len(b)+len(key)+len(value)+3 > maxLaneHeader {
				return nil, fmt.Errorf("a plain lane is opened with more than %d bytes of metadata", maxLaneHeader)
			}
			b = append(append(b, byte(len(key))), key...)
			b = append(binary.LittleEndian.AppendUint16(b, uint16(len(value))), value...)
		}
	}
	return b, nil
}

// errLaneHeader refuses metadata that ends within a key or a value.
var errLaneHeader = errors.New("the metadata of a plain lane ends within a field")

// ReadLaneHeader reads what LaneHeader writes.
func ReadLaneHeader(b []byte) (metadata.MD, error) {
	header := metadata.MD{}
	for len(b) > 0 {
		key, rest, ok := cutField(b[1:], int(b[0]))
		if !ok || len(rest) < 2 {
			return nil, errLaneHeader
		}
		value, rest, ok := cutField(rest[2:], int(binary.LittleEndian.Uint16(rest)))
		if !ok {
			return nil, errLaneHeader
		}
		header.Append(key, value)
		b = rest
	}
	return header, nil
}

func cutField(b []byte, n int) (field string, rest []byte, ok bool) {
	if len(b) < n {
		return "", nil, false
	}
	return string(b[:n]), b[n:], true
}
