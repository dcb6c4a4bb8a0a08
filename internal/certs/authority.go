package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"headwater.example/internal/atomicfile"
)

// The files of an authority's folder, beside ca.crt and the folders of those that it issued certificates to. All that it does is
// a function of these, so what is cut off can be done again.
const (
	currentFile = "authority.pem" // certificate, private key and key of gossip in use; to be kept secret
	nextFile    = "next.pem"      // those that are to come: trusted already, not used yet
	oldFile     = "old.pem"       // certificate and key of gossip that were before: trusted still
)

// Blocks of these files.
const (
	certificateBlock = "CERTIFICATE"
	keyBlock         = "PRIVATE KEY"
	gossipBlock      = "HEADWATER GOSSIP KEY"
)

// Lifetimes of what an authority makes, unless it is told others.
const (
	AuthorityLife   = 10 * 365 * 24 * time.Hour
	CertificateLife = 365 * 24 * time.Hour
	// Skew is how far the clocks of a cluster may be apart.
	Skew = 5 * time.Minute
)

// Authority is a cluster's certificate authority, kept in a folder. One process uses it at a time.
type Authority struct {
	folder             string
	current, next, old *signer // next and old may be nil
	now                func() time.Time
}

// signer is a certificate of an authority with its key, and the key of gossip that goes with it.
type signer struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey // nil of an old one
	gossip []byte
}

// Init makes a new authority in a folder, which has none.
func Init(folder string, life time.Duration, now func() time.Time) (*Authority, error) {
	path := filepath.Join(folder, currentFile)
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("%s is there: this folder has an authority already", path)
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	s, err := newSigner(life, now())
	if err != nil {
		return nil, err
	}
	a := &Authority{folder: folder, current: s, now: now}
	if err := a.write(path, s.encode(), true); err != nil {
		return nil, err
	}
	return a, a.writeTrust(folder)
}

// OpenAuthority reads the authority of a folder.
func OpenAuthority(folder string, now func() time.Time) (*Authority, error) {
	a := &Authority{folder: folder, now: now}
	for file, to := range map[string]**signer{currentFile: &a.current, nextFile: &a.next, oldFile: &a.old} {
		s, err := readSigner(filepath.Join(folder, file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		*to = s
	}
	if a.next != nil {
		a.old = nil // of a switch that was cut off before it came about
	}
	if a.current == nil {
		return nil, fmt.Errorf("%s is not there: `coord certs init` makes an authority", filepath.Join(folder, currentFile))
	}
	return a, nil
}

func newSigner(life time.Duration, now time.Time) (*signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: fmt.Sprintf("Headwater authority %s %x", now.UTC().Format("2006-01-02"), serial.Bytes()[:3])},
		NotBefore: now.Add(-Skew), NotAfter: now.Add(life),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	gossip := make([]byte, gossipKeyBytes)
	_, err = rand.Read(gossip)
	return &signer{cert, key, gossip}, err
}

func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	_, err := rand.Read(b)
	b[0] = b[0]&0x7f | 0x40 // positive, and of full length
	return new(big.Int).SetBytes(b), err
}

// encode is what a file has of a signer, without the key if it has none.
func (s *signer) encode() []byte {
	var b bytes.Buffer
	// Writing to a buffer never fails.
	_ = pem.Encode(&b, &pem.Block{Type: certificateBlock, Bytes: s.cert.Raw})
	if s.key != nil {
		der, err := x509.MarshalPKCS8PrivateKey(s.key)
		if err != nil {
			panic(err) // it is of a curve that is known
		}
		_ = pem.Encode(&b, &pem.Block{Type: keyBlock, Bytes: der})
	}
	_ = pem.Encode(&b, &pem.Block{Type: gossipBlock, Bytes: s.gossip})
	return b.Bytes()
}

// readSigner reads a file of encode; nil and fs.ErrNotExist if there is none.
func readSigner(path string) (*signer, error) {
	if _, err := os.Lstat(path); err != nil {
		return nil, err
	}
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	s := &signer{}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case certificateBlock:
			s.cert, err = x509.ParseCertificate(block.Bytes)
		case keyBlock:
			var key any
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
			s.key, _ = key.(*ecdsa.PrivateKey)
		case gossipBlock:
			s.gossip = block.Bytes
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if s.cert == nil || len(s.gossip) != gossipKeyBytes || s.key == nil && filepath.Base(path) != oldFile {
		return nil, fmt.Errorf("%s is damaged: it lacks a certificate, a key or a key of gossip", path)
	}
	return s, nil
}

