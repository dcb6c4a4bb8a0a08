//go:build linux

package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/big"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"headwater.example/client"
	"headwater.example/internal/dashboard"
	"headwater.example/internal/localcluster"
)

// admin is the flag of a process with an admin port.
var admin = []string{"--admin", "127.0.0.1:0"}

// get asks an admin port, under a host's name if one is given.
func get(t *testing.T, at, path, host string) (code int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(bounded(t), http.MethodGet, "http://"+at+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Host, request.Close = host, true
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(b)
}

// scrape returns the metrics of a process, by name and label.
func scrape(t *testing.T, at string) map[string]float64 {
	t.Helper()
	code, body := get(t, at, "/metrics", "")
	if code != http.StatusOK {
		t.Fatalf("/metrics: %d: %s", code, body)
	}
	values := map[string]float64{}
	for line := range strings.Lines(body) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		values[name] = v
	}
	return values
}

// TestMetricsAreWhatStatusShows compares, on a cluster that has done a job and holds a session, every number of coord status with
// the metric that has it, and what a session's steps must have counted.
func TestMetricsAreWhatStatusShows(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 2, CoordinatorArgs: admin, WorkerArgs: admin})
	g, layers := generate(t, c)
	s, err := c.OpenSession(g.ctx, client.SessionOptions{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	const steps = 5
	for i := range steps {
		g.step(s, i, i+1)
	}
	said := coord(t, "status", "--output", "json", "--coordinator", c.Address())
	said.succeeds(t)
	var status struct {
		Workers []struct {
			Name        string
			BudgetBytes float64 `json:"budget_bytes"`
			UsedBytes   float64 `json:"used_bytes"`
			SpareBytes  float64 `json:"spare_bytes"`
			Threads     float64
			Cache       map[string]any
		}
		Jobs map[string]float64
	}
	if err := json.Unmarshal([]byte(said.out), &status); err != nil {
		t.Fatal(err)
	}
	if len(status.Workers) != c.Workers() {
		t.Fatalf("status has %d workers", len(status.Workers))
	}
	for i, w := range status.Workers {
		m := scrape(t, c.Admin(i))
		want := map[string]float64{"memory_budget_bytes": w.BudgetBytes, "memory_used_bytes": w.UsedBytes, "memory_spare_bytes": w.SpareBytes, "threads": w.Threads}
		for metric, key := range map[string]string{
			"sessions": "sessions", "lanes": "lanes", "queued_steps": "queued_steps", "queued_tokens": "queued_tokens", "cache_used_bytes": "used_bytes",
			"cache_room_bytes": "free_bytes", "cache_row_bytes": "row_bytes", "cache_session_bytes": "session_bytes", "prefix_bytes": "prefix_bytes",
			"prefix_asked_positions_total": "prefix_asked", "prefix_hit_positions_total": "prefix_hits", "prefix_saved_bytes_total": "prefix_saved_bytes",
			"sessions_evicted_total": "evicted",
		} {
			want[metric] = w.Cache[key].(float64)
		}
		for _, p := range w.Cache["pages"].([]any) {
			want["pages"] += p.(map[string]any)["used"].(float64)
		}
		for name, value := range want {
			if got, ok := m["headwater_worker_"+name]; !ok || got != value {
				t.Errorf("%s: headwater_worker_%s is %v, status says %v", w.Name, name, got, value)
			}
		}
		if want["sessions"] != 1 || want["pages"] == 0 {
			t.Errorf("%s holds nothing: %v", w.Name, want)
		}
		for name, least := range map[string]float64{
			"step_duration_seconds_count": steps * 2, "step_queue_seconds_count": steps * 2, `kernel_duration_seconds_count{work="session"}`: steps * 2,
			`step_tokens_total{kind="append"}`: steps * 2, `kernel_read_bytes_total{work="job"}`: 1, `context_wire_bytes_total{codec="exact"}`: 1,
		} {
			if got := m["headwater_worker_"+name]; got < least {
				t.Errorf("%s: headwater_worker_%s is %v, at least %v are due", w.Name, name, got, least)
			}
		}
	}
	said = coord(t, "top", "--every", "100ms", "--output", "json", "--coordinator", c.Address())
	said.succeeds(t)
	var top struct {
		Workers []struct {
			Name     string
			Sessions uint64
			Steps    *float64 `json:"steps_per_second"`
			Share    *float64 `json:"bus_share"`
		}
	}
	if err := json.Unmarshal([]byte(said.out), &top); err != nil {
		t.Fatal(err)
	}
	for _, w := range top.Workers {
		// Of a budget this small nothing is spared to measure the bus with.
		if w.Sessions != 1 || w.Steps == nil || w.Share != nil {
			t.Errorf("coord top says of %s: %s", w.Name, said.out)
		}
	}
	m := scrape(t, c.Admin(-1))
	for state, n := range status.Jobs {
		if got := m[fmt.Sprintf("headwater_coordinator_jobs{state=%q}", state)]; got != n {
			t.Errorf("%v jobs are %s, status says %v", got, state, n)
		}
	}
	for name, want := range map[string]float64{"workers": 2, "workers_left_out": 0, "sessions_known": 1, "lanes": 1, "step_duration_seconds_count": steps * 2, "step_wire_seconds_count": steps * 2} {
		if got := m["headwater_coordinator_"+name]; got != want {
			t.Errorf("headwater_coordinator_%s is %v, want %v; there are %v", name, got, want, slices.Sorted(maps.Keys(m)))
		}
	}
}

// watched is what a dashboard sends.
type watched struct {
	t     *testing.T
	lines *bufio.Scanner
}

// watch looks at a coordinator's dashboard until the test ends.
func watch(t *testing.T, at string) *watched {
	t.Helper()
	request, err := http.NewRequestWithContext(bounded(t), http.MethodGet, "http://"+at+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	t.Cleanup(func() { _ = answer.Body.Close() })
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	return &watched{t, lines}
}

// next returns the next picture, and the map that comes with it if a session is open.
func (w *watched) next() (p dashboard.Snapshot, m dashboard.Map) {
	w.t.Helper()
	kind, seen := "", false
	for w.lines.Scan() {
		switch name, text, _ := strings.Cut(w.lines.Text(), ": "); {
		case name == "event":
			kind = text
		case name == "data" && kind == "map":
			if err := json.Unmarshal([]byte(text), &m); err != nil {
				w.t.Fatal(err)
			}
			if seen {
				return p, m
			}
		case name == "data":
			if err := json.Unmarshal([]byte(text), &p); err != nil {
				w.t.Fatal(err)
			}
			if seen = true; len(p.Sessions) == 0 {
				return p, m
			}
		case name == "":
			kind = ""
		}
	}
	w.t.Fatalf("the events ended: %v", w.lines.Err())
	return p, m
}

// TestDashboardSeesAWorkerDie reads what the page is sent, until a worker that was killed is left out.
func TestDashboardSeesAWorkerDie(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 2, CoordinatorArgs: admin})
	s, err := c.OpenSession(bounded(t), client.SessionOptions{Name: "seen", Layers: []client.Layer{{Heads: 4, KVHeads: 2, HeadDim: 8}}})
	if err != nil {
		t.Fatal(err)
	}
	w := watch(t, c.Admin(-1))
	p, m := w.next()
	if len(p.Workers) != 2 || len(p.Sessions) != 1 || p.Sessions[0].ID != s.ID().String() || m.Session != s.ID().String() || len(m.Holders) != 2 || slices.Contains(m.Layers[0].Owner, -1) {
		t.Fatalf("the page is sent %+v with the map %+v", p, m)
	}
	gone := fmt.Sprintf("worker %s is gone, and with it its part of 1 session", c.Name(1))
	c.Kill(1)
	for {
		p, m := w.next()
		left := 0
		for _, w := range p.Workers {
			if w.Error == "" {
				left++
			}
		}
		told := slices.ContainsFunc(p.Events, func(e dashboard.Event) bool { return e.Text == gone })
		if left == 1 && len(p.Sessions) == 1 && len(m.Holders) == 1 && slices.Contains(m.Layers[0].Owner, -1) && told && p.Coordinator.SessionsLost == 1 {
			return
		}
	}
}

