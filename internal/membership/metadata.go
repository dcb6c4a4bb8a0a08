package membership

import (
	"encoding/binary"
	"fmt"
)

// A member's metadata travels in every announcement of it. In order, integers little-endian:
//
//	format   1 byte, 1
//	role     1 byte
//	boot     16 bytes
//	weight   4 bytes
//	address  1 byte of length, the bytes
//	version  1 byte of length, the bytes
//	flags    1 byte, may be missing: 1 is a member that leaves
//
// What follows is ignored, so that a later program can add to it; another format is refused by name. The name is not in
// it: memberlist carries that.
const (
	metadataFormat = 1
	metadataFixed  = 1 + 1 + 16 + 4
	// metadataLimit is the most that memberlist carries, in bytes.
	metadataLimit = 512

	flagLeaving = 1
)

// encodeMetadata returns the metadata of a member, which it validates.
func encodeMetadata(m Member, leaving bool) ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	size := metadataFixed + 1 + len(m.Address) + 1 + len(m.Version) + 1
	if len(m.Address) > 255 || size > metadataLimit {
		return nil, fmt.Errorf("member %s: its metadata has %d bytes with an address of %d, more than the %d (and 255) that gossip carries", m.Name, size, len(m.Address), metadataLimit)
	}
	b := make([]byte, 0, size)
	b = append(b, metadataFormat, byte(m.Role))
	b = append(b, m.Boot[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(m.Weight))
	for _, s := range []string{m.Address, m.Version} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	if leaving {
		b = append(b, flagLeaving)
	}
	return b, nil
}

// decodeMetadata returns the member that the metadata of a node tells of, and whether it leaves. It keeps nothing of b.
func decodeMetadata(key string, b []byte) (m Member, leaving bool, err error) {
	if len(b) > metadataLimit {
		return Member{}, false, fmt.Errorf("member %q: metadata of %d bytes, more than %d", key, len(b), metadataLimit)
	}
	if len(b) == 0 {
		return Member{}, false, fmt.Errorf("member %q: no metadata", key)
	}
	if b[0] != metadataFormat {
		return Member{}, false, fmt.Errorf("member %q: metadata of format %d, this program reads %d", key, b[0], metadataFormat)
	}
	if len(b) < metadataFixed {
		return Member{}, false, fmt.Errorf("member %q: metadata ends after %d bytes, before its fixed %d", key, len(b), metadataFixed)
	}
	m = Member{Role: Role(b[1]), Boot: [16]byte(b[2:18])}
	m.Name = nameOf(key, m.Boot)
	weight := binary.LittleEndian.Uint32(b[18:])
	if weight > MaxWeight {
		return Member{}, false, fmt.Errorf("member %q: weight %d is more than %d", m.Name, weight, MaxWeight)
	}
	m.Weight = int(weight)
	rest := b[metadataFixed:]
	for _, field := range []struct {
		name string
		to   *string
	}{{"address", &m.Address}, {"version", &m.Version}} {
		if len(rest) == 0 || len(rest)-1 < int(rest[0]) {
			return Member{}, false, fmt.Errorf("member %q: metadata ends within its %s", m.Name, field.name)
		}
		*field.to = string(rest[1 : 1+int(rest[0])])
		rest = rest[1+int(rest[0]):]
	}
	if err := m.validate(); err != nil {
		return Member{}, false, err
	}
	return m, len(rest) > 0 && rest[0]&flagLeaving != 0, nil
}
