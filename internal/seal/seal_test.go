package seal

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"filippo.io/age"

	"headwater.example/internal/snapshot"
)

// keys is a new secret key in a file, and its public one.
func keys(t testing.TB) (secret, public *Keys, text string) {
	t.Helper()
	s, p, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if secret, err = ReadKeys(strings.NewReader("# a key\n\n  " + s + "\n")); err != nil {
		t.Fatal(err)
	}
	if public, err = ReadKeys(strings.NewReader(p)); err != nil {
		t.Fatal(err)
	}
	return secret, public, s
}

func sealed(t testing.TB, k *Keys, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := k.Seal(&out)
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func opened(k *Keys, b []byte) ([]byte, error) {
	r, err := k.Open(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// contents is bytes of several chunks.
func contents(n int) []byte {
	b, r := make([]byte, n), rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b) // never fails
	return b
}

// TestWhoHasTheKeyOpensIt: whoever has the secret key, and age itself; of several keys, each.
func TestWhoHasTheKeyOpensIt(t *testing.T) {
	t.Parallel()
	ann, annPublic, text := keys(t)
	bob, bobPublic, _ := keys(t)
	both := &Keys{seal: append(annPublic.seal, bobPublic.seal...)}
	for _, n := range []int{0, 1, 64 << 10, 200_000} {
		content := contents(n)
		for _, by := range []*Keys{ann, annPublic, both} {
			b := sealed(t, by, content)
			if got, err := opened(ann, b); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes: %v", n, err)
			}
			if n > 16 && bytes.Contains(b, content[:16]) {
				t.Error("it can be read without a key")
			}
		}
		b := sealed(t, both, content)
		if got, err := opened(bob, b); err != nil || !bytes.Equal(got, content) {
			t.Errorf("another key: %v", err)
		}
		identity, err := age.ParseX25519Identity(text)
		if err != nil {
			t.Fatal(err)
		}
		r, err := age.Decrypt(bytes.NewReader(b), identity)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
			t.Errorf("age itself: %v", err)
		}
	}
}

// TestWhatIsNotWholeIsNotOpened cuts a sealed stream, changes and lengthens it, and gives it to who has no key.
func TestWhatIsNotWholeIsNotOpened(t *testing.T) {
	t.Parallel()
	ann, annPublic, _ := keys(t)
	bob, _, _ := keys(t)
	content := contents(150_000)
	b := sealed(t, annPublic, content)
	refused := func(what string, k *Keys, b []byte, reasons ...snapshot.Reason) {
		t.Helper()
		got, err := opened(k, b)
		var bad *snapshot.Error
		if !errors.As(err, &bad) {
			t.Fatalf("%s: %v", what, err)
		}
		for _, r := range reasons {
			if bad.Reason == r {
				if !bytes.HasPrefix(content, got) {
					t.Fatalf("%s: other bytes are read than were written", what)
				}
				return
			}
		}
		t.Errorf("%s is %v: %v", what, bad.Reason, err)
	}
	for _, n := range []int{len(intro), 60, 200, 1000, 64 << 10, len(b) / 2, len(b) - 1} {
		refused("one that is cut", ann, b[:n], snapshot.Truncated, snapshot.Damaged)
	}
	// At the end of a chunk there is nothing to see but that it was not the last one.
	header := len(b) - 150_000 - 3*16
	for chunk := 1; chunk <= 2; chunk++ {
		refused("one that is cut between chunks", ann, b[:header+chunk*(64<<10+16)], snapshot.Truncated, snapshot.Damaged)
	}
	for i := len(intro); i < len(b); i += 1 + i/50 {
		changed := bytes.Clone(b)
		changed[i] ^= 4
		refused("one that is changed", ann, changed, snapshot.Damaged, snapshot.Invalid, snapshot.Truncated)
	}
	refused("one that goes on", ann, append(bytes.Clone(b), 1), snapshot.Damaged)
	refused("one for another", bob, b, snapshot.Invalid)
	refused("one without a key", nil, b, snapshot.NotASnapshot)
	refused("one that is not sealed", ann, content, snapshot.NotASnapshot)
	refused("nothing", ann, nil, snapshot.NotASnapshot)
	if _, err := opened(annPublic, b); err == nil || !strings.Contains(err.Error(), "public keys alone") {
		t.Errorf("a public key: %v", err)
	}
	if got, err := opened(nil, content); err != nil || !bytes.Equal(got, content) {
		t.Errorf("what is not sealed, without keys: %v", err)
	}
}

// TestATroubleBelowIsSaidAsItIs: a disk that fails is no damage.
func TestATroubleBelowIsSaidAsItIs(t *testing.T) {
	t.Parallel()
	ann, annPublic, _ := keys(t)
	b := sealed(t, annPublic, contents(150_000))
	failed := errors.New("the disk has failed")
	for _, n := range []int{5, 100, 1000, 100_000} {
		r, err := ann.Open(io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(failed)))
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if !errors.Is(err, failed) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

func TestFilesOfKeysAreReadOrRefused(t *testing.T) {
	t.Parallel()
	secret, public, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for _, good := range []string{secret, public, public + "\n" + secret, hybrid.String(), hybrid.Recipient().String() + "\r\n"} {
		k, err := ReadKeys(strings.NewReader(good))
		if err != nil {
			t.Fatal(err)
		}
		sealed(t, &Keys{seal: k.seal[:1]}, []byte("x"))
	}
	for what, bad := range map[string]string{
		"an empty file": "", "a comment": "# nothing\n", "other words": "hello\n", "half a key": secret[:30], "a key of a token": "hwt_x",
		"too much": strings.Repeat("#\n", maxKeys/2+1),
	} {
		if _, err := ReadKeys(strings.NewReader(bad)); err == nil || strings.Contains(err.Error(), secret[20:30]) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// FuzzOpen opens any bytes: what is opened was sealed, and nothing panics.
func FuzzOpen(f *testing.F) {
	ann, _, _ := keys(f)
	f.Add(sealed(f, ann, []byte("hello")))
	f.Add([]byte(intro + "-> X25519 a\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := opened(ann, b)
		if err == nil && string(got) != "hello" {
			t.Errorf("%q is opened", got)
		}
	})
}
