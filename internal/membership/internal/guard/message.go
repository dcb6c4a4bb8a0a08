package guard

import (
	"bufio"
	"bytes"
	"compress/lzw"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// MaxNodes bounds the nodes of one exchange of states: the living, and those that left a while ago.
const MaxNodes = 6144

// The bounds of messages.
const (
	maxStreamBytes = 3 << 20   // of one message on a stream, unpacked: MaxNodes with metadata as large as it is in practice
	maxPacketBytes = 256 << 10 // of one packet, unpacked
	maxUserBytes   = 64 << 10  // of what a delegate adds to an exchange of states; Headwater adds nothing
	maxDepth       = 8         // of values within values
	maxParts       = 4         // of wrappings of a packet: checksum, compression, compound
)

// The types of memberlist's messages. Their numbers are its protocol.
const (
	typePing = iota
	typeIndirectPing
	typeAck
	typeSuspect
	typeAlive
	typeDead
	typePushPull
	typeCompound
	typeUser
	typeCompress
	typeEncrypt
	typeNack
	typeChecksum
	typeError
	typeLabel = 244
)

// reader reads a message and keeps what it has read. It takes memory as bytes come, and never more than its limit.
type reader struct {
	from  *bufio.Reader
	seen  bytes.Buffer
	limit int
}

func newReader(from io.Reader, limit int) *reader {
	return &reader{from: bufio.NewReaderSize(from, 512), limit: limit}
}

// next reads n bytes. They are valid until the next call.
func (r *reader) next(n int) ([]byte, error) {
	if n < 0 || n > r.limit-r.seen.Len() {
		return nil, fmt.Errorf("the message has more than %d bytes", r.limit)
	}
	if _, err := io.CopyN(&r.seen, r.from, int64(n)); err != nil {
		return nil, fmt.Errorf("the message ends early: %w", err)
	}
	return r.seen.Bytes()[r.seen.Len()-n:], nil
}

func (r *reader) number(bytes int) (uint64, error) {
	b, err := r.next(bytes)
	if err != nil {
		return 0, err
	}
	var n uint64
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n, nil
}

// kind is what a MessagePack value begins with.
type kind int

const (
	kindOther  kind = iota // a scalar of size bytes
	kindNumber             // an integer that is not negative: size
	kindString             // size bytes
	kindArray              // size values
	kindMap                // size pairs of values
)

// head reads the beginning of a MessagePack value.
func (r *reader) head() (kind, uint64, error) {
	b, err := r.next(1)
	if err != nil {
		return 0, 0, err
	}
	c := b[0]
	switch {
	case c <= 0x7f:
		return kindNumber, uint64(c), nil
	case c <= 0x8f:
		return kindMap, uint64(c & 0x0f), nil
	case c <= 0x9f:
		return kindArray, uint64(c & 0x0f), nil
	case c <= 0xbf:
		return kindString, uint64(c & 0x1f), nil
	case c >= 0xe0, c == 0xc0, c == 0xc2, c == 0xc3: // small negative numbers, nil, false, true
		return kindOther, 0, nil
	}
	counted := func(k kind, bytes int) (kind, uint64, error) {
		n, err := r.number(bytes)
		return k, n, err
	}
	switch c {
	case 0xc4, 0xd9:
		return counted(kindString, 1)
	case 0xc5, 0xda:
		return counted(kindString, 2)
	case 0xc6, 0xdb:
		return counted(kindString, 4)
	case 0xca, 0xd2:
		return kindOther, 4, nil
	case 0xcb, 0xd3:
		return kindOther, 8, nil
	case 0xcc:
		return counted(kindNumber, 1)
	case 0xcd:
		return counted(kindNumber, 2)
	case 0xce:
		return counted(kindNumber, 4)
	case 0xcf:
		return counted(kindNumber, 8)
	case 0xd0:
		return kindOther, 1, nil
	case 0xd1:
		return kindOther, 2, nil
	case 0xdc:
		return counted(kindArray, 2)
	case 0xdd:
		return counted(kindArray, 4)
	case 0xde:
		return counted(kindMap, 2)
	case 0xdf:
		return counted(kindMap, 4)
	}
	return 0, 0, fmt.Errorf("a value begins with byte %#x", c)
}

// skip reads one value with all that is in it.
func (r *reader) skip(depth int) error {
	k, n, err := r.head()
	if err != nil {
		return err
	}
	if depth == 0 && (k == kindArray || k == kindMap) {
		return fmt.Errorf("values are nested deeper than %d", maxDepth)
	}
	switch k {
	case kindNumber:
		return nil
	case kindMap:
		n *= 2 // at most 2^33
		fallthrough
	case kindArray:
		for range n { // each takes a byte at least, and bytes are limited
			if err := r.skip(depth - 1); err != nil {
				return err
			}
		}
		return nil
	}
	if n > uint64(r.limit) {
		return fmt.Errorf("the message has more than %d bytes", r.limit)
	}
	_, err = r.next(int(n))
	return err
}

// fields reads a map, and calls take with the name of each value, to read it.
func (r *reader) fields(take func(name string) error) error {
	k, n, err := r.head()
	if err != nil {
		return err
	}
	if k != kindMap {
		return errors.New("a message is no map")
	}
	for range n {
		k, size, err := r.head()
		if err != nil {
			return err
		}
		if k != kindString || size > 64 {
			return errors.New("a field has no name")
		}
		name, err := r.next(int(size))
		if err != nil {
			return err
		}
		if err := take(string(name)); err != nil {
			return err
		}
	}
	return nil
}

// count reads a number of at most limit.
func (r *reader) count(what string, limit uint64) (uint64, error) {
	k, n, err := r.head()
	if err != nil {
		return 0, err
	}
	if k != kindNumber || n > limit {
		return 0, fmt.Errorf("%s are not 0 to %d", what, limit)
	}
	return n, nil
}

// pushPull reads an exchange of states behind its type.
func (r *reader) pushPull() error {
	var nodes, user uint64
	err := r.fields(func(name string) error {
		switch name {
		case "Nodes":
			n, err := r.count("the nodes of a state", MaxNodes)
			nodes = max(nodes, n) // of two fields of one name, one counts
			return err
		case "UserStateLen":
			n, err := r.count("the user bytes of a state", maxUserBytes)
			user = max(user, n)
			return err
		}
		return r.skip(maxDepth)
	})
	if err != nil {
		return err
	}
	for range nodes {
		if err := r.fields(func(string) error { return r.skip(maxDepth) }); err != nil {
			return err
		}
	}
	_, err = r.next(int(user))
	return err
}

// stream reads one message of a stream, with its label, and returns it as memberlist is to see it: encrypted if there is a secret.
func stream(from io.Reader, secret *Secret) ([]byte, error) {
	r := newReader(from, maxStreamBytes)
	b, err := r.next(1)
	if err != nil {
		return nil, err
	}
	if b[0] == typeLabel {
		size, err := r.number(1)
		if err != nil {
			return nil, err
		}
		if _, err := r.next(int(size)); err != nil {
			return nil, err
		}
		if b, err = r.next(1); err != nil {
			return nil, err
		}
	}
	before := r.seen.Len() - 1
	switch {
	case secret != nil:
		return r.encrypted(b[0], secret)
	case b[0] == typeEncrypt:
		return nil, ErrEncrypted
	case b[0] == typeCompress:
		var plain []byte
		if plain, err = r.decompress(maxStreamBytes); err == nil {
			inner := newReader(bytes.NewReader(plain), maxStreamBytes)
			if b, err = inner.next(1); err == nil {
				err = inner.body(b[0])
			}
			// What lies behind the message was not looked at, so it is not handed on.
			return append(r.seen.Bytes()[:before:before], inner.seen.Bytes()...), err
		}
	default:
		err = r.body(b[0])
	}
	return r.seen.Bytes(), err
}

// encrypted reads an encrypted message behind its type, and looks at what is in it.
func (r *reader) encrypted(kind byte, secret *Secret) ([]byte, error) {
	if kind != typeEncrypt {
		return nil, ErrPlain
	}
	size, err := r.number(headBytes - 1)
	if err != nil {
		return nil, err
	}
	before := r.seen.Len() - headBytes
	if _, err := r.next(int(size)); err != nil {
		return nil, err
	}
	plain, err := secret.OpenStream(r.seen.Bytes()[before:])
	if err == nil {
		_, err = stream(bytes.NewReader(plain), nil)
	}
	return r.seen.Bytes(), err
}

// body reads a message of a stream behind its type.
func (r *reader) body(kind byte) error {
	switch kind {
	case typePushPull:
		return r.pushPull()
	case typePing, typeAck, typeError:
		return r.skip(maxDepth)
	}
	return fmt.Errorf("a stream has a message of type %d", kind)
}

// decompress reads a compressed message behind its type and unpacks it.
func (r *reader) decompress(limit int) ([]byte, error) {
	var packed []byte
	err := r.fields(func(name string) error {
		if name != "Buf" {
			return r.skip(maxDepth)
		}
		k, n, err := r.head()
		if err != nil {
			return err
		}
		if k != kindString || n > uint64(r.limit) {
			return errors.New("a compressed message has no bytes")
		}
		b, err := r.next(int(n))
		packed = bytes.Clone(b)
		return err
	})
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(io.LimitReader(lzw.NewReader(bytes.NewReader(packed), lzw.LSB, 8), int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("a compressed message can't be unpacked: %w", err)
	}
	if len(plain) > limit {
		return nil, fmt.Errorf("the message has more than %d bytes", limit)
	}
	return plain, nil
}

// packet says what is wrong with a packet. The label is not looked at, memberlist compares it.
func packet(b []byte, secret *Secret) error {
	if len(b) >= 2 && b[0] == typeLabel {
		if len(b) < 2+int(b[1]) {
			return errors.New("the packet ends early")
		}
		b = b[2+int(b[1]):]
	}
	if secret != nil {
		plain, err := secret.open(b, []byte(secret.Label))
		if err != nil {
			return err
		}
		b = plain
	}
	return part(b, maxParts)
}

// part says what is wrong with a message of a packet, which may hold others.
func part(b []byte, wrappings int) error {
	if len(b) == 0 {
		return errors.New("the packet ends early")
	}
	if wrappings == 0 {
		return fmt.Errorf("messages are packed more than %d times", maxParts)
	}
	r := newReader(bytes.NewReader(b[1:]), maxPacketBytes)
	switch b[0] {
	case typePing, typeIndirectPing, typeAck, typeSuspect, typeAlive, typeDead, typeNack:
		return r.fields(func(string) error { return r.skip(maxDepth) })
	case typeChecksum:
		if len(b) < 5 {
			return errors.New("the packet ends early")
		}
		return part(b[5:], wrappings-1)
	case typeCompress:
		plain, err := r.decompress(maxPacketBytes)
		if err != nil {
			return err
		}
		return part(plain, wrappings-1)
	case typeCompound:
		if len(b) < 2 || len(b) < 2+2*int(b[1]) {
			return errors.New("the packet ends early")
		}
		sizes, rest := b[2:2+2*int(b[1])], b[2+2*int(b[1]):]
		for ; len(sizes) > 0; sizes = sizes[2:] {
			n := int(binary.BigEndian.Uint16(sizes))
			if n > len(rest) {
				return errors.New("the packet ends early")
			}
			if err := part(rest[:n], wrappings-1); err != nil {
				return err
			}
			rest = rest[n:]
		}
		return nil
	}
	return fmt.Errorf("a packet has a message of type %d", b[0])
}
