package dashboard

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// keyed serves a dashboard with logins by TLS: those of the users by their tokens, which are their names.
func keyed(t *testing.T, c Cluster, lines ...string) *httptest.Server {
	t.Helper()
	return keyedAs(t, c, slog.New(slog.DiscardHandler), lines...)
}

// keyedAs is keyed with a log.
func keyedAs(t *testing.T, c Cluster, log *slog.Logger, lines ...string) *httptest.Server {
	t.Helper()
	var text strings.Builder
	for _, line := range lines {
		name, rest, _ := strings.Cut(line, " ")
		role, tenant, _ := strings.Cut(rest, " ")
		fmt.Fprintf(&text, "# of %s\n\n%s %s %x %s\n", name, name, role, sha256.Sum256([]byte("token of "+name)), tenant)
	}
	logins, err := ReadLogins(strings.NewReader(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	return securely(t, New(c, Access{Logins: logins, Secure: true}, log))
}

// securely serves a dashboard by TLS until the test ends.
func securely(t *testing.T, d *Dashboard) *httptest.Server {
	t.Helper()
	s := httptest.NewTLSServer(d)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		d.Close()
	})
	return s
}

// guest is a browser of a user.
type guest struct {
	t     *testing.T
	s     *httptest.Server
	c     *http.Client
	token string // for what changes something
}

// stranger is one who has not logged in.
func stranger(t *testing.T, s *httptest.Server) *guest {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: s.Client().Transport, Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return &guest{t: t, s: s, c: c}
}

// enters logs a user in.
func enters(t *testing.T, s *httptest.Server, name string) *guest {
	t.Helper()
	g := stranger(t, s)
	answer := g.posts("/login", url.Values{"token": {"token of " + name}})
	if answer.StatusCode != http.StatusSeeOther || answer.Header.Get("Location") != "/" {
		t.Fatalf("%s logs in: %s to %q", name, answer.Status, answer.Header.Get("Location"))
	}
	var me struct{ Name, Role, Token string }
	_, text := g.gets("/me")
	if err := json.Unmarshal([]byte(text), &me); err != nil || me.Name != name {
		t.Fatalf("%s is %+v, %v", name, me, err)
	}
	g.token = me.Token
	return g
}

func (g *guest) does(r *http.Request) (*http.Response, string) {
	g.t.Helper()
	answer, err := g.c.Do(r)
	if err != nil {
		g.t.Fatal(err)
	}
	defer answer.Body.Close()
	text := ""
	if answer.Header.Get("Content-Type") == "text/event-stream" {
		lines := bufio.NewScanner(answer.Body) // until the first event is whole
		lines.Buffer(nil, 1<<20)
		for lines.Scan() && !(lines.Text() == "" && strings.Contains(text, "data: ")) {
			text += lines.Text() + "\n"
		}
		return answer, text
	}
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return answer, string(b)
}

func (g *guest) gets(path string) (int, string) {
	g.t.Helper()
	r, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, g.s.URL+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	answer, text := g.does(r)
	return answer.StatusCode, text
}

func (g *guest) posts(path string, form url.Values, headers ...string) *http.Response {
	g.t.Helper()
	r, err := http.NewRequestWithContext(g.t.Context(), http.MethodPost, g.s.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		g.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, _ := g.does(r)
	return answer
}

func TestStrangersSeeNothing(t *testing.T) {
	s := keyed(t, &fake{}, "alice admin")
	g := stranger(t, s)
	for path, want := range map[string]int{
		"/": http.StatusSeeOther, "/login": http.StatusOK, "/style.css": http.StatusOK, "/events": http.StatusUnauthorized, "/me": http.StatusUnauthorized,
		"/attention?session=a": http.StatusUnauthorized, "/job/problems?job=j": http.StatusUnauthorized, "/job/attention?job=j": http.StatusUnauthorized,
	} {
		if code, text := g.gets(path); code != want || strings.Contains(text, `"position"`) {
			t.Errorf("%s is answered with %d %q, want %d", path, code, text, want)
		}
	}
	for _, path := range []string{"/job/cancel?id=j", "/session/drop?id=a", "/logout"} {
		if answer := g.posts(path, nil); answer.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s is answered with %s", path, answer.Status)
		}
	}
	for range maxFailed {
		answer := g.posts("/login", url.Values{"token": {"token of bob"}})
		if answer.Header.Get("Location") != "/login#failed" || len(answer.Cookies()) != 0 {
			t.Fatalf("a wrong token is answered with %s to %q", answer.Status, answer.Header.Get("Location"))
		}
	}
	if answer := g.posts("/login", url.Values{"token": {"token of alice"}}); answer.StatusCode != http.StatusTooManyRequests {
		t.Errorf("after %d failures a login is answered with %s", maxFailed, answer.Status)
	}
}

