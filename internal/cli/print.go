package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"time"

	"headwater.example/internal/layerproto"
	headwaterv1 "headwater.example/proto/headwater/v1"
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
	Lossy        bool          `json:"lossy"` // whether the codec loses bits of the contexts
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
		Codec: jobCodec(job), Lossy: lossy(job), ContentHash: job.GetContentHash(), SizeBytes: job.GetSizeBytes(),
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

// jobCodec is the codec of a job's contexts; empty if the coordinator is of before it was told.
func jobCodec(job *headwaterv1.Job) string {
	codec, err := layerproto.ReadContextCodec(job.GetCodec())
	if err != nil {
		return ""
	}
	return codec.String()
}

// lossy tells whether a job's codec loses bits of its contexts.
func lossy(job *headwaterv1.Job) bool {
	return job.GetCodec() > headwaterv1.ContextCodec_CONTEXT_CODEC_EXACT
}

// stateName is a job's state in one lower-case word.
func stateName(state headwaterv1.JobState) string {
	return strings.ToLower(strings.TrimPrefix(state.String(), "JOB_STATE_"))
}
