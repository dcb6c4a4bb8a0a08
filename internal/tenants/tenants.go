// Package tenants keeps the file of a cluster's tenants: their names, the hashes of their tokens, and what each may have. A token is
// 256 random bits, so its SHA-256 is enough to know it again and tells nobody what it is.
package tenants

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"headwater.example/internal/atomicfile"
	"headwater.example/internal/certs"
	"headwater.example/internal/quota"
)

const (
	// maxFile bounds the bytes of the file.
	maxFile = 16 << 20
	// prefix begins each token, so that one that has leaked is found.
	prefix     = "hwt_"
	tokenBytes = 32
)

// Tenant is one tenant.
type Tenant struct {
	Name    string    `json:"name"`
	Admin   bool      `json:"admin,omitempty"`  // bound to no tenant: it runs the cluster
	Tokens  []string  `json:"tokens,omitempty"` // SHA-256 in hexadecimal, the newest first
	Created time.Time `json:"created"`
	// Limits are what the tenant may have of the cluster; nil is what all may that have none of their own.
	Limits *quota.Limits `json:"limits,omitempty"`
}

// Table is the tenants of a file, by name.
type Table struct {
	Tenants []Tenant `json:"tenants"`
	// Limits are those of each tenant that has none of its own, whether or not it is in the file; nil is none.
	Limits *quota.Limits `json:"limits,omitempty"`

	tokens map[string]int // index of Tenants, by hash
}

// Errors of changes.
var (
	ErrExists  = errors.New("the tenant is there already")
	ErrUnknown = errors.New("there is no such tenant")
)

// Read reads a file of tenants. If it is not there, the error is fs.ErrNotExist.
func Read(path string) (*Table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	t, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

func parse(b []byte) (*Table, error) {
	if len(b) > maxFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	t := &Table{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(t); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the tenants")
	}
	return t, t.index()
}

// index checks the tenants, and finds them by their tokens.
func (t *Table) index() error {
	t.tokens = map[string]int{}
	if t.Limits != nil {
		if err := t.Limits.Check(); err != nil {
			return err
		}
	}
	for i := range t.Tenants {
		one := &t.Tenants[i]
		if err := (certs.Identity{Role: certs.Client, Name: one.Name}).Validate(); err != nil {
			return fmt.Errorf("tenant %d: %w", i+1, err)
		}
		if t.at(one.Name) != i {
			return fmt.Errorf("tenant %s is there twice", one.Name)
		}
		if one.Limits != nil {
			if err := one.Limits.Check(); err != nil {
				return fmt.Errorf("tenant %s: %w", one.Name, err)
			}
		}
		for _, hash := range one.Tokens {
			if b, err := hex.DecodeString(hash); err != nil || len(b) != sha256.Size || strings.ToLower(hash) != hash {
				return fmt.Errorf("tenant %s: a token's hash is not a SHA-256 in lower-case hexadecimal", one.Name)
			}
			if _, twice := t.tokens[hash]; twice {
				return fmt.Errorf("tenant %s: a token is there twice", one.Name)
			}
			t.tokens[hash] = i
		}
	}
	return nil
}

func (t *Table) at(name string) int {
	return slices.IndexFunc(t.Tenants, func(o Tenant) bool { return o.Name == name })
}

// Hash is what a file has of a token.
func Hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// Find returns the tenant of a token's hash. How long it takes says nothing of a token: one has to have it to make its hash.
func (t *Table) Find(hash string) (Tenant, bool) {
	i, ok := t.tokens[hash]
	if !ok {
		return Tenant{}, false
	}
	return t.Tenants[i], true
}

// Add adds a tenant and returns its token.
func (t *Table) Add(name string, admin bool, now time.Time) (token string, err error) {
	if t.at(name) >= 0 {
		return "", fmt.Errorf("%s: %w", name, ErrExists)
	}
	token = newToken()
	t.Tenants = append(t.Tenants, Tenant{Name: name, Admin: admin, Tokens: []string{Hash(token)}, Created: now.UTC().Truncate(time.Second)})
	t.sort()
	return token, t.index()
}

// Rotate gives a tenant a new token. With keep, the newest of before is still taken; else none is.
func (t *Table) Rotate(name string, keep bool) (token string, err error) {
	i := t.at(name)
	if i < 0 {
		return "", fmt.Errorf("%s: %w", name, ErrUnknown)
	}
	token = newToken()
	before := t.Tenants[i].Tokens
	if !keep {
		before = nil
	}
	t.Tenants[i].Tokens = append([]string{Hash(token)}, before[:min(len(before), 1)]...)
	return token, t.index()
}

// Remove removes a tenant: its tokens are taken no more.
func (t *Table) Remove(name string) error {
	i := t.at(name)
	if i < 0 {
		return fmt.Errorf("%s: %w", name, ErrUnknown)
	}
	t.Tenants = slices.Delete(t.Tenants, i, i+1)
	return t.index()
}

// Limit sets what a tenant may have of the cluster; nil is what all may that have no limits of their own. A tenant that is not there is
// added without a token: it is one by its certificate.
func (t *Table) Limit(name string, l *quota.Limits, now time.Time) error {
	i := t.at(name)
	if i < 0 {
		t.Tenants = append(t.Tenants, Tenant{Name: name, Created: now.UTC().Truncate(time.Second)})
		t.sort()
		i = t.at(name)
	}
	if t.Tenants[i].Admin {
		return fmt.Errorf("%s is an admin, who is bound to no tenant and has no limits", name)
	}
	t.Tenants[i].Limits = l
	return t.index()
}

// LimitOthers sets what each tenant may have that has no limits of its own; nil is no limit.
func (t *Table) LimitOthers(l *quota.Limits) error {
	t.Limits = l
	return t.index()
}

func (t *Table) sort() {
	slices.SortFunc(t.Tenants, func(a, b Tenant) int { return strings.Compare(a.Name, b.Name) })
}

// Write writes the file, whole or not at all. Its owner alone may read it.
func (t *Table) Write(path string) (err error) {
	b, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	f, err := atomicfile.CreateSecret(path, 0)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		return errors.Join(err, f.Abort())
	}
	return f.Commit()
}

func newToken() string {
	var b [tokenBytes]byte
	_, _ = rand.Read(b[:]) // never fails
	return prefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// ReadToken reads a client's token from its file.
func ReadToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		var why *fs.PathError
		if errors.As(err, &why) {
			err = why.Err
		}
		return "", fmt.Errorf("the file of the token, %s, can't be read: %w", path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxToken+2))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	return token, Check(token)
}

// maxToken bounds the bytes of a token, whoever made it.
const maxToken = 4096

// Check refuses what can't be a token. It does not say what it is.
func Check(token string) error {
	if token == "" || len(token) > maxToken {
		return fmt.Errorf("a token has %d bytes, not 1 to %d", len(token), maxToken)
	}
	for _, c := range []byte(token) {
		if c <= ' ' || c > '~' {
			return errors.New("the token has other bytes than letters, digits and signs")
		}
	}
	return nil
}
