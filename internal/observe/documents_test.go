package observe_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"go.yaml.in/yaml/v3"

	"headwater.example/coordinator"
	"headwater.example/internal/membership"
	"headwater.example/internal/observe"
	"headwater.example/worker"
)

// processes are the metrics of a worker and of a coordinator as the programs make them.
func processes(t *testing.T) map[observe.Role]prometheus.Gatherer {
	t.Helper()
	ofWorker, ofCoordinator := observe.NewWorker(), observe.NewCoordinator()
	w, err := worker.New(worker.Config{Name: "w", Boot: uuid.New(), Version: "v1", Weight: 1, Budget: 1 << 20, Threads: 1, Observe: ofWorker})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	c, err := coordinator.Open(coordinator.Config{Name: "c", Version: "v1", DataDir: t.TempDir(), View: membership.Static(nil), Observe: ofCoordinator})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	t.Cleanup(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return map[observe.Role]prometheus.Gatherer{observe.OfWorker: ofWorker.Gatherer(), observe.OfCoordinator: ofCoordinator.Gatherer()}
}

func gather(t *testing.T, g prometheus.Gatherer) []*dto.MetricFamily {
	t.Helper()
	all, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// ours says whether a metric is Headwater's own.
func ours(name string) bool { return strings.HasPrefix(name, "headwater_") }

func TestEveryMetricIsServedByItsProcessAndNoOther(t *testing.T) {
	for role, g := range processes(t) {
		served := map[string]*dto.MetricFamily{}
		for _, f := range gather(t, g) {
			served[f.GetName()] = f
		}
		for _, m := range observe.All() {
			f := served[m.Name]
			delete(served, m.Name)
			if m.Label == "worker" && m.Who&role != 0 && f == nil {
				continue // no worker was asked anything
			}
			if (m.Who&role != 0) != (f != nil) {
				t.Errorf("%s: served by role %d: %v", m.Name, role, f != nil)
				continue
			}
			if f == nil {
				continue
			}
			if got := strings.ToLower(f.GetType().String()); got != string(m.Kind) || f.GetHelp() != m.Help {
				t.Errorf("%s is a %s %q, in the table a %s %q", m.Name, got, f.GetHelp(), m.Kind, m.Help)
			}
			var values []string
			for _, one := range f.GetMetric() {
				for _, l := range one.GetLabel() {
					if l.GetName() != m.Label {
						t.Errorf("%s has the label %s", m.Name, l.GetName())
					}
					values = append(values, l.GetValue())
				}
			}
			if m.Of != nil && !slices.Equal(slices.Sorted(slices.Values(values)), slices.Sorted(slices.Values(m.Of))) {
				t.Errorf("%s has %s = %v, in the table %v", m.Name, m.Label, values, m.Of)
			}
		}
		for name := range served {
			if ours(name) {
				t.Errorf("%s is served and not in the table", name)
			}
		}
	}
}

func TestMetricsKeepPrometheusRules(t *testing.T) {
	for _, g := range processes(t) {
		problems, err := promlint.NewWithMetricFamilies(gather(t, g)).Lint()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// TestPromtool gives the metrics to promtool, where HEADWATER_PROMTOOL names it.
func TestPromtool(t *testing.T) {
	promtool := os.Getenv("HEADWATER_PROMTOOL")
	if promtool == "" {
		t.Skip("make test-alerts builds promtool")
	}
	for _, g := range processes(t) {
		var text bytes.Buffer
		encoder := expfmt.NewEncoder(&text, expfmt.NewFormat(expfmt.TypeTextPlain))
		for _, f := range gather(t, g) {
			if err := encoder.Encode(f); err != nil {
				t.Fatal(err)
			}
		}
		check := exec.CommandContext(t.Context(), promtool, "check", "metrics", "--extended")
		check.Stdin = &text
		if said, err := check.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, said)
		}
	}
}

const tableBegin, tableEnd = "HEADWATER_METRICS=write go test ./internal/observe writes it -->\n", "<!-- metrics end -->\n"

func TestMetricsAreDocumented(t *testing.T) {
	var table strings.Builder
	table.WriteString("| metric | type | label | process | meaning |\n| --- | --- | --- | --- | --- |\n")
	process := map[observe.Role]string{observe.OfWorker: "worker", observe.OfCoordinator: "coordinator", observe.Both: "both"}
	for _, m := range observe.All() {
		label := ""
		if m.Label != "" {
			label = "`" + m.Label + "`"
			if m.Of != nil {
				label += ": " + strings.Join(m.Of, ", ")
			}
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s | %s |\n", m.Name, m.Kind, label, process[m.Who], m.Help)
	}
	path := "../../docs/metrics.md"
	text := read(t, path)
	before, rest, ok := strings.Cut(text, tableBegin)
	old, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the metrics", path)
	}
	if old == table.String() {
		return
	}
	if os.Getenv("HEADWATER_METRICS") == "write" {
		if err := os.WriteFile(path, []byte(before+tableBegin+table.String()+tableEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("the table in %s is not what the programs serve; HEADWATER_METRICS=write go test ./internal/observe writes it anew", path)
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var metricName = regexp.MustCompile(`headwater_\w+`)

// unknown returns the metrics that a query names and that there are not.
func unknown(query string) (names []string) {
	known := map[string]observe.Kind{}
	for _, m := range observe.All() {
		known[m.Name] = m.Kind
	}
	for _, name := range metricName.FindAllString(query, -1) {
		kind, ok := known[name]
		if ok && kind != observe.Histogram {
			continue
		}
		found := false
		for _, part := range []string{"_bucket", "_sum", "_count"} {
			base, is := strings.CutSuffix(name, part)
			found = found || is && known[base] == observe.Histogram
		}
		if !found {
			names = append(names, name)
		}
	}
	return names
}

func TestGrafanaNamesOnlyMetricsThatThereAre(t *testing.T) {
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "../../docs/monitoring/grafana.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	queries := 0
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			queries++
			if bad := unknown(target.Expr); bad != nil || !metricName.MatchString(target.Expr) {
				t.Errorf("panel %q asks for %v: %s", p.Title, bad, target.Expr)
			}
		}
	}
	if queries == 0 {
		t.Error("the dashboard asks for nothing")
	}
}

func TestAlertsNameMetricsAndHaveARunbookAndATest(t *testing.T) {
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "../../docs/monitoring/alerts.yaml")), &rules); err != nil {
		t.Fatal(err)
	}
	runbook, tests := read(t, "../../docs/monitoring/runbook.md"), read(t, "../../docs/monitoring/alerts.test.yaml")
	alerts := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			alerts++
			if bad := unknown(r.Expr); bad != nil {
				t.Errorf("%s asks for %v", r.Alert, bad)
			}
			if !strings.Contains(runbook, "\n## "+r.Alert+"\n") || r.Annotations["runbook"] != "docs/monitoring/runbook.md#"+strings.ToLower(r.Alert) {
				t.Errorf("%s has no section in the runbook, or does not name it", r.Alert)
			}
			if !regexp.MustCompile(`alertname: ` + r.Alert + `\n\s+exp_alerts:\n`).MatchString(tests) {
				t.Errorf("%s has no test in which it fires", r.Alert)
			}
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^## (Headwater\w+)$`).FindAllStringSubmatch(runbook, -1) {
		if alerts--; !strings.Contains(read(t, "../../docs/monitoring/alerts.yaml"), "alert: "+m[1]+"\n") {
			t.Errorf("the runbook has %s, which is no alert", m[1])
		}
	}
	if alerts != 0 {
		t.Errorf("%d alerts more than sections of the runbook", alerts)
	}
	if bad := unknown(runbook); bad != nil {
		for _, name := range bad {
			if !slices.ContainsFunc(observe.All(), func(m observe.Metric) bool { return m.Name == name }) {
				t.Errorf("the runbook names %s", name)
			}
		}
	}
}

