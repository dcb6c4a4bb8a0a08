package rpc

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"headwater.example/internal/address"
	"headwater.example/internal/capability"
	"headwater.example/internal/certs"
	"headwater.example/internal/tenants"
)

const (
	// lookEvery is how often at most the files of certificates are looked at for a new connection.
	lookEvery = time.Second
	// saidEvery is how often one kind of refusal is logged; those between are debug records.
	saidEvery = 10 * time.Second
	// renewBefore is the part of its lifetime before whose end a certificate should have been renewed.
	renewBefore = 10
)

// SecurityConfig says how a process speaks to others.
type SecurityConfig struct {
	// Folder has the process's certificate, its key, and the authorities that it trusts, as package certs names them. "" is plain
	// text.
	Folder string
	// Tenants is the file of tenants whose tokens a server takes in place of certificates; "" takes none.
	Tenants string
	// Token returns the token that a client shows its coordinator; nil is none. Then the folder needs no certificate. Workers are shown a
	// capability, for which GrantBy says whom to ask.
	Token func() (string, error)
	// Insecure lets plain text go to other machines, and come from them.
	Insecure bool
	Logger   *slog.Logger // nil is slog.Default
	Now      func() time.Time
}

// Security is how a process speaks to others: by TLS 1.3, each end with a certificate, or in plain text. It reads the files of its
// folder again when they change, so that certificates and authorities are replaced without a restart; what it can't read then
// changes nothing. A connection ends when a certificate of it expires, or when its authority is trusted no more.
//
// A nil Security is plain text within this machine. Safe for concurrent use.
type Security struct {
	cfg    SecurityConfig
	wallet *wallet // of a client that has a token; else nil

	mu      sync.Mutex
	own     *certs.Own
	tenants *tenants.Table // nil takes no tokens
	files   [watched]fileState
	looked  time.Time
	trouble string // why the files could not be read again, as it was logged
	live    map[*securedConn]struct{}
	refused map[certs.Reason]uint64
	said    map[certs.Reason]time.Time
	crowd   int // connections of strangers
	proven  int // connections that have shown a token or a capability and no certificate

	verifiedOnes map[[sha256.Size]byte]*capability.Signed // capabilities, by their hash, under the trust of now
}

// watched is how many files are looked at.
const watched = 5

// fileState tells whether a file has changed.
type fileState struct {
	size     int64
	modified time.Time
	file     fs.FileInfo
}

// NewSecurity reads the certificates, if there is a folder of them.
func NewSecurity(cfg SecurityConfig) (*Security, error) {
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Security{
		cfg: cfg, live: map[*securedConn]struct{}{}, refused: map[certs.Reason]uint64{}, said: map[certs.Reason]time.Time{},
		verifiedOnes: map[[sha256.Size]byte]*capability.Signed{},
	}
	switch {
	case cfg.Folder == "" && cfg.Tenants != "":
		return nil, errors.New("tokens are taken by TLS alone: give a certificate by --tls-dir")
	case cfg.Folder == "" && cfg.Token != nil:
		return nil, errors.New("a token is sent by TLS alone: give the folder of ca.crt by --tls-dir")
	case cfg.Folder == "":
		return s, nil
	}
	if cfg.Insecure {
		return nil, fmt.Errorf("--insecure and --tls-dir %s contradict each other: leave out one of them", cfg.Folder)
	}
	var err error
	s.files = s.look()
	if s.own, s.tenants, err = s.read(); err != nil {
		return nil, err
	}
	s.looked = cfg.Now()
	if cfg.Token != nil {
		s.wallet, err = newWallet(cfg.Now)
	}
	return s, err
}

// read reads all files.
func (s *Security) read() (own *certs.Own, table *tenants.Table, err error) {
	if s.cfg.Token != nil {
		own, err = certs.ReadTrust(s.cfg.Folder)
	} else {
		own, err = certs.Read(s.cfg.Folder)
	}
	if err == nil && s.cfg.Tenants != "" {
		table, err = tenants.Read(s.cfg.Tenants)
	}
	return own, table, err
}

// secured tells whether connections are by TLS.
func (s *Security) secured() bool { return s != nil && s.cfg.Folder != "" }

// Plain tells whether connections are plain text, so that nobody has to show who it is. Only then are lanes on sockets of this machine
// served and looked for: they carry no certificate and no token, and would be bound to no tenant.
func (s *Security) Plain() bool { return !s.secured() }

// insecure tells whether plain text may go to other machines.
func (s *Security) insecure() bool { return s != nil && s.cfg.Insecure }

// Reaches says what is wrong with an address that is to be dialed: that plain text would go to another machine. That of a name is
// found out when it is dialed, unless a proxy does that.
func (s *Security) Reaches(to address.Address, proxied bool) error {
	if s.secured() || s.insecure() || to.IsLoopback() {
		return nil
	}
	if _, err := netip.ParseAddr(to.Host); err != nil && !proxied {
		return nil
	}
	return errors.New(plainRefused(to.String()))
}

// Serves says what is wrong with the own certificate for a process of a role and a name: its peers would refuse it.
func (s *Security) Serves(role certs.Role, name string) error {
	if !s.secured() {
		return nil
	}
	own := s.current()
	if h := own.Holder; h.Role != role || name != "" && !h.Is(name) {
		return fmt.Errorf("%s: the certificate is that of %s, and this is %s %s: `coord certs issue %[3]s %[4]s` makes one for it", s.cfg.Folder, h, role, name)
	}
	if err := own.Check(s.cfg.Now()); err != nil {
		return fmt.Errorf("%s: peers will refuse this process: %w", s.cfg.Folder, err)
	}
	return nil
}

// Expires is when the own certificate expires; the zero time without one.
func (s *Security) Expires() time.Time {
	if !s.secured() {
		return time.Time{}
	}
	return s.current().Expires()
}