// TestDashboardShowsWhatTheMetricsSay holds every number of the coordinator and of its workers on the dashboard against the metric
// of that name, as the processes serve it, while nothing happens.
func TestDashboardShowsWhatTheMetricsSay(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 2, CoordinatorArgs: admin, WorkerArgs: admin})
	g, layers := generate(t, c)
	s, err := c.OpenSession(g.ctx, client.SessionOptions{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		g.step(s, i, i+1)
	}
	p, _ := watch(t, c.Admin(-1)).next()
	of := scrape(t, c.Admin(-1))
	compareFields(t, p.Coordinator, of, "headwater_coordinator_")
	if len(p.Workers) != c.Workers() {
		t.Fatalf("the dashboard has %d workers", len(p.Workers))
	}
	for i, w := range p.Workers {
		if w.Error != "" || !w.Counts || w.Steps == 0 || w.Read == 0 || w.Used == 0 {
			t.Errorf("the dashboard says of a worker %+v", w)
		}
		compareFields(t, w, scrape(t, c.Admin(i)), "headwater_worker_")
		its := maps.Clone(of)
		maps.DeleteFunc(its, func(metric string, _ float64) bool {
			return !strings.Contains(metric, fmt.Sprintf("worker=%q", w.Name))
		})
		compareFields(t, w.Answers, its, "headwater_coordinator_")
		if w.Answers.P95 == 0 {
			t.Errorf("the dashboard knows of no answer of %s", w.Name)
		}
	}
}