// TestLogKeysAreDocumented holds the logs of the programs to one schema: the keys in docs/metrics.md.
func TestLogKeysAreDocumented(t *testing.T) {
	used := map[string]string{}
	for _, folder := range []string{"coordinator", "worker", "internal/rpc", "internal/membership", "internal/cli", "internal/observe", "internal/dashboard"} {
		err := filepath.WalkDir(filepath.Join("../..", folder), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					for _, key := range keys(call) {
						used[key] = path
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	documented := map[string]bool{}
	_, logs, _ := strings.Cut(read(t, "../../docs/metrics.md"), "\n## Logs\n")
	for _, m := range regexp.MustCompile("(?m)^\\| ((?:`\\w+`(?:, )?)+) \\|").FindAllStringSubmatch(logs, -1) {
		for key := range strings.SplitSeq(m[1], ", ") {
			documented[strings.Trim(key, "`")] = true
		}
	}
	for _, key := range slices.Sorted(maps.Keys(used)) {
		if !documented[key] {
			t.Errorf("%s logs with the key %q, which docs/metrics.md does not have", used[key], key)
		}
		delete(documented, key)
	}
	for key := range documented {
		t.Errorf("docs/metrics.md has the key %q, with which nothing logs", key)
	}
}

// keys are the keys that a call of a logger names, if it is one.
func keys(call *ast.CallExpr) (names []string) {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil
	}
	if of, ok := method.X.(*ast.Ident); ok && of.Name == "slog" {
		switch method.Sel.Name {
		case "String", "Int", "Int64", "Duration", "Any", "Bool", "Float64":
			if key, ok := call.Args[0].(*ast.BasicLit); ok {
				return literal(key)
			}
		}
		return nil
	}
	from, ok := map[string]int{"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "Log": 3, "With": 0}[method.Sel.Name]
	if !ok || !logger(method.X) {
		return nil
	}
	for i := from; i < len(call.Args); i += 2 {
		names = append(names, literal(call.Args[i])...)
	}
	return names
}

// logger says whether an expression is a logger, by its name.
func logger(x ast.Expr) bool {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name == "log"
	case *ast.SelectorExpr:
		return slices.Contains([]string{"log", "Log", "Logger"}, x.Sel.Name)
	case *ast.CallExpr:
		f, ok := x.Fun.(*ast.SelectorExpr)
		return ok && f.Sel.Name == "logger"
	}
	return false
}

func literal(x ast.Expr) []string {
	switch x := x.(type) {
	case *ast.BasicLit:
		if s, err := strconv.Unquote(x.Value); err == nil {
			return []string{s}
		}
	case *ast.BinaryExpr: // a name and bytesKey
		if base := literal(x.X); base != nil {
			return []string{base[0] + "_bytes"}
		}
	}
	return nil
}

func TestCountingTakesNoMemory(t *testing.T) {
	w, c := observe.NewWorker(), observe.NewCoordinator()
	var none *observe.Worker
	for name, f := range map[string]func(){
		"worker": func() {
			w.Step(1, 1, 1, 1)
			w.Kernel(observe.Session, 1, 1)
			w.Context(observe.CodecOf("exact"), 1, 1)
		},
		"coordinator": func() { c.Step(2, 1) },
		"nil":         func() { none.Step(1, 1, 1, 1) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
