package dashboard

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"headwater.example/internal/observe"
	"headwater.example/internal/testkit/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a cluster of functions.
type fake struct {
	picture func() (*Snapshot, error)
	maps    func(session string) (*Map, error)
	ended   []string // jobs and sessions
}

func (f *fake) Picture(context.Context) (*Snapshot, error) { return f.picture() }

func (f *fake) CancelJob(_ context.Context, job string) error {
	f.ended = append(f.ended, "job "+job)
	return nil
}

func (f *fake) DropSession(_ context.Context, session string) error {
	f.ended = append(f.ended, "session "+session)
	return nil
}

func (f *fake) WatchAttention(_ context.Context, look Look, send func(*Attention) error) error {
	if look.Session == "" {
		return errors.New("nobody holds it")
	}
	return send(&Attention{Position: int64(look.Layer), Start: int64(look.Group)})
}

func (f *fake) JobProblems(_ context.Context, job string) ([]Problem, error) {
	return []Problem{{Prefix: job}}, nil
}

func (f *fake) JobAttention(_ context.Context, look Look) (*Attention, error) {
	if look.Job == "" {
		return nil, errors.New("there is no such job")
	}
	return &Attention{Position: look.Query}, nil
}

func (f *fake) Map(_ context.Context, session string) (*Map, error) {
	if f.maps == nil {
		return &Map{Session: session}, nil
	}
	return f.maps(session)
}

// serve serves a dashboard of a cluster until the test ends.
func serve(t *testing.T, c Cluster) *httptest.Server {
	t.Helper()
	d := New(c, Access{}, slog.New(slog.DiscardHandler))
	s := httptest.NewServer(d)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		d.Close()
	})
	return s
}

// sent is what a viewer was sent.
type sent struct {
	pictures []Snapshot
	maps     []Map
}

// look returns what a viewer of a session is sent, until it has so many pictures and maps.
func look(t *testing.T, s *httptest.Server, session string, pictures, maps int) (got sent) {
	t.Helper()
	ctx, leave := context.WithTimeout(t.Context(), time.Minute)
	defer leave()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/events?session="+session, nil)
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
	kind := ""
	for (len(got.pictures) < pictures || len(got.maps) < maps) && lines.Scan() {
		switch name, text, _ := strings.Cut(lines.Text(), ": "); {
		case name == "event":
			kind = text
		case name == "data" && kind == "map":
			got.maps = append(got.maps, parsed[Map](t, text))
		case name == "data":
			got.pictures = append(got.pictures, parsed[Snapshot](t, text))
		case name == "":
			kind = ""
		}
	}
	if len(got.pictures) < pictures || len(got.maps) < maps {
		t.Fatalf("%d pictures and %d maps came: %v", len(got.pictures), len(got.maps), lines.Err())
	}
	return got
}