// TestLoginsThatFailAreLoggedAndCounted tries more logins than may fail: all are counted, and who failed is logged, without a token.
func TestLoginsThatFailAreLoggedAndCounted(t *testing.T) {
	logins, err := ReadLogins(strings.NewReader(fmt.Sprintf("alice viewer %x", sha256.Sum256([]byte("token of alice")))))
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	failed := 0
	s := securely(t, New(&fake{}, Access{Logins: logins, Secure: true, Failed: func() { failed++ }}, slog.New(slog.NewTextHandler(&logged, nil))))
	enters(t, s, "alice")
	const more = 3
	for range maxFailed + more {
		stranger(t, s).posts("/login", url.Values{"token": {"secret of mallory"}})
	}
	s.Close() // so that nothing is logged any more
	if failed != maxFailed+more {
		t.Errorf("%d failures are counted, want %d", failed, maxFailed+more)
	}
	text := logged.String()
	if n := strings.Count(text, "a login to the dashboard failed"); n != maxFailed || strings.Count(text, "peer=127.0.0.1:") != maxFailed+1 {
		t.Errorf("%d failures are logged, want %d, each with its peer:\n%s", n, maxFailed, text)
	}
	if !strings.Contains(text, `msg="a user has logged in to the dashboard" user=alice`) || strings.Count(text, "for a while all are refused") != 1 || strings.Contains(text, "secret of mallory") {
		t.Errorf("the log is\n%s", text)
	}
}

func TestALoginIsACookieThatEndsWithIt(t *testing.T) {
	s := keyed(t, &fake{}, "alice admin")
	g := stranger(t, s)
	answer := g.posts("/login", url.Values{"token": {"token of alice"}})
	if len(answer.Cookies()) != 1 {
		t.Fatalf("the cookies are %v", answer.Cookies())
	}
	if c := answer.Cookies()[0]; c.Name != "__Host-headwater" || !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || len(c.Value) < 26 {
		t.Errorf("the cookie is %v", c)
	}
	g = enters(t, s, "alice")
	if code, text := g.gets("/"); code != http.StatusOK || !strings.Contains(text, "Headwater") {
		t.Errorf("the page is answered with %d", code)
	}
	if answer := g.posts("/logout", nil, tokenHeader, g.token); answer.StatusCode != http.StatusNoContent {
		t.Errorf("logging out is answered with %s", answer.Status)
	}
	if code, _ := g.gets("/me"); code != http.StatusUnauthorized {
		t.Errorf("after logging out, %d", code)
	}
}

func TestOnlyAnAdminsPageEndsSomething(t *testing.T) {
	f := &fake{}
	var logged bytes.Buffer
	s := keyedAs(t, f, slog.New(slog.NewTextHandler(&logged, nil)), "alice admin", "victor viewer", "tara admin tenant=t")
	alice, victor, tara := enters(t, s, "alice"), enters(t, s, "victor"), enters(t, s, "tara")
	f.maps = func(session string) (*Map, error) { return &Map{Session: session, Tenant: session[:1]}, nil }
	for _, c := range []struct {
		who     *guest
		path    string
		headers []string
		want    int
	}{
		{alice, "/job/cancel?id=j", nil, http.StatusForbidden},
		{alice, "/job/cancel?id=j", []string{tokenHeader, victor.token}, http.StatusForbidden},
		{alice, "/job/cancel?id=j", []string{tokenHeader, alice.token, "Origin", "https://elsewhere.example"}, http.StatusForbidden},
		{alice, "/job/cancel?id=j", []string{tokenHeader, alice.token, "Sec-Fetch-Site", "cross-site"}, http.StatusForbidden},
		{victor, "/job/cancel?id=j", []string{tokenHeader, victor.token}, http.StatusForbidden},
		{victor, "/session/drop?id=t1", []string{tokenHeader, victor.token}, http.StatusForbidden},
		{tara, "/job/cancel?id=j", []string{tokenHeader, tara.token}, http.StatusUnprocessableEntity},
		{tara, "/session/drop?id=u1", []string{tokenHeader, tara.token}, http.StatusUnprocessableEntity},
		{tara, "/session/drop?id=t1", []string{tokenHeader, tara.token}, http.StatusNoContent},
		{alice, "/job/cancel?id=j", []string{tokenHeader, alice.token}, http.StatusNoContent},
		{alice, "/session/drop?id=u2", []string{tokenHeader, alice.token}, http.StatusNoContent},
	} {
		if answer := c.who.posts(c.path, nil, c.headers...); answer.StatusCode != c.want {
			t.Errorf("%s with %v: %s, want %d", c.path, c.headers, answer.Status, c.want)
		}
	}
	if want := []string{"session t1", "job j", "session u2"}; !slices.Equal(f.ended, want) {
		t.Errorf("ended were %v, want %v", f.ended, want)
	}
	s.Close() // so that nothing is logged any more
	text := logged.String()
	for _, want := range []string{`audit=true by="user tara" user=tara peer=127.0.0.1:`, `session=t1 error=<nil>`, `session=u1 error="session u1 is another tenant's`, `by="user alice"`, `job=j error=<nil>`} {
		if !strings.Contains(text, want) {
			t.Errorf("the audit log lacks %s:\n%s", want, text)
		}
	}
	if n := strings.Count(text, "audit=true"); n != 5 {
		t.Errorf("%d lines are of the audit log, want 5:\n%s", n, text)
	}
}

