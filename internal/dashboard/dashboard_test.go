package dashboard

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve serves a dashboard of a source until the test ends.
func serve(t *testing.T, source Source) *httptest.Server {
	t.Helper()
	d := New(source, slog.New(slog.DiscardHandler))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", d.Page)
	mux.HandleFunc("GET /events", d.Events)
	s := httptest.NewServer(mux)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		d.Close()
	})
	return s
}

// look returns the first snapshots that a viewer is sent.
func look(t *testing.T, s *httptest.Server, n int) (all []Snapshot) {
	t.Helper()
	ctx, leave := context.WithTimeout(t.Context(), time.Minute)
	defer leave()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := s.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if kind := answer.Header.Get("Content-Type"); kind != "text/event-stream" {
		t.Fatalf("the events are %q", kind)
	}
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	for len(all) < n && lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var one Snapshot
			if err := json.Unmarshal([]byte(text), &one); err != nil {
				t.Fatal(err)
			}
			all = append(all, one)
		}
	}
	if len(all) < n {
		t.Fatalf("%d of %d snapshots came: %v", len(all), n, lines.Err())
	}
	return all
}

func TestViewersShareOnePictureAndNobodyAsksWhenNobodyLooks(t *testing.T) {
	var asked atomic.Int64
	s := serve(t, func(context.Context) (*Snapshot, error) {
		return &Snapshot{Coordinator: "c", Jobs: []Job{{Done: float64(asked.Add(1))}}}, nil
	})
	if asked.Load() != 0 {
		t.Error("the source was asked before anybody looked")
	}
	const viewers = 20
	done := make(chan Snapshot, viewers)
	for range viewers {
		go func() { done <- look(t, s, 2)[1] }()
	}
	for range viewers {
		if got := <-done; got.Coordinator != "c" {
			t.Errorf("a viewer sees %+v", got)
		}
	}
	if n := asked.Load(); n >= viewers {
		t.Errorf("%d viewers of two pictures made %d questions", viewers, n)
	}
}

func TestAnErrorIsShownAndNoOldPicture(t *testing.T) {
	s := serve(t, func(context.Context) (*Snapshot, error) { return nil, errors.New("the cluster is gone") })
	if got := look(t, s, 1)[0]; got.Error != "the cluster is gone" || got.Workers != nil {
		t.Errorf("a viewer sees %+v", got)
	}
}

func TestPageIsSmallAndAsksNobodyElse(t *testing.T) {
	s := serve(t, nil)
	answer, err := s.Client().Get(s.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if len(page) > 300_000 {
		t.Errorf("the page has %d bytes", len(page))
	}
	if found := regexp.MustCompile(`https?://|@import|<script src|<link[^>]+stylesheet|innerHTML`).Find(page); found != nil {
		t.Errorf("the page has %q", found)
	}
	if policy := answer.Header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") {
		t.Errorf("its policy is %q", policy)
	}
}