func parsed[T any](t *testing.T, text string) (value T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestViewersShareOnePictureAndNobodyAsksWhenNobodyLooks(t *testing.T) {
	var asked atomic.Int64
	s := serve(t, &fake{picture: func() (*Snapshot, error) {
		return &Snapshot{Name: "c", Jobs: []Job{{Done: float64(asked.Add(1))}}}, nil
	}})
	if asked.Load() != 0 {
		t.Error("the source was asked before anybody looked")
	}
	const viewers = 20
	done := make(chan Snapshot, viewers)
	for range viewers {
		go func() { done <- look(t, s, "", 2, 0).pictures[1] }()
	}
	for range viewers {
		if got := await.One(t, done, "what a viewer sees"); got.Name != "c" {
			t.Errorf("a viewer sees %+v", got)
		}
	}
	if n := asked.Load(); n >= viewers {
		t.Errorf("%d viewers of two pictures made %d questions", viewers, n)
	}
}

func TestAnErrorIsShownAndNoOldPicture(t *testing.T) {
	s := serve(t, &fake{picture: func() (*Snapshot, error) { return nil, errors.New("the cluster is gone") }})
	if got := look(t, s, "", 1, 0).pictures[0]; got.Error != "the cluster is gone" || got.Workers != nil {
		t.Errorf("a viewer sees %+v", got)
	}
}

func TestAViewerSeesTheMapOfItsSession(t *testing.T) {
	at := time.Now()
	s := serve(t, &fake{
		picture: func() (*Snapshot, error) {
			return &Snapshot{Sessions: []Session{{ID: "a", Used: at}, {ID: "b", Used: at.Add(time.Second)}, {ID: "c", Used: at}}}, nil
		},
		maps: func(session string) (*Map, error) {
			if session == "gone" {
				return nil, errors.New("nobody holds it")
			}
			return &Map{Session: session, Layers: []Layer{{Owner: []int{0}}}}, nil
		},
	})
	for asked, want := range map[string]Map{"": {Session: "b"}, "c": {Session: "c"}, "gone": {Session: "gone", Error: "nobody holds it"}} {
		if got := look(t, s, asked, 1, 1).maps[0]; got.Session != want.Session || got.Error != want.Error || (got.Error == "") != (len(got.Layers) == 1) {
			t.Errorf("who looks at %q sees %+v, want %+v", asked, got, want)
		}
	}
}

func TestAttentionIsSentOrWhyNot(t *testing.T) {
	s := serve(t, &fake{})
	for path, want := range map[string]string{
		"attention?session=a&layer=3&group=2": `data: {"position":3,"first_head":0,"start":2,`,
		"attention":                           "event: failed\ndata: {\"error\":\"nobody holds it\"}",
		"attention?session=a&layer=-1":        "invalid syntax",
		"job/attention?job=j&query=-7":        `{"position":-7,`,
		"job/attention":                       "there is no such job",
		"job/problems?job=j":                  `[{"prefix":"j",`,
	} {
		answer, err := s.Client().Get(s.URL + "/" + path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		if err := errors.Join(err, answer.Body.Close()); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s is answered with %q, %v, want %q", path, text, err, want)
		}
	}
}

// TestNumbersAreCalledByTheirMetrics holds each number of the coordinator and of its workers to a metric of that name.
func TestNumbersAreCalledByTheirMetrics(t *testing.T) {
	there := map[string]observe.Kind{}
	for _, m := range observe.All() {
		there[m.Name] = m.Kind
	}
	for of, prefix := range map[reflect.Type]string{
		reflect.TypeFor[Totals]():  "headwater_coordinator_",
		reflect.TypeFor[Worker]():  "headwater_worker_",
		reflect.TypeFor[Answers](): "headwater_coordinator_",
	} {
		for field := range of.Fields() {
			name := field.Tag.Get("json")
			switch field.Type.Kind() {
			case reflect.String, reflect.Bool, reflect.Struct:
				continue
			}
			base, part := strings.CutSuffix(prefix+name, "_count")
			if !part {
				base, part = strings.CutSuffix(base, "_sum")
			}
			if kind, ok := there[base]; !ok || part != (kind == observe.Histogram) {
				t.Errorf("%s: there is no metric %s%s", field.Name, prefix, name)
			}
		}
	}
}

func TestPagesAreSmallAndAskNobodyElse(t *testing.T) {
	s := serve(t, &fake{})
	known := map[string]bool{}
	for _, m := range observe.All() {
		for _, part := range []string{"", "_count", "_sum"} {
			known[m.Name+part] = true
		}
	}
	size := 0
	for _, name := range []string{"", "style.css", "lib.js", "map.js", "attention.js", "app.js", "login"} {
		answer, err := s.Client().Get(s.URL + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		if err := errors.Join(err, answer.Body.Close()); err != nil || answer.StatusCode != http.StatusOK {
			t.Fatalf("%q: %s, %v", name, answer.Status, err)
		}
		size += len(text)
		if found := regexp.MustCompile(`https?://|@import|innerHTML|insertAdjacentHTML|document\.write|eval\(`).Find(text); found != nil {
			t.Errorf("%q has %q", name, found)
		}
		if policy := answer.Header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") || strings.Contains(policy, "unsafe") {
			t.Errorf("the policy of %q is %q", name, policy)
		}
		for _, metric := range regexp.MustCompile(`headwater_\w+`).FindAll(text, -1) {
			if !known[string(metric)] {
				t.Errorf("%q names the metric %s, which there is not", name, metric)
			}
		}
	}
	if size > 300_000 {
		t.Errorf("the pages have %d bytes", size)
	}
}