func TestATenantSeesItsOwn(t *testing.T) {
	s := keyed(t, &fake{
		picture: func() (*Snapshot, error) {
			return &Snapshot{Sessions: []Session{{ID: "t1", Tenant: "t"}, {ID: "u1", Tenant: "u"}, {ID: "1", Tenant: ""}}, Jobs: []Job{{ID: "j"}}}, nil
		},
		maps: func(session string) (*Map, error) {
			if session == "no" {
				return nil, errors.New("nobody holds it")
			}
			return &Map{Session: session, Tenant: session[:len(session)-1]}, nil
		},
	}, "operator viewer", "tom viewer tenant=t", "nina viewer tenant=")
	for _, c := range []struct {
		who         string
		sees, reads []string
		jobs        bool
	}{
		{"operator", []string{"t1", "u1", "1"}, nil, true},
		{"tom", []string{"t1"}, []string{"t1"}, false},
		{"nina", []string{"1"}, []string{"1"}, false},
	} {
		g := enters(t, s, c.who)
		_, text := g.gets("/events?session=u1")
		_, data, _ := strings.Cut(text, "data: ")
		data, _, _ = strings.Cut(data, "\n")
		p := parsed[Snapshot](t, data)
		var seen []string
		for _, one := range p.Sessions {
			seen = append(seen, one.ID)
		}
		if !slices.Equal(seen, c.sees) || (len(p.Jobs) == 1) != c.jobs {
			t.Errorf("%s sees the sessions %v and %d jobs", c.who, seen, len(p.Jobs))
		}
		for _, session := range []string{"t1", "u1", "1", "no"} {
			code, text := g.gets("/attention?session=" + session)
			if want := slices.Contains(c.reads, session); want != (code == http.StatusOK) || want != strings.Contains(text, "position") {
				t.Errorf("%s asks where the queries of %s look: %d %q", c.who, session, code, text)
			}
		}
		for _, path := range []string{"/job/attention?job=j", "/job/problems?job=j"} {
			if code, text := g.gets(path); code != http.StatusUnprocessableEntity || !strings.Contains(text, "jobs have no tenant") {
				t.Errorf("%s asks for %s: %d %q", c.who, path, code, text)
			}
		}
	}
	// The map of a session that is another's is not shown, whoever has asked for it first.
	for who, want := range map[string]bool{"operator": true, "tom": false} {
		g := enters(t, s, who)
		g.c.Transport = s.Client().Transport
		got := lookAs(t, g, "u1")
		if (got.Error == "") != want {
			t.Errorf("%s is shown the map %+v", who, got)
		}
	}
}

// lookAs returns the first map that a user of a session is sent.
func lookAs(t *testing.T, g *guest, session string) (m Map) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.s.URL+"/events?session="+session, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := g.c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		if lines.Text() == "event: map" && lines.Scan() {
			return parsed[Map](t, strings.TrimPrefix(lines.Text(), "data: "))
		}
	}
	t.Fatal("no map came")
	return m
}

func TestLoginsAreReadOrRefused(t *testing.T) {
	hash := strings.Repeat("ab", sha256.Size)
	for text, want := range map[string]string{
		"":                                       "it has no login",
		"alice admin":                            "line 1: 2 fields",
		"alice root " + hash:                     `line 1: role "root"`,
		"\nalice admin abc":                      "line 2: the third field is no SHA-256",
		"alice admin " + hash + " t":             `line 1: "t" is not tenant=NAME`,
		"a admin " + hash + "\nb viewer " + hash: "line 2: another line has the same token",
		"alice admin " + hash + " tenant=t":      "",
	} {
		if _, err := ReadLogins(strings.NewReader(text)); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q is read with %v, want %q", text, err, want)
		}
	}
}