// write puts a file where it belongs, whole or not at all.
func (a *Authority) write(path string, content []byte, secret bool) (err error) {
	create := atomicfile.Create
	if secret {
		create = atomicfile.CreateSecret
	}
	f, err := create(path, 0)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return errors.Join(err, f.Abort())
	}
	return f.Commit()
}

// Life is how long the authority's own certificate holds.
func (a *Authority) Life() (from, until time.Time) {
	return a.current.cert.NotBefore, a.current.cert.NotAfter
}

// Name is what certificates name as their issuer.
func (a *Authority) Name() string { return a.current.cert.Subject.CommonName }

// writeTrust writes the certificates of all authorities that are to be trusted.
func (a *Authority) writeTrust(folder string) error {
	var b bytes.Buffer
	for _, s := range a.signers() {
		_ = pem.Encode(&b, &pem.Block{Type: certificateBlock, Bytes: s.cert.Raw}) // never fails
	}
	if err := a.writeRevoked(folder); err != nil {
		return err
	}
	return a.write(filepath.Join(folder, TrustFile), b.Bytes(), false)
}

func (a *Authority) writeGossip(folder string) error {
	b := []byte("# Keys of gossip. The first encrypts, all decrypt.\n")
	for _, s := range a.signers() {
		b = append(base64.StdEncoding.AppendEncode(b, s.gossip), '\n')
	}
	return a.write(filepath.Join(folder, GossipFile), b, true)
}

// FolderOf is the folder within the authority's that a certificate is issued into unless another is named.
func (a *Authority) FolderOf(id Identity) string {
	return filepath.Join(a.folder, string(id.Role)+"-"+strings.ReplaceAll(id.Name, "*", "any"))
}

// Issue makes a certificate and its key for an identity, and fills the folder of its process. What is there is replaced. It
// returns when the certificate expires, which is not after its authority.
func (a *Authority) Issue(id Identity, folder string, life time.Duration) (expires time.Time, err error) {
	if err := id.Validate(); err != nil {
		return time.Time{}, err
	}
	return a.issue(Holder{id.Role, []string{id.Name}}, folder, life)
}

func (a *Authority) issue(h Holder, folder string, life time.Duration) (expires time.Time, err error) {
	now, by := a.now(), a.current
	if expires = now.Add(life); expires.After(by.cert.NotAfter) {
		expires = by.cert.NotAfter
	}
	if !expires.After(now) {
		return expires, fmt.Errorf("the authority %q has expired: `coord certs rotate` makes another", a.Name())
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return expires, err
	}
	serial, err := newSerial()
	if err != nil {
		return expires, err
	}
	from, err := a.begins(h)
	if err != nil {
		return expires, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: h.String()}, NotBefore: from, NotAfter: expires,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	if len(template.Subject.CommonName) > maxCommonName {
		template.Subject.CommonName = template.Subject.CommonName[:maxCommonName]
	}
	if h.Role.serves() {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		template.DNSNames = []string{h.Role.Host()}
	}
	for _, name := range h.Names {
		template.URIs = append(template.URIs, Identity{h.Role, name}.uri())
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key)
	if err != nil {
		return expires, err
	}
	return expires, a.fill(folder, h.Role, der, key)
}

// maxCommonName is X.509's bound of a common name.
const maxCommonName = 64

// fill writes the folder of a process. The key comes first: with the certificate of before it is refused, and what is read then
// stays as it was.
func (a *Authority) fill(folder string, role Role, cert []byte, key *ecdsa.PrivateKey) error {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := a.write(filepath.Join(folder, KeyFile), pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), true); err != nil {
		return err
	}
	if err := a.write(filepath.Join(folder, CertFile), pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: cert}), false); err != nil {
		return err
	}
	return a.spread(folder, role)
}

// spread gives a folder the trust of now, and the keys of gossip if its process gossips.
func (a *Authority) spread(folder string, role Role) error {
	if role == Coordinator || role == Worker {
		if err := a.writeGossip(folder); err != nil {
			return err
		}
	}
	return a.writeTrust(folder)
}

