package dashboard

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"
)

// role is what a user may do.
type role string

// The roles. An admin may also end jobs and sessions.
const (
	viewers role = "viewer"
	admins  role = "admin"
)

// User is who looks.
type User struct {
	Name string
	Role role
	// Every says that the user may read the data of all tenants, as who is on this machine may where there are no logins. Else
	// Tenant is whose data the user may read, and whose sessions alone are shown; nil is nobody's: the cluster without data.
	Every  bool
	Tenant *string
}

// lists says whether the user is told of a tenant's sessions, reads whether of what they hold.
func (u *User) lists(tenant string) bool { return u.Every || u.Tenant == nil || *u.Tenant == tenant }

func (u *User) reads(tenant string) bool { return u.Every || u.Tenant != nil && *u.Tenant == tenant }

// Logins know users by their tokens. Their method may be called concurrently.
type Logins interface {
	// Login returns whose a token is.
	Login(token string) (User, bool)
}

// fileLogins are the logins of a file, by the hash of their token.
type fileLogins map[[sha256.Size]byte]User

// Login implements Logins. The token is looked up by its hash, so that the time which that takes tells nothing of other tokens.
func (f fileLogins) Login(token string) (User, bool) {
	u, ok := f[sha256.Sum256([]byte(token))]
	return u, ok
}

// ReadLogins reads a file of logins: a line each of a name, a role, the SHA-256 of a token in hexadecimal, and perhaps
// tenant=NAME, which may be empty. Empty lines and those that begin with # are left out.
func ReadLogins(from io.Reader) (Logins, error) {
	all, lines := fileLogins{}, bufio.NewScanner(from)
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) < 3 || len(fields) > 4 {
			return nil, fmt.Errorf("line %d: %d fields, want a name, a role, a hash, and perhaps tenant=NAME", n, len(fields))
		}
		u := User{Name: fields[0], Role: role(fields[1])}
		if u.Role != viewers && u.Role != admins {
			return nil, fmt.Errorf("line %d: role %q is neither %s nor %s", n, fields[1], viewers, admins)
		}
		hash, err := hex.DecodeString(fields[2])
		if err != nil || len(hash) != sha256.Size {
			return nil, fmt.Errorf("line %d: the third field is no SHA-256 in hexadecimal", n)
		}
		if len(fields) == 4 {
			tenant, ok := strings.CutPrefix(fields[3], "tenant=")
			if !ok {
				return nil, fmt.Errorf("line %d: %q is not tenant=NAME", n, fields[3])
			}
			u.Tenant = &tenant
		}
		if _, twice := all[[sha256.Size]byte(hash)]; twice {
			return nil, fmt.Errorf("line %d: another line has the same token", n)
		}
		all[[sha256.Size]byte(hash)] = u
	}
	if len(all) == 0 && lines.Err() == nil {
		return nil, errors.New("it has no login")
	}
	return all, lines.Err()
}

const (
	// loginLife is how long a login lasts, maxLogins how many last at once.
	loginLife = 12 * time.Hour
	maxLogins = 1024
	// maxFailed is how many logins may fail in failedTime.
	maxFailed  = 20
	failedTime = time.Minute
	// maxForm bounds what a form sends.
	maxForm = 1 << 12
	// tokenHeader is the header of a request that changes something: the token that the page was told.
	tokenHeader = "X-Headwater-Token"
	// retryAfter tells in how many seconds what was refused may be tried again.
	retryAfter = "Retry-After"
)

// visit is a user who has logged in.
type visit struct {
	User
	token string // which requests that change something bring
	ends  time.Time
}

// doors let users in.
type doors struct {
	Access
	log    *slog.Logger
	cookie string // its name

	mu     sync.Mutex
	visits map[string]*visit // by the value of their cookie
	failed []time.Time       // the newest logins that failed
	local  visit
}

// newDoors makes the doors of a dashboard. Behind TLS browsers give cookies to nobody else.
func newDoors(access Access, log *slog.Logger) *doors {
	d := &doors{Access: access, log: log, cookie: "headwater", visits: map[string]*visit{}, local: visit{User: User{Role: admins, Every: true}, token: rand.Text()}}
	if access.Secure {
		d.cookie = "__Host-headwater"
	}
	return d
}

