package guard

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"

	"github.com/hashicorp/memberlist"
)

// Secret are the keys that gossip is encrypted with, as memberlist encrypts it: AES-GCM, with the label authenticated. A nil Secret
// is plain text. Safe for concurrent use, as its keys are.
type Secret struct {
	Ring  *memberlist.Keyring
	Label string
}

// What is wrong with gossip that is refused for its encryption.
var (
	ErrPlain     = errors.New("it is not encrypted, and gossip is here: give that process --gossip-keys, or the key beside its certificate")
	ErrKey       = errors.New("it is encrypted with a key that is not known here: both ends need a key of gossip in common")
	ErrEncrypted = errors.New("it is encrypted, or no gossip, and this process has no key of gossip: give it --gossip-keys, or the key beside its certificate")
)

// version is that of memberlist's encryption: without padding.
const version = 1

// headBytes stand before what is encrypted on a stream: its type and its length.
const headBytes = 5

// open decrypts what memberlist encrypted: its version, a nonce, and the message with its tag.
func (s *Secret) open(b, also []byte) ([]byte, error) {
	if len(b) == 0 || b[0] != version {
		return nil, ErrPlain
	}
	for _, key := range s.Ring.GetKeys() {
		gcm, err := newGCM(key)
		if err != nil {
			return nil, err
		}
		if len(b) < 1+gcm.NonceSize() {
			return nil, ErrPlain
		}
		nonce, rest := b[1:1+gcm.NonceSize()], b[1+gcm.NonceSize():]
		if plain, err := gcm.Open(nil, nonce, rest, also); err == nil {
			return plain, nil
		}
	}
	return nil, ErrKey
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// SealStream encrypts a message of a stream; without a Secret it is the message.
func (s *Secret) SealStream(message []byte) ([]byte, error) {
	if s == nil {
		return message, nil
	}
	gcm, err := newGCM(s.Ring.GetPrimaryKey())
	if err != nil {
		return nil, err
	}
	n := 1 + gcm.NonceSize() + len(message) + gcm.Overhead()
	b := make([]byte, headBytes, headBytes+n)
	b[0] = typeEncrypt
	binary.BigEndian.PutUint32(b[1:], uint32(n))
	also := append(b[:headBytes:headBytes], s.Label...)
	b = append(b, version)
	nonce := make([]byte, gcm.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return gcm.Seal(append(b, nonce...), nonce, message, also), nil
}

// OpenStream decrypts a message of a stream; without a Secret it is what came.
func (s *Secret) OpenStream(b []byte) ([]byte, error) {
	switch {
	case s == nil:
		return b, nil
	case len(b) < headBytes || b[0] != typeEncrypt:
		return nil, ErrPlain
	}
	return s.open(b[headBytes:], append(b[:headBytes:headBytes], s.Label...))
}