// Issued is a folder of the authority's with a certificate that it issued.
type Issued struct {
	Folder  string
	Holder  Holder
	From    time.Time
	Expires time.Time
}

// List returns what was issued into folders of the authority's own, sorted by folder.
func (a *Authority) List() ([]Issued, error) {
	entries, err := os.ReadDir(a.folder)
	if err != nil {
		return nil, err
	}
	var all []Issued
	for _, e := range entries {
		folder := filepath.Join(a.folder, e.Name())
		if _, err := os.Stat(filepath.Join(folder, CertFile)); !e.IsDir() || err != nil {
			continue
		}
		own, err := Read(folder)
		if err != nil {
			return nil, err
		}
		leaf := own.Cert.Leaf
		all = append(all, Issued{folder, own.Holder, leaf.NotBefore, leaf.NotAfter})
	}
	return all, nil
}

// Step is a step of a rotation. Each must have come to every process before the next one is taken.
type Step int

// The steps.
const (
	Introduced Step = iota // a new authority is trusted beside the old one, and a new key of gossip decrypts
	Switched               // the new ones are used; the old ones are trusted still
	Finished               // the old ones are trusted no more
)

// Rotate takes the next step of replacing the authority and the key of gossip, and brings the folders that were issued within
// the authority's up to date: certificates are issued anew as the new authority comes into use. While a folder is behind, for a
// step that was cut off, that step is done again and no other is taken.
func (a *Authority) Rotate(life time.Duration) (Step, error) {
	step := a.step()
	behind, err := a.behind()
	if err != nil {
		return step, err
	}
	if behind {
		return step, a.Again(step == Switched)
	}
	path := func(file string) string { return filepath.Join(a.folder, file) }
	switch step {
	case Introduced:
		old := &signer{cert: a.current.cert, gossip: a.current.gossip}
		if err := a.write(path(oldFile), old.encode(), true); err != nil {
			return step, err
		}
		if err := os.Rename(path(nextFile), path(currentFile)); err != nil {
			return step, err
		}
		a.current, a.next, a.old = a.next, nil, old
	case Switched:
		if err := os.Remove(path(oldFile)); err != nil {
			return step, err
		}
		a.old = nil
	case Finished:
		s, err := newSigner(life, a.now())
		if err != nil {
			return step, err
		}
		if err := a.write(path(nextFile), s.encode(), true); err != nil {
			return step, err
		}
		a.next = s
	}
	step = a.step()
	return step, a.Again(step == Switched)
}

// step is the step that was taken last.
func (a *Authority) step() Step {
	switch {
	case a.next != nil:
		return Introduced
	case a.old != nil:
		return Switched
	}
	return Finished
}

// behind tells whether a folder was not brought up to date by the last step.
func (a *Authority) behind() (bool, error) {
	all, err := a.List()
	if err != nil {
		return false, err
	}
	for _, one := range all {
		own, err := Read(one.Folder)
		if err != nil {
			return false, err
		}
		if !slices.EqualFunc(own.Trust.all, a.signers(), func(c *x509.Certificate, s *signer) bool { return c.Equal(s.cert) }) ||
			a.step() == Switched && own.Cert.Leaf.CheckSignatureFrom(a.current.cert) != nil {
			return true, nil
		}
	}
	return false, nil
}

// signers are those whose certificates are trusted, and whose keys decrypt gossip, the current one first.
func (a *Authority) signers() []*signer {
	return slices.DeleteFunc([]*signer{a.current, a.next, a.old}, func(s *signer) bool { return s == nil })
}

// Again brings all folders that were issued within the authority's up to date, with new certificates if issue says so. These
// hold as long as those that they replace did from their beginning.
func (a *Authority) Again(issue bool) error {
	all, err := a.List()
	if err != nil {
		return err
	}
	for _, one := range all {
		if issue {
			_, err = a.issue(one.Holder, one.Folder, one.Expires.Sub(one.From)-Skew)
		} else {
			err = a.spread(one.Folder, one.Holder.Role)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", one.Folder, err)
		}
	}
	return a.writeTrust(a.folder)
}
