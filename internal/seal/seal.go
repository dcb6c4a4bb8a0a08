// Package seal encrypts what is written to a file or a stream, for whoever has a key, and opens it again: the format of age, version 1,
// in chunks that are each authenticated, so that nothing is read that was changed, and an early end is seen.
package seal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"

	"headwater.example/internal/snapshot"
)

const (
	// maxKeys bounds the bytes of a file of keys.
	maxKeys = 1 << 20
	// intro begins each sealed stream.
	intro = "age-encryption.org/v1\n"
	// secretPrefix begins a secret key of either kind.
	secretPrefix = "AGE-SECRET-KEY-"
)

// Keys are those of a file: secret keys, which open and seal, and public ones, which only seal.
type Keys struct {
	open []age.Identity
	seal []age.Recipient
}

// NewKey makes a secret key, and says its public one.
func NewKey() (secret, public string, err error) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		return "", "", err
	}
	return key.String(), key.Recipient().String(), nil
}

// ReadKeys reads a file of keys, one a line. Empty lines, and those that begin with #, are left out. Errors do not say what a key is.
func ReadKeys(r io.Reader) (*Keys, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxKeys+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxKeys {
		return nil, fmt.Errorf("it has more than %d bytes", maxKeys)
	}
	k, n := &Keys{}, 0
	for line := range strings.Lines(string(b)) {
		n++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		if !k.add(line) {
			return nil, fmt.Errorf("line %d is no key of age: `coord sessions key` makes one", n)
		}
	}
	if len(k.seal) == 0 {
		return nil, errors.New("there is no key in it: `coord sessions key` makes one")
	}
	return k, nil
}

// add adds a key, and reports whether it is one.
func (k *Keys) add(line string) bool {
	if !strings.HasPrefix(line, secretPrefix) {
		public, err := age.ParseRecipients(strings.NewReader(line))
		k.seal = append(k.seal, public...)
		return err == nil
	}
	secret, err := age.ParseIdentities(strings.NewReader(line))
	if err != nil {
		return false
	}
	for _, one := range secret {
		k.open = append(k.open, one)
		switch one := one.(type) {
		case *age.X25519Identity:
			k.seal = append(k.seal, one.Recipient())
		case *age.HybridIdentity:
			k.seal = append(k.seal, one.Recipient())
		default:
			return false
		}
	}
	return true
}

// Seal encrypts what is written to the result for each of the keys. Close ends it; without that, nobody opens it to its end.
func (k *Keys) Seal(w io.Writer) (io.WriteCloser, error) {
	sealed, err := age.Encrypt(w, k.seal...)
	if err != nil {
		return nil, fmt.Errorf("encrypt it: %w", err)
	}
	return sealed, nil
}

// Open returns what was sealed. Nil keys open what is not sealed. Errors about what is read, here and of the result, are of type
// *snapshot.Error; the result gives no byte that was changed, and io.EOF only at the end of the whole.
func (k *Keys) Open(r io.Reader) (io.Reader, error) {
	below := &watched{r: r}
	in := bufio.NewReaderSize(below, 64<<10)
	begin, err := in.Peek(len(intro))
	sealed := bytes.Equal(begin, []byte(intro))
	switch {
	case k == nil && sealed:
		return nil, refuse(snapshot.NotASnapshot, "the snapshot is encrypted: name the file of its secret key by --key-file")
	case k == nil:
		return in, nil
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	case !sealed:
		return nil, refuse(snapshot.NotASnapshot, "it is not encrypted, and --key-file says that it is: leave that out if you trust who wrote it")
	case len(k.open) == 0:
		return nil, errors.New("the file of --key-file has public keys alone, which open nothing: name that of the secret key")
	}
	opened, err := age.Decrypt(in, k.open...)
	var none *age.NoIdentityMatchError
	switch {
	case below.failed != nil:
		return nil, below.failed
	case errors.As(err, &none):
		return nil, refuse(snapshot.Invalid, "the snapshot is encrypted for other keys than those of --key-file")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, early()
	case err != nil:
		return nil, damaged()
	}
	return &opening{opened, below}, nil
}

// watched keeps what goes wrong below: that is not the snapshot's fault.
type watched struct {
	r      io.Reader
	failed error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		w.failed = err
	}
	return n, err
}

// opening says in own words what is wrong with what is read.
type opening struct {
	r     io.Reader
	below *watched
}

func (o *opening) Read(p []byte) (int, error) {
	n, err := o.r.Read(p)
	switch {
	case err == nil, err == io.EOF: // as age says it itself: of the whole
	case o.below.failed != nil:
		err = o.below.failed
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = early()
	default:
		err = damaged()
	}
	return n, err
}

func early() error {
	return refuse(snapshot.Truncated, "the snapshot ends early, it was not written or copied to its end: copy it again, or take another")
}

func damaged() error {
	return refuse(snapshot.Damaged, "the snapshot is damaged, or was changed: its seal is not that of its bytes; copy it again, or take another")
}

func refuse(reason snapshot.Reason, rule string) error {
	return &snapshot.Error{Reason: reason, Rule: rule}
}
