package certs

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The files of a process's folder. The first three are named as in a Secret of Kubernetes' type tls.
const (
	TrustFile  = "ca.crt"     // the authorities that are trusted
	CertFile   = "tls.crt"    // the own certificate, and what is between it and an authority
	KeyFile    = "tls.key"    // its private key
	GossipFile = "gossip.key" // keys of gossip, one a line; the first encrypts. Clients have none
)

// maxFile bounds the bytes of a file that is read.
const maxFile = 1 << 20

// Own is what a process has of certificates.
type Own struct {
	Trust  *Trust
	Cert   tls.Certificate // with its Leaf
	Holder Holder          // who it says that the process is
}

// Read reads the folder of a process.
func Read(folder string) (*Own, error) {
	own := &Own{}
	var err error
	if own.Trust, err = readTrust(filepath.Join(folder, TrustFile)); err != nil {
		return nil, err
	}
	certPath, keyPath := filepath.Join(folder, CertFile), filepath.Join(folder, KeyFile)
	cert, err := readFile(certPath)
	if err != nil {
		return nil, err
	}
	key, err := readFile(keyPath)
	if err != nil {
		return nil, err
	}
	if own.Cert, err = tls.X509KeyPair(cert, key); err != nil {
		return nil, fmt.Errorf("%s and %s: %w", certPath, keyPath, plainly(err))
	}
	if own.Holder, err = holderOf(own.Cert.Leaf); err != nil {
		return nil, fmt.Errorf("%s: %w; `coord certs issue` makes such certificates", certPath, err)
	}
	return own, nil
}

// ReadTrust reads the folder of a client that has a token in place of a certificate, of which there may be none: its authorities.
func ReadTrust(folder string) (*Own, error) {
	if _, err := os.Lstat(filepath.Join(folder, CertFile)); !errors.Is(err, fs.ErrNotExist) {
		return Read(folder)
	}
	trust, err := readTrust(filepath.Join(folder, TrustFile))
	if err != nil {
		return nil, err
	}
	return &Own{Trust: trust}, nil
}

// Expires is when the own certificate expires; the zero time without one.
func (o *Own) Expires() time.Time {
	if o.Cert.Leaf == nil {
		return time.Time{}
	}
	return o.Cert.Leaf.NotAfter
}

// Check says what is wrong with the own certificate: peers would refuse it.
func (o *Own) Check(now time.Time) error {
	chain, err := o.chain()
	if err == nil {
		_, err = o.Trust.Verify(chain, now)
	}
	return err
}

func (o *Own) chain() ([]*x509.Certificate, error) {
	chain := make([]*x509.Certificate, len(o.Cert.Certificate))
	for i, der := range o.Cert.Certificate {
		var err error
		if chain[i], err = x509.ParseCertificate(der); err != nil {
			return nil, err
		}
	}
	return chain, nil
}

// plainly says in other words that key and certificate do not belong together.
func plainly(err error) error {
	if strings.Contains(err.Error(), "private key does not match public key") {
		return errors.New("the key does not belong to the certificate")
	}
	return errors.New(strings.TrimPrefix(err.Error(), "tls: "))
}

func readTrust(path string) (*Trust, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	t := &Trust{pool: x509.NewCertPool()}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != certificateBlock {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if !c.IsCA {
			return nil, fmt.Errorf("%s: the certificate of %q is not that of an authority", path, c.Subject.CommonName)
		}
		t.pool.AddCert(c)
		t.all = append(t.all, c)
	}
	if len(t.all) == 0 {
		return nil, fmt.Errorf("%s: there is no certificate in it", path)
	}
	t.revoked, err = readRevoked(filepath.Join(filepath.Dir(path), RevokedFile))
	return t, err
}

// readFile reads a file of a folder of certificates.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not there: `coord certs issue` makes it", path)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return b, err
}

// gossipKeyBytes is the length of a key of gossip: AES-256.
const gossipKeyBytes = 32

// ReadGossipKeys reads a file of keys, one a line in base64. The first one encrypts, all decrypt. Lines that begin with # are
// not read.
func ReadGossipKeys(path string) ([][]byte, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	for n, line := range strings.Split(string(b), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(key) != gossipKeyBytes {
			return nil, fmt.Errorf("%s:%d is not the base64 of %d bytes", path, n+1, gossipKeyBytes) // and not what it is
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s: there is no key in it", path)
	}
	return keys, nil
}
