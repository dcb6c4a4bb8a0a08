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
//
// What follows is ignored, so that a later program can add to it; another format is refused by name. The name is not in
// it: memberlist carries that.
const (
	metadataFormat = 1
	metadataFixed  = 1 + 1 + 16 + 4
	// MetadataLimit is the most that memberlist carries, in bytes.
	MetadataLimit = 512
)

// encodeMetadata returns the metadata of a member, which it validates.
func encodeMetadata(m Member) ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	size := metadataFixed + 1 + len(m.Address) + 1 + len(m.Version)
	if len(m.Address) > 255 || size > MetadataLimit {
		return nil, fmt.Errorf("member %s: its metadata has %d bytes with an address of %d, more than the %d (and 255) that gossip carries", m.Name, size, len(m.Address), MetadataLimit)
	}
	b := make([]byte, 0, size)
	b = append(b, metadataFormat, byte(m.Role))
	b = append(b, m.Boot[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(m.Weight))
	for _, s := range []string{m.Address, m.Version} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	return b, nil
}

// decodeMetadata returns the member of this name that the metadata tells of. It keeps nothing of b.
func decodeMetadata(name string, b []byte) (Member, error) {
	if len(b) > MetadataLimit {
		return Member{}, fmt.Errorf("member %q: metadata of %d bytes, more than %d", name, len(b), MetadataLimit)
	}
	if len(b) == 0 {
		return Member{}, fmt.Errorf("member %q: no metadata", name)
	}
	if b[0] != metadataFormat {
		return Member{}, fmt.Errorf("member %q: metadata of format %d, this program reads %d", name, b[0], metadataFormat)
	}
	if len(b) < metadataFixed {
		return Member{}, fmt.Errorf("member %q: metadata ends after %d bytes, before its fixed %d", name, len(b), metadataFixed)
	}
	m := Member{Name: name, Role: Role(b[1]), Boot: [16]byte(b[2:18])}
	weight := binary.LittleEndian.Uint32(b[18:])
	if weight > maxWeight {
		return Member{}, fmt.Errorf("member %q: weight %d is more than %d", name, weight, maxWeight)
	}
	m.Weight = int(weight)
	rest := b[metadataFixed:]
	for _, field := range []struct {
		name string
		to   *string
	}{{"address", &m.Address}, {"version", &m.Version}} {
		if len(rest) == 0 || len(rest)-1 < int(rest[0]) {
			return Member{}, fmt.Errorf("member %q: metadata ends within its %s", name, field.name)
		}
		*field.to = string(rest[1 : 1+int(rest[0])])
		rest = rest[1+int(rest[0]):]
	}
	if err := m.validate(); err != nil {
		return Member{}, err
	}
	return m, nil
}
