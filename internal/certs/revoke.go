package certs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// RevokedFile has whose certificates are taken no more: a line for each identity, with the time up to which those that were issued to
// it are revoked. It may be missing.
const RevokedFile = "revoked.txt"

// revocations say until when the certificates of an identity, by its URI, are revoked.
type revocations map[string]time.Time

// revoked tells whether a certificate is revoked, by any of its names. Certificates hold from a moment before they were issued.
func (r revocations) revoked(cert *x509.Certificate) bool {
	return slices.ContainsFunc(cert.URIs, func(u *url.URL) bool {
		until, ok := r[u.String()]
		return ok && !cert.NotBefore.Add(Skew).After(until)
	})
}

// readRevoked reads a file of revocations. That it is not there is no error.
func readRevoked(path string) (revocations, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	all, err := parseRevoked(b)
	if err != nil {
		err = fmt.Errorf("%s:%w", path, err)
	}
	return all, err
}

func parseRevoked(b []byte) (revocations, error) {
	all := revocations{}
	for n, line := range strings.Split(string(b), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		uri, at, _ := strings.Cut(line, " ")
		until, err := time.Parse(time.RFC3339, at)
		if err != nil || !strings.HasPrefix(uri, scheme+"://") {
			return nil, fmt.Errorf("%d is not headwater://ROLE/NAME and a time", n+1)
		}
		all[uri] = until
	}
	return all, nil
}

// Revoke makes all certificates worthless that were issued to an identity until now, and removes the authority's own copy of the newest
// one. It can be issued anew.
func (a *Authority) Revoke(id Identity) error {
	if err := id.Validate(); err != nil {
		return err
	}
	path := filepath.Join(a.folder, RevokedFile)
	all, err := readRevoked(path)
	if err != nil {
		return err
	}
	if all == nil {
		all = revocations{}
	}
	all[id.String()] = a.now().UTC().Truncate(time.Second)
	var b strings.Builder
	b.WriteString("# Certificates that were issued up to a time are revoked.\n")
	for _, uri := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&b, "%s %s\n", uri, all[uri].Format(time.RFC3339))
	}
	if err := a.write(path, []byte(b.String()), false); err != nil {
		return err
	}
	for _, file := range []string{CertFile, KeyFile} { // what is left then is no folder of a certificate any more
		if err := os.Remove(filepath.Join(a.FolderOf(id), file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return a.Again(false)
}

// writeRevoked gives a folder the revocations of now, if there are any.
func (a *Authority) writeRevoked(folder string) error {
	if folder == a.folder {
		return nil
	}
	b, err := readFile(filepath.Join(a.folder, RevokedFile))
	if _, missing := os.Lstat(filepath.Join(a.folder, RevokedFile)); errors.Is(missing, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return a.write(filepath.Join(folder, RevokedFile), b, false)
}

// begins is from when a certificate holds that is issued now to a holder: after what is revoked of its names.
func (a *Authority) begins(h Holder) (time.Time, error) {
	from := a.now().Add(-Skew)
	all, err := readRevoked(filepath.Join(a.folder, RevokedFile))
	for _, name := range h.Names {
		if until, ok := all[Identity{h.Role, name}.String()]; ok && !from.Truncate(time.Second).Add(Skew).After(until) {
			from = until.Add(time.Second - Skew)
		}
	}
	return from, err
}
