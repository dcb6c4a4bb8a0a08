package browser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"headwater.example/internal/dashboard"
)

var shared struct {
	once    sync.Once
	browser *Browser
	err     error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.browser != nil {
		shared.browser.Close()
	}
	os.Exit(code)
}

// open opens a page in the tests' browser, until the test ends.
func open(t *testing.T, address string, v View) *Page {
	t.Helper()
	shared.once.Do(func() { shared.browser, shared.err = Start(context.Background()) })
	if errors.Is(shared.err, ErrMissing) {
		t.Skip(shared.err)
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	p, err := shared.browser.Open(address, v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// serve serves the dashboard of a cluster until the test ends.
func serve(t *testing.T, c dashboard.Cluster) string {
	t.Helper()
	d := dashboard.New(c, dashboard.Access{}, slog.New(slog.DiscardHandler))
	s := httptest.NewServer(d)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		d.Close()
	})
	return s.URL
}

func (p *Page) until(t *testing.T, expression string) {
	t.Helper()
	if err := p.Until(expression); err != nil {
		t.Fatal(err)
	}
}

func eval[T any](t *testing.T, p *Page, expression string) T {
	t.Helper()
	v, err := Eval[T](p, expression)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// click clicks the first element that a selector finds.
func (p *Page) click(t *testing.T, selector string) {
	t.Helper()
	eval[bool](t, p, fmt.Sprintf(`document.querySelector(%q).click(), true`, selector))
}

// shoot keeps a picture, if HEADWATER_SHOTS names a folder.
func (p *Page) shoot(t *testing.T, name string) {
	t.Helper()
	if folder := os.Getenv("HEADWATER_SHOTS"); folder != "" {
		if err := p.Shoot(filepath.Join(folder, name+".png")); err != nil {
			t.Fatal(err)
		}
	}
}

// readable holds a page to what every page is to be: within its width, and without serious findings of axe-core.
func (p *Page) readable(t *testing.T) {
	t.Helper()
	if wide := eval[[2]float64](t, p, `[document.documentElement.scrollWidth, innerWidth]`); wide[0] > wide[1] {
		t.Errorf("the page is %v pixels wide, the window %v", wide[0], wide[1])
	}
	axe, err := Axe()
	if errors.Is(err, ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	found, err := p.Findings(axe)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Errorf("%s: %s: %s: %q", f.Impact, f.Rule, f.Help, f.Where)
	}
}

func TestThePageIsReadableAtEverySize(t *testing.T) {
	for name, c := range map[string]*Fake{
		"small": {Workers: 1, Sessions: 0, Layers: 2, Groups: 2},
		"usual": {Workers: 16, Sessions: 30, Layers: 64, Groups: 8, Replicas: 1, Bad: true},
		"large": {Workers: 1000, Sessions: 10000, Layers: 64, Groups: 8},
	} {
		address := serve(t, c)
		for _, v := range Views() {
			t.Run(fmt.Sprintf("%s-%v", name, v), func(t *testing.T) {
				p := open(t, address, v)
				p.until(t, c.Seen())
				p.until(t, `[...document.querySelectorAll("#workers td:nth-child(4)")].some(td => !td.hidden && td.textContent !== "–")`) // two pictures have come
				if c.Sessions > 0 {
					p.click(t, `#map td`)
					p.until(t, `document.querySelectorAll("#heads li").length === 4`)
				}
				p.shoot(t, fmt.Sprintf("%s-%v", name, v))
				p.readable(t)
			})
		}
	}
}

func TestTheMapIsWalkedByKeyboard(t *testing.T) {
	p := open(t, serve(t, &Fake{Workers: 4, Sessions: 2, Layers: 12, Groups: 4}), View{1024, 768, false})
	p.until(t, `document.querySelectorAll("#map td").length === 48`)
	for range 40 { // Tab reaches the map
		if eval[bool](t, p, `document.activeElement.matches("#map td")`) {
			break
		}
		if err := p.Press(kb.Tab); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct{ key, at string }{
		{"", "0 0"}, {kb.ArrowRight, "0 1"}, {kb.ArrowDown, "1 1"}, {kb.End, "1 3"}, {kb.PageDown, "9 3"}, {kb.PageDown, "11 3"}, {kb.Home, "11 0"}, {kb.ArrowLeft, "11 0"}, {kb.ArrowUp, "10 0"},
	} {
		if step.key != "" {
			if err := p.Press(step.key); err != nil {
				t.Fatal(err)
			}
		}
		if at := eval[string](t, p, `document.activeElement.dataset.at ?? document.activeElement.tagName`); at != step.at {
			t.Fatalf("the focus is at %q, want %q", at, step.at)
		}
	}
	first := eval[string](t, p, `document.querySelector("#state").textContent`)
	p.until(t, fmt.Sprintf(`document.querySelector("#state").textContent !== %q`, first))
	if at := eval[string](t, p, `document.activeElement.dataset.at`); at != "10 0" {
		t.Errorf("the next picture moved the focus to %q", at)
	}
}

// TestASilentCoordinatorIsSaid: if nothing comes for more than 15 s, the page says since when, though the connection stands. The
// test has its own clock, and lets the page look at it so often that it would have noticed.
func TestASilentCoordinatorIsSaid(t *testing.T) {
	c := &Silent{Fake: Fake{Workers: 1, Layers: 1, Groups: 1}}
	c.speak()
	p := open(t, serve(t, c), View{1024, 768, false})
	p.until(t, `!document.body.classList.contains("stale")`)
	eval[bool](t, p, `window.clock = Date.now(), window.looks = 0, Date.now = () => { looks++; return clock }, true`)
	first := eval[string](t, p, `document.querySelector("#state").textContent`)
	p.until(t, fmt.Sprintf(`document.querySelector("#state").textContent !== %q`, first)) // it was heard at the clock's time
	c.fallSilent()
	for _, ms := range []int{0, 14_000, 15_000} {
		eval[bool](t, p, fmt.Sprintf(`window.clock += %d - (window.waited ?? 0), window.waited = %d, window.looks = 0, true`, ms, ms))
		p.until(t, `window.looks >= 2`)
		if stale := eval[bool](t, p, `document.body.classList.contains("stale")`); stale {
			t.Errorf("after %d ms the page says that it is not connected", ms)
		}
	}
	at := strings.TrimPrefix(eval[string](t, p, `document.querySelector("#state").textContent`), "as of ")
	eval[bool](t, p, `window.clock += 1, true`)
	p.until(t, fmt.Sprintf(`document.body.classList.contains("stale") && document.querySelector("#state").textContent === "not connected since %s"`, at))
	p.shoot(t, "silent")
	eval[bool](t, p, `window.clock += 60_000, true`)
	c.speak()
	p.until(t, `!document.body.classList.contains("stale") && document.querySelector("#state").textContent.startsWith("as of ")`)
}

func TestTheLoginIsReadable(t *testing.T) {
	logins, err := dashboard.ReadLogins(strings.NewReader("someone viewer " + strings.Repeat("00", 32)))
	if err != nil {
		t.Fatal(err)
	}
	d := dashboard.New(&Fake{}, dashboard.Access{Logins: logins}, slog.New(slog.DiscardHandler))
	s := httptest.NewServer(d)
	defer d.Close()
	defer s.Close()
	for _, v := range Views() {
		t.Run(v.String(), func(t *testing.T) {
			p := open(t, s.URL, v) // a stranger is sent to the login
			p.until(t, `location.pathname === "/login"`)
			if shown := eval[bool](t, p, `getComputedStyle(document.querySelector("#failed")).display !== "none"`); shown {
				t.Error("a login is said to have failed that nobody tried")
			}
			eval[bool](t, p, `document.querySelector("input").focus(), true`)
			if err := p.Press("no token" + kb.Enter); err != nil {
				t.Fatal(err)
			}
			p.until(t, `location.hash === "#failed" && getComputedStyle(document.querySelector("#failed")).display !== "none"`)
			p.shoot(t, "login-"+v.String())
			p.readable(t)
		})
	}
}
