package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// json tells whether results are to be printed as JSON.
func (a *app) json() bool { return a.global.output == "json" }

// printJSON prints a value as indented JSON.
func (a *app) printJSON(value any) error {
	encoder := json.NewEncoder(a.Out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// titled is a table with a line above it: go-pretty would wrap a title to the table's width.
type titled struct {
	table.Writer
	title string
}

// newTable makes a table in the house's style. Columns whose header begins with ">" are aligned to the right.
func newTable(title string, header ...string) titled {
	t := titled{table.NewWriter(), title}
	style := table.StyleLight
	style.Format.Header = text.FormatDefault
	style.Format.Footer = text.FormatDefault
	style.Options.SeparateColumns = false
	style.Options.DrawBorder = false
	t.SetStyle(style)
	row := make(table.Row, len(header))
	var columns []table.ColumnConfig
	for i, name := range header {
		config := table.ColumnConfig{Number: i + 1}
		if right, ok := strings.CutPrefix(name, ">"); ok {
			name = right
			config.Align, config.AlignHeader, config.AlignFooter = text.AlignRight, text.AlignRight, text.AlignRight
		}
		row[i] = name
		columns = append(columns, config)
	}
	t.AppendHeader(row)
	t.SetColumnConfigs(columns)
	t.SuppressTrailingSpaces()
	return t
}

// printTable prints a table and an empty line before it, except at the top.
func (a *app) printTable(t titled) error {
	if t.title != "" {
		if _, err := fmt.Fprintln(a.Out, t.title); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(a.Out, t.Render())
	return err
}

// jobView is a job as scripts read it.
type jobView struct {
	ID           string        `json:"id"`
	Key          string        `json:"key,omitempty"`
	Name         string        `json:"name"`
	State        string        `json:"state"`
	Error        string        `json:"error,omitempty"`
	Kind         string        `json:"kind"`
	ContentHash  string        `json:"content_hash"`
	SizeBytes    uint64        `json:"size_bytes"`
	Created      *time.Time    `json:"created,omitempty"`
	Started      *time.Time    `json:"started,omitempty"`
	Ended        *time.Time    `json:"ended,omitempty"`
	Attempts     uint32        `json:"attempts"`
	Progress     *progressView `json:"progress,omitempty"`
	Report       *reportView   `json:"report,omitempty"`
	ResultSHA256 string        `json:"result_sha256,omitempty"`
	ResultBytes  uint64        `json:"result_bytes,omitempty"`
	Out          string        `json:"out,omitempty"`
}

type progressView struct {
	Phase       string `json:"phase"`
	LoadedBytes uint64 `json:"loaded_bytes"`
	LoadBytes   uint64 `json:"load_bytes"`
	UnitsDone   uint64 `json:"units_done"`
	Units       uint64 `json:"units"`
}

type reportView struct {
	ElapsedSeconds float64           `json:"elapsed_seconds"`
	WorkersLost    uint32            `json:"workers_lost"`
	Workers        []workerShareView `json:"workers"`
	Plan           json.RawMessage   `json:"plan,omitempty"`
}

type workerShareView struct {
	Name           string  `json:"name"`
	BytesOut       uint64  `json:"bytes_out"`
	BytesInRaw     uint64  `json:"bytes_in_raw"`
	BytesInWire    uint64  `json:"bytes_in_wire"`
	ComputeSeconds float64 `json:"compute_seconds"`
	WireSeconds    float64 `json:"wire_seconds"`
	Units          uint64  `json:"units"`
	Lost           bool    `json:"lost"`
}

func viewJob(job *headwaterv1.Job) jobView {
	v := jobView{
		ID: job.GetId(), Key: job.GetKey(), Name: job.GetName(), State: stateName(job.GetState()), Error: job.GetError(), Kind: job.GetKind(),
		ContentHash: job.GetContentHash(), SizeBytes: job.GetSizeBytes(),
		Created: when(job.GetCreated()), Started: when(job.GetStarted()), Ended: when(job.GetEnded()), Attempts: job.GetAttempts(),
		ResultSHA256: job.GetResultSha256(), ResultBytes: job.GetResultBytes(),
	}
	if p := job.GetProgress(); p != nil {
		v.Progress = &progressView{p.GetPhase(), p.GetLoadedBytes(), p.GetLoadBytes(), p.GetUnitsDone(), p.GetUnits()}
	}
	if r := job.GetReport(); r != nil {
		v.Report = &reportView{ElapsedSeconds: r.GetElapsed().AsDuration().Seconds(), WorkersLost: r.GetWorkersLost(), Workers: []workerShareView{}}
		if json.Valid(r.GetPlan()) {
			v.Report.Plan = r.GetPlan()
		}
		for _, w := range r.GetWorkers() {
			v.Report.Workers = append(v.Report.Workers, workerShareView{
				w.GetName(), w.GetBytesOut(), w.GetBytesInRaw(), w.GetBytesInWire(),
				w.GetCompute().AsDuration().Seconds(), w.GetWire().AsDuration().Seconds(), w.GetUnits(), w.GetLost(),
			})
		}
	}
	return v
}

// stateName is a job's state in one lower-case word.
func stateName(state headwaterv1.JobState) string {
	return strings.ToLower(strings.TrimPrefix(state.String(), "JOB_STATE_"))
}

// when is a time, nil where there is none.
func when(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	at := t.AsTime()
	return &at
}

// clock prints a time for people, in local time.
func clock(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format(time.DateTime)
}

// span prints a duration for people: three digits are enough.
func span(d *durationpb.Duration) string {
	value := d.AsDuration()
	switch {
	case value >= time.Minute:
		return value.Round(time.Second).String()
	case value >= time.Second:
		return value.Round(10 * time.Millisecond).String()
	case value >= time.Millisecond:
		return value.Round(10 * time.Microsecond).String()
	}
	return value.String()
}
