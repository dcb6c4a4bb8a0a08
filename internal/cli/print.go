package cli

import (
	"bytes"
	"encoding/json"
	"time"

	"headwater.example/client"
)

// json tells whether results are to be printed as JSON.
func (a *app) json() bool { return a.global.output == "json" }

// wide tells whether tables are to have all there is.
func (a *app) wide() bool { return a.global.output == "wide" }

// printJSON prints a value as indented JSON.
func (a *app) printJSON(value any) error {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return err
	}
	_, err := a.Out.Write(escapeJSON(text.Bytes()))
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
	Codec        string        `json:"codec"`
	Lossy        bool          `json:"lossy"`                 // whether the codec loses bits of the contexts
	Arithmetics  []string      `json:"arithmetics,omitempty"` // of the problems, each once
	ContentHash  string        `json:"content_hash"`
	SizeBytes    uint64        `json:"size_bytes"`
	Created      *time.Time    `json:"created,omitempty"`
	Heard        *time.Time    `json:"heard,omitempty"` // of an unreachable job, its coordinator
	Started      *time.Time    `json:"started,omitempty"`
	Ended        *time.Time    `json:"ended,omitempty"`
	Attempts     int           `json:"attempts"`
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
	WorkersLost    int               `json:"workers_lost"`
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

func viewJob(job *client.Job) jobView {
	v := jobView{
		ID: job.ID, Key: job.Key, Name: job.Name, State: string(job.State), Error: job.Error, Kind: job.Kind,
		Codec: string(job.Codec), Lossy: lossy(job), ContentHash: job.ContentHash, SizeBytes: job.SizeBytes,
		Created: when(job.Created), Heard: when(job.Heard), Started: when(job.Started), Ended: when(job.Ended), Attempts: job.Attempts,
		ResultSHA256: job.ResultSHA256, ResultBytes: job.ResultBytes,
	}
	for _, one := range job.Arithmetics {
		v.Arithmetics = append(v.Arithmetics, one.String())
	}
	if p := job.Progress; p != (client.Progress{}) {
		v.Progress = &progressView{p.Phase, p.LoadedBytes, p.LoadBytes, p.UnitsDone, p.Units}
	}
	if r := job.Report; job.State == client.JobSucceeded {
		v.Report = &reportView{ElapsedSeconds: r.Elapsed.Seconds(), WorkersLost: r.WorkersLost, Workers: []workerShareView{}}
		if json.Valid(r.Plan) {
			v.Report.Plan = r.Plan
		}
		for _, w := range r.Workers {
			v.Report.Workers = append(v.Report.Workers, workerShareView{
				w.Name, w.BytesOut, w.BytesInRaw, w.BytesInWire,
				w.Compute.Seconds(), w.Wire.Seconds(), w.Units, w.Lost,
			})
		}
	}
	return v
}

// lossy tells whether a job's codec loses bits of its contexts.
func lossy(job *client.Job) bool { return job.Codec != "" && job.Codec != client.Exact }
