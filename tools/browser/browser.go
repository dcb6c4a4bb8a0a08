// Package browser opens the dashboard in a headless Chromium, as people see it: for tests, for figures, and for pictures to look at.
//
// It is a module of its own, so that nobody who builds Headwater needs what drives a browser.
package browser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// ErrMissing is that the machine lacks a browser, or axe-core.
var ErrMissing = errors.New("make test-browser says what is needed and gets it")

// Find returns the path of Chromium: HEADWATER_CHROMIUM, or what PATH has.
func Find() (string, error) {
	if path := os.Getenv("HEADWATER_CHROMIUM"); path != "" {
		return path, nil
	}
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no Chromium is installed: %w", ErrMissing)
}

// Axe returns axe-core, from the file that HEADWATER_AXE names.
func Axe() (string, error) {
	path := os.Getenv("HEADWATER_AXE")
	if path == "" {
		return "", fmt.Errorf("HEADWATER_AXE names no axe.min.js: %w", ErrMissing)
	}
	text, err := os.ReadFile(path)
	return string(text), err
}

// Browser is a running Chromium. Close ends it.
type Browser struct {
	ctx    context.Context
	cancel []context.CancelFunc
}

// Start starts a browser, which ends with ctx as well.
func Start(ctx context.Context) (*Browser, error) {
	path, err := Find()
	if err != nil {
		return nil, err
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU)
	allocated, end := chromedp.NewExecAllocator(ctx, options...)
	first, endFirst := chromedp.NewContext(allocated)
	b := &Browser{ctx: first, cancel: []context.CancelFunc{endFirst, end}}
	if err := chromedp.Do(first); err != nil {
		b.Close()
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return b, nil
}

// Close ends the browser and waits for it.
func (b *Browser) Close() {
	_ = chromedp.Cancel(b.ctx) // It ends either way.
	for _, cancel := range b.cancel {
		cancel()
	}
}

// View is how a page is looked at.
type View struct {
	Width, Height int
	Dark          bool
}

func (v View) String() string {
	scheme := "light"
	if v.Dark {
		scheme = "dark"
	}
	return fmt.Sprintf("%d-%s", v.Width, scheme)
}

// Views are those at which the pages are looked at.
func Views() (all []View) {
	for _, size := range [][2]int{{360, 740}, {1024, 768}, {1920, 1080}} {
		all = append(all, View{size[0], size[1], false}, View{size[0], size[1], true})
	}
	return all
}

// Page is one tab. Its methods fail after Patience.
type Page struct {
	ctx   context.Context
	close context.CancelFunc
}

// Patience bounds each wait for a page. It is no measure of anything.
const Patience = time.Minute

// Open opens an address.
func (b *Browser) Open(address string, v View) (*Page, error) {
	ctx, closes := chromedp.NewContext(b.ctx)
	p := &Page{ctx, closes}
	if err := chromedp.Do(ctx); err != nil { // the tab lives as long as the context of its first call
		closes()
		return nil, fmt.Errorf("open a tab: %w", err)
	}
	scheme := "light"
	if v.Dark {
		scheme = "dark"
	}
	_, err := run(p, func(ctx context.Context, t *chromedp.Target) (_ chromedp.Void, err error) {
		size := emulation.SetDeviceMetricsOverrideParams{Width: int64(v.Width), Height: int64(v.Height), DeviceScaleFactor: 1, Mobile: v.Width < 600}
		if _, err := cdp.Call(ctx, t, emulation.SetDeviceMetricsOverride, size); err != nil {
			return chromedp.Void{}, err
		}
		media := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}
		if _, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, media); err != nil {
			return chromedp.Void{}, err
		}
		return chromedp.Navigate(address)(ctx, t)
	})
	if err != nil {
		closes()
		return nil, fmt.Errorf("open %s: %w", address, err)
	}
	return p, nil
}

// Close closes the tab.
func (p *Page) Close() { p.close() }

// run runs an action within Patience.
func run[T any](p *Page, a chromedp.Action[T]) (T, error) {
	ctx, cancel := context.WithTimeout(p.ctx, Patience)
	defer cancel()
	return chromedp.Run(ctx, a)
}

// Until waits until an expression of JavaScript is true, also beyond a navigation, in the midst of which nothing can be evaluated.
func (p *Page) Until(expression string) error {
	ctx, cancel := context.WithTimeout(p.ctx, Patience)
	defer cancel()
	looks := time.NewTicker(20 * time.Millisecond)
	defer looks.Stop()
	for {
		holds, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("Boolean("+expression+")"))
		if err == nil && holds {
			return nil
		}
		select {
		case <-looks.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", expression, errors.Join(ctx.Err(), err))
		}
	}
}

// Eval evaluates an expression, and waits for it if it is a promise.
func Eval[T any](p *Page, expression string) (T, error) {
	value, err := run(p, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		err = fmt.Errorf("evaluate %.80s: %w", expression, err)
	}
	return value, err
}

// Press presses keys.
func (p *Page) Press(keys string) error {
	_, err := run(p, chromedp.KeyEvent(keys))
	return err
}

// Shoot writes a picture of the whole page to a PNG file.
func (p *Page) Shoot(path string) error {
	png, err := run(p, chromedp.FullScreenshot(100))
	if err != nil {
		return fmt.Errorf("take a picture: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, png, 0o644)
}

// Finding is a rule of accessibility that a page breaks.
type Finding struct {
	Rule   string   `json:"id"`
	Impact string   `json:"impact"`
	Help   string   `json:"help"`
	Where  []string `json:"where"`
}

// Findings asks axe-core which rules a page breaks, the serious and the critical ones.
func (p *Page) Findings(axe string) (all []Finding, err error) {
	if _, err := Eval[chromedp.Void](p, axe); err != nil {
		return nil, err
	}
	return Eval[[]Finding](p, `axe.run(document, {resultTypes: ["violations"]}).then(r => r.violations
		.filter(v => v.impact === "serious" || v.impact === "critical")
		.map(v => ({id: v.id, impact: v.impact, help: v.help, where: v.nodes.slice(0, 5).map(n => n.target.join(" ") + ": " + n.failureSummary)})))`)
}