// compareFields holds each number of a struct against the metric that its JSON name says, summed over labels.
func compareFields(t *testing.T, of any, metrics map[string]float64, prefix string) {
	t.Helper()
	v := reflect.ValueOf(of)
	for i := range v.NumField() {
		name := prefix + v.Type().Field(i).Tag.Get("json")
		var got float64
		switch f := v.Field(i); f.Kind() {
		case reflect.Uint64:
			got = float64(f.Uint())
		case reflect.Float64:
			got = f.Float()
		case reflect.Map:
			for _, n := range f.Interface().(map[string]uint64) {
				got += float64(n)
			}
		default:
			continue
		}
		want, found := 0.0, false
		for metric, value := range metrics {
			if base, _, _ := strings.Cut(metric, "{"); base == name {
				want, found = want+value, true
			}
		}
		if !found || math.Abs(got-want) > 2e-9+1e-9*math.Abs(want) { // times are told in nanoseconds
			t.Errorf("the dashboard has %s = %v, the metric is %v (there: %v)", name, got, want, found)
		}
	}
}

func TestAdminPortKeepsProfilesToThisMachine(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 1, CoordinatorArgs: []string{"--admin", "0.0.0.0:0"}, WorkerArgs: admin})
	_, every, _ := strings.Cut(c.Admin(-1), "0.0.0.0:")
	for _, ask := range []struct {
		at, path, host string
		want           int
		says           string
	}{
		{c.Admin(0), "/debug/pprof/goroutine?debug=1", "", http.StatusOK, "goroutine profile"},
		{c.Admin(0), "/debug/pprof/goroutine?debug=1", "localhost", http.StatusOK, "goroutine profile"},
		{c.Admin(0), "/debug/pprof/", "rebound.example", http.StatusForbidden, "is not this machine's loopback"},
		{c.Admin(0), "/metrics", "worker.example", http.StatusOK, "headwater_worker_sessions"},
		{"127.0.0.1:" + every, "/debug/pprof/", "", http.StatusForbidden, "this is served on loopback alone"},
		{"127.0.0.1:" + every, "/metrics", "", http.StatusOK, "headwater_coordinator_jobs"},
		{c.Admin(0), "/", "", http.StatusNotFound, ""},
		{"127.0.0.1:" + every, "/", "", http.StatusForbidden, "this is served on loopback alone"},
		{"127.0.0.1:" + every, "/events", "", http.StatusForbidden, "this is served on loopback alone"},
		{c.Admin(0), "/nothing", "", http.StatusNotFound, ""},
	} {
		if code, body := get(t, ask.at, ask.path, ask.host); code != ask.want || !strings.Contains(body, ask.says) {
			t.Errorf("%s of %s as %q: %d %.200q, want %d %q", ask.path, ask.at, ask.host, code, body, ask.want, ask.says)
		}
	}
}

// TestDashboardLetsInWhoHasALogin serves a coordinator's dashboard on every address: by TLS to who has logged in, and without TLS
// to nobody.
func TestDashboardLetsInWhoHasALogin(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	cert, key := selfSigned(t, folder)
	logins := filepath.Join(folder, "logins")
	if err := os.WriteFile(logins, fmt.Appendf(nil, "alice viewer %x\n", sha256.Sum256([]byte("a token"))), 0o600); err != nil {
		t.Fatal(err)
	}
	plain := start(t, localcluster.Options{Workers: 1, CoordinatorArgs: []string{"--admin", "0.0.0.0:0", "--admin-logins", logins}})
	_, port, _ := strings.Cut(plain.Admin(-1), "0.0.0.0:")
	if code, body := get(t, "127.0.0.1:"+port, "/login", ""); code != http.StatusForbidden || !strings.Contains(body, "--admin-cert") {
		t.Errorf("without TLS: %d %q", code, body)
	}
	c := start(t, localcluster.Options{Workers: 1, CoordinatorArgs: []string{"--admin", "0.0.0.0:0", "--admin-logins", logins, "--admin-cert", cert, "--admin-key", key}})
	_, port, _ = strings.Cut(c.Admin(-1), "0.0.0.0:")
	text, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	known := x509.NewCertPool()
	known.AppendCertsFromPEM(text)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: known, ServerName: "headwater.example"}}
	t.Cleanup(transport.CloseIdleConnections)
	browser := &http.Client{Jar: jar, Transport: transport}
	for _, step := range []struct {
		form  url.Values
		at    string
		title string
	}{{nil, "/login", "log in"}, {url.Values{"token": {"no token"}}, "/login", "log in"}, {url.Values{"token": {"a token"}}, "/", "Headwater"}} {
		to := "https://127.0.0.1:" + port
		answer, err := browser.Get(to + "/")
		if step.form != nil {
			_ = answer.Body.Close()
			answer, err = browser.PostForm(to+"/login", step.form)
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(answer.Body)
		if err := errors.Join(err, answer.Body.Close()); err != nil || answer.StatusCode != http.StatusOK || answer.Request.URL.Path != step.at || !strings.Contains(string(b), step.title+"</title>") {
			t.Errorf("%v leads to %s, %s, %v", step.form, answer.Request.URL, answer.Status, err)
		}
	}
}

// selfSigned writes a certificate of headwater.example and its key.
func selfSigned(t *testing.T, folder string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"headwater.example"}, NotAfter: time.Now().Add(time.Hour)}
	public, err := x509.CreateCertificate(cryptorand.Reader, of, of, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(folder, "admin.crt"), filepath.Join(folder, "admin.key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: public}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
