// Command figures looks at the dashboard in a headless Chromium and prints one line "figure NAME VALUE" for each figure:
//
//	dash_kb          kilobytes until the map is seen: the page with all that it loads, and the events up to the first map, of a session
//	                 of 64 layers × 8 groups on 16 workers
//	dash_ms          milliseconds from opening the page until its map is drawn, the median of some loads
//	axe_violations   serious and critical findings of axe-core over the page and the login: with 1, 16 and 1,000 workers, 0 to 10,000
//	                 sessions, and attention open, at 360, 1,024 and 1,920 pixels, dark and light
//
// Without a browser or axe-core it names the figures that it leaves out.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"slices"
	"strings"

	"headwater.example/client"
	"headwater.example/internal/dashboard"
	"headwater.example/internal/localcluster"
	"headwater.example/tools/browser"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if errors.Is(err, browser.ErrMissing) {
		fmt.Fprintln(os.Stderr, "figures: dash_kb, dash_ms, axe_violations are left out:", err)
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	b, err := browser.Start(ctx)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := load(ctx, b); err != nil {
		return err
	}
	axe, err := browser.Axe()
	if err != nil {
		return err
	}
	found := 0
	for _, of := range []*browser.Fake{
		{Workers: 1, Layers: 2, Groups: 2}, {Workers: 16, Sessions: 30, Layers: 64, Groups: 8, Replicas: 1, Bad: true}, {Workers: 1000, Sessions: 10000, Layers: 64, Groups: 8},
	} {
		n, err := findings(b, of, axe)
		if err != nil {
			return err
		}
		found += n
	}
	fmt.Printf("figure axe_violations %d\n", found)
	return nil
}

const (
	workers, layers, groups = 16, 64, 8
	loads                   = 9
)

// load measures what it takes to see the map of a real cluster.
func load(ctx context.Context, b *browser.Browser) (err error) {
	admin := []string{"--admin", "127.0.0.1:0"}
	c, err := localcluster.Start(ctx, localcluster.Options{
		Workers: workers, Memory: 64 << 20, Threads: 1, Command: []string{os.Getenv("HEADWATER_COORD")}, CoordinatorArgs: admin, WorkerArgs: admin,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop(context.Background())) }()
	cl, err := client.Dial(c.Address())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cl.Close()) }()
	if _, err := cl.OpenSession(ctx, client.SessionOptions{Name: "figures", Layers: slices.Repeat([]client.Layer{{Heads: 4 * groups, KVHeads: groups, HeadDim: 64}}, layers)}); err != nil {
		return err
	}
	at := "http://" + c.Admin(-1)
	var took []float64
	bytes := 0.0
	for range loads {
		p, err := b.Open(at, browser.View{Width: 1920, Height: 1080})
		if err != nil {
			return err
		}
		if err := p.Until(fmt.Sprintf(`document.querySelectorAll("#map td").length === %d && performance.getEntriesByName("map").length === 1`, layers*groups)); err != nil {
			return err
		}
		ms, err := browser.Eval[float64](p, `performance.getEntriesByName("map")[0].startTime`)
		if err != nil {
			return err
		}
		took = append(took, ms)
		if bytes, err = browser.Eval[float64](p, `[...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")].reduce((n, e) => n + e.transferSize, 0)`); err != nil {
			return err
		}
		p.Close()
	}
	events, err := untilMap(ctx, at)
	if err != nil {
		return err
	}
	slices.Sort(took)
	fmt.Printf("figure dash_kb %.1f\nfigure dash_ms %.0f\n", (bytes+float64(events))/1000, took[len(took)/2])
	return nil
}

// untilMap returns the bytes of the events up to the first map.
func untilMap(ctx context.Context, at string) (n int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at+"/events", nil)
	if err != nil {
		return 0, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	lines := bufio.NewReader(answer.Body)
	for last := ""; ; {
		line, err := lines.ReadString('\n')
		n += len(line)
		if err != nil {
			return n, fmt.Errorf("wait for a map: %w", err)
		}
		if last == "event: map\n" {
			return n, nil
		}
		last = line
	}
}

// findings counts what axe-core finds on the pages of a cluster.
func findings(b *browser.Browser, of *browser.Fake, axe string) (found int, err error) {
	logins, err := dashboard.ReadLogins(strings.NewReader("someone viewer " + strings.Repeat("00", 32)))
	if err != nil {
		return 0, err
	}
	for page, keyed := range map[string]dashboard.Logins{"": nil, "/login#failed": logins} {
		d := dashboard.New(of, dashboard.Access{Logins: keyed}, slog.New(slog.NewTextHandler(io.Discard, nil)))
		s := httptest.NewServer(d)
		for _, v := range browser.Views() {
			n, err := look(b, s.URL+page, of, v, axe)
			if err != nil {
				return 0, err
			}
			found += n
		}
		s.CloseClientConnections()
		s.Close()
		d.Close()
	}
	return found, nil
}

// look counts what axe-core finds on a page once all of it is there.
func look(b *browser.Browser, at string, of *browser.Fake, v browser.View, axe string) (int, error) {
	p, err := b.Open(at, v)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	if !strings.Contains(at, "/login") {
		if err := p.Until(of.Seen()); err != nil {
			return 0, err
		}
		if of.Sessions > 0 {
			if _, err := browser.Eval[bool](p, `document.querySelector("#map td").click(), true`); err != nil {
				return 0, err
			}
			if err := p.Until(`document.querySelectorAll("#heads li").length === 4`); err != nil {
				return 0, err
			}
		}
	}
	all, err := p.Findings(axe)
	for _, f := range all {
		fmt.Fprintf(os.Stderr, "%v: %s: %s: %q\n", v, f.Rule, f.Help, f.Where)
	}
	return len(all), err
}