// visitOf returns who makes a request, nil for a stranger.
func (d *doors) visitOf(r *http.Request) *visit {
	if d.Shown != nil {
		if name, ok := d.Shown(r); ok {
			return &visit{User: User{Name: name, Role: admins, Every: true}, token: d.local.token}
		}
		return nil
	}
	if d.Logins == nil {
		return &d.local
	}
	cookie, err := r.Cookie(d.cookie)
	if err != nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.visits[cookie.Value]
	if v == nil || time.Now().After(v.ends) {
		delete(d.visits, cookie.Value)
		return nil
	}
	return v
}

// who is the key of the visit in a request's context.
type who struct{}

// visiting returns who makes a request that has come in.
func visiting(r *http.Request) *visit { return r.Context().Value(who{}).(*visit) }

// inside lets a request in that comes from a user.
func (d *doors) inside(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v := d.visitOf(r)
		if v == nil {
			if r.URL.Path == "/" {
				http.Redirect(w, r, "login", http.StatusSeeOther)
				return
			}
			http.Error(w, "log in first", http.StatusUnauthorized)
			return
		}
		h(w, r.WithContext(context.WithValue(r.Context(), who{}, v)))
	}
}

// changing lets a request in that changes something: it brings the token that the page was told, and comes from a role.
func (d *doors) changing(of role, h http.HandlerFunc) http.HandlerFunc {
	return d.inside(func(w http.ResponseWriter, r *http.Request) {
		v := visiting(r)
		switch {
		case subtle.ConstantTimeCompare([]byte(r.Header.Get(tokenHeader)), []byte(v.token)) != 1:
			http.Error(w, "the request does not come from the dashboard's page", http.StatusForbidden)
		case v.Role != of && of == admins:
			http.Error(w, "only an admin may do that", http.StatusForbidden)
		default:
			h(w, r)
		}
	})
}

// login lets a user in who has a token.
func (d *doors) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.failed) > 0 && now.Sub(d.failed[0]) > failedTime {
		d.failed = d.failed[1:]
	}
	if d.Logins == nil {
		http.Error(w, "a request from this machine needs no login", http.StatusNotFound)
		return
	}
	if len(d.failed) >= maxFailed {
		d.count()
		w.Header().Set(retryAfter, "60")
		http.Error(w, "too many logins failed: try again in a minute", http.StatusTooManyRequests)
		return
	}
	user, ok := d.Logins.Login(strings.TrimSpace(r.PostFormValue("token")))
	if !ok {
		d.count()
		d.log.Warn("a login to the dashboard failed: its token is nobody's", "peer", r.RemoteAddr)
		if d.failed = append(d.failed, now); len(d.failed) == maxFailed {
			d.log.Warn("too many logins to the dashboard failed: for a while all are refused")
		}
		http.Redirect(w, r, "login#failed", http.StatusSeeOther)
		return
	}
	for id, v := range d.visits {
		if now.After(v.ends) {
			delete(d.visits, id)
		}
	}
	if len(d.visits) >= maxLogins {
		w.Header().Set(retryAfter, "60")
		http.Error(w, fmt.Sprintf("%d are logged in, the most that may", maxLogins), http.StatusServiceUnavailable)
		return
	}
	d.log.Info("a user has logged in to the dashboard", "user", user.Name, "peer", r.RemoteAddr)
	id := rand.Text()
	d.visits[id] = &visit{User: user, token: rand.Text(), ends: now.Add(loginLife)}
	http.SetCookie(w, &http.Cookie{
		Name: d.cookie, Value: id, Path: "/", MaxAge: int(loginLife / time.Second), HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: d.cookie != "headwater",
	})
	http.Redirect(w, r, "./", http.StatusSeeOther)
}

// count counts a login that failed.
func (d *doors) count() {
	if d.Failed != nil {
		d.Failed()
	}
}

// logout ends a visit.
func (d *doors) logout(w http.ResponseWriter, r *http.Request) {
	if cookie, err := r.Cookie(d.cookie); err == nil {
		d.mu.Lock()
		delete(d.visits, cookie.Value)
		d.mu.Unlock()
	}
	w.WriteHeader(http.StatusNoContent)
}

// me answers with who the user is and the token for what changes something.
func (d *doors) me(w http.ResponseWriter, r *http.Request) {
	v := visiting(r)
	answer(w, r, func(context.Context) (any, error) {
		return map[string]any{"name": v.Name, "role": v.Role, "token": v.token, "leaves": d.Logins != nil}, nil
	})
}