// Refused counts what was refused of peers, by reason: connections, calls, and messages of gossip.
func (s *Security) Refused() map[certs.Reason]uint64 {
	all := map[certs.Reason]uint64{}
	if s == nil {
		return all
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range certs.Reasons {
		all[r] = s.refused[r]
	}
	return all
}

// Count counts a message of gossip that was refused.
func (s *Security) Count(reason certs.Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[reason]++
}

// Tend looks at the files at each tick, some seconds apart, until ctx ends, and says in time that the certificate expires. A server
// does so; without it, files are looked at for each new connection.
func (s *Security) Tend(ctx context.Context, ticks <-chan time.Time) {
	if !s.secured() || s.current().Cert.Leaf == nil {
		return
	}
	var warned time.Time
	for {
		leaf := s.current().Cert.Leaf
		left := leaf.NotAfter.Sub(s.cfg.Now())
		if left < leaf.NotAfter.Sub(leaf.NotBefore)/renewBefore && !warned.Equal(leaf.NotAfter) {
			warned = leaf.NotAfter
			s.cfg.Logger.Warn("the certificate expires soon: issue it anew, and put it in its place", "folder", s.cfg.Folder, "expires", leaf.NotAfter)
		}
		select {
		case <-ticks:
		case <-ctx.Done():
			return
		}
	}
}

// look returns the states of the files.
func (s *Security) look() (now [watched]fileState) {
	in := func(name string) string { return filepath.Join(s.cfg.Folder, name) }
	for i, path := range [watched]string{in(certs.TrustFile), in(certs.CertFile), in(certs.KeyFile), in(certs.RevokedFile), s.cfg.Tenants} {
		if info, err := os.Stat(path); err == nil && path != "" {
			now[i] = fileState{info.Size(), info.ModTime(), info}
		}
	}
	return now
}

func (f fileState) same(g fileState) bool {
	return f.size == g.size && f.modified.Equal(g.modified) && (f.file == nil) == (g.file == nil) && (f.file == nil || os.SameFile(f.file, g.file))
}

// current returns the certificates, which are read again if their files have changed.
func (s *Security) current() *certs.Own {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	if since := now.Sub(s.looked); since >= 0 && since < lookEvery {
		return s.own
	}
	s.looked = now
	files := s.look()
	changed := s.trouble != "" // another try: the files may be as they were when they could not be read
	for i, f := range files {
		changed = changed || !f.same(s.files[i])
	}
	if !changed {
		return s.own
	}
	own, table, err := s.read()
	if err == nil && own.Holder.Role != s.own.Holder.Role {
		err = fmt.Errorf("%s: the certificate is that of %s, and this process began as %s", s.cfg.Folder, own.Holder, s.own.Holder)
	}
	if err != nil { // as when they are being replaced
		if text := err.Error(); text != s.trouble {
			s.trouble = text
			s.cfg.Logger.Warn("certificates can't be read again; those of before stay in use", "folder", s.cfg.Folder, "error", err)
		}
		return s.own
	}
	s.auditTenants(table)
	s.files, s.own, s.tenants, s.trouble = files, own, table, ""
	clear(s.verifiedOnes)
	s.cfg.Logger.Info("certificates were read again", "folder", s.cfg.Folder, "holder", own.Holder.String(), "expires", own.Expires(), "authorities", own.Trust.String())
	for c := range s.live {
		if s.doubtful(c) != "" {
			c.timer.Reset(0)
		}
	}
	return s.own
}

// auditTenants logs who was added to the file of tenants, removed from it or changed in it, as Audit does. The lock is held.
func (s *Security) auditTenants(now *tenants.Table) {
	if now == nil {
		return
	}
	changes := now.Since(s.tenants)
	if !changes.Any() {
		return
	}
	s.cfg.Logger.Info("tenants have changed", "audit", true, "by", "file "+s.cfg.Tenants,
		"added", changes.Added, "removed", changes.Removed, "tokens_of", changes.Tokens, "admins", changes.Admin, "limits_of", changes.Limits)
}

// doubtful says why a connection that was good is not any more; "" if it is. The lock is held.
func (s *Security) doubtful(c *securedConn) string {
	if c.chain != nil {
		if _, err := s.own.Trust.Verify(c.chain, s.cfg.Now()); err != nil {
			return err.Error()
		}
	}
	if c.grant != nil {
		if _, err := s.own.Trust.Verify(c.grant.chain, s.cfg.Now()); err != nil {
			return "who signed its capability is not believed any more: " + err.Error()
		}
	}
	for hash := range c.tokens {
		if _, ok := s.tenants.Find(hash); !ok {
			return "the tenant's token was removed"
		}
	}
	return ""
}

// refuse counts a refusal and logs it.
func (s *Security) refuse(peer string, reason certs.Reason, why string) {
	s.mu.Lock()
	s.refused[reason]++
	now, level := s.cfg.Now(), slog.LevelWarn
	if last, ok := s.said[reason]; ok && now.Sub(last) < saidEvery {
		level = slog.LevelDebug
	} else {
		s.said[reason] = now
	}
	s.mu.Unlock()
	s.cfg.Logger.Log(context.Background(), level, "a peer is refused", "peer", peer, "reason", string(reason), "error", why)
}

// verify says who shows a chain.
func (s *Security) verify(chain []*x509.Certificate) (certs.Holder, *certs.Error) {
	h, err := s.current().Trust.Verify(chain, s.cfg.Now())
	if err == nil {
		return h, nil
	}
	var refusal *certs.Error
	if !errors.As(err, &refusal) {
		refusal = &certs.Error{Reason: certs.BadCertificate, Why: err.Error()}
	}
	return h, refusal
}
