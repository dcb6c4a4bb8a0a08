package client

import (
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"headwater.example/attention"
	"headwater.example/internal/layerproto"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// JobState is the state of a job.
type JobState string

// The states, in the order of a job's life.
const (
	JobUploading JobState = "uploading" // its bytes are being received; a job that is interrupted here is forgotten
	JobQueued    JobState = "queued"    // durable, waits for its turn
	JobRunning   JobState = "running"   // at work on the cluster
	JobSucceeded JobState = "succeeded" // ended with a result
	JobFailed    JobState = "failed"    // ended with an error
	JobCancelled JobState = "cancelled" // ended by request

	// JobUnreachable is that of a job whose coordinator does not answer: what is said of it is what another one remembers.
	JobUnreachable JobState = "unreachable"
)

// JobStates has all states that a job can be in, in order.
var JobStates = []JobState{JobUploading, JobQueued, JobRunning, JobSucceeded, JobFailed, JobCancelled, JobUnreachable}

func jobState(s headwaterv1.JobState) JobState {
	return JobState(strings.ToLower(strings.TrimPrefix(s.String(), "JOB_STATE_")))
}

// Job is what a coordinator knows of one job.
type Job struct {
	ID           string // the coordinator's name, a dash and a ULID
	Key          string // the client's, or ""
	Name         string // for people
	Kind         string // "attention" or "layer"
	State        JobState
	Error        string                 // why it failed; one line
	ErrorCode    codes.Code             // of the error
	Codec        Codec                  // of its contexts; "" if the coordinator is too old to tell
	Arithmetics  []attention.Arithmetic // of its problems, each once; nil if the coordinator is too old to tell
	ContentHash  string                 // SHA-256 over the file's hash and the effective options, in hexadecimal; "" while it is not known
	SizeBytes    uint64                 // of the job file
	Created      time.Time              // when it was accepted
	Heard        time.Time              // when its coordinator was last heard of, of an unreachable one; else zero
	Started      time.Time              // when it last started; zero if it has not
	Ended        time.Time              // zero if it has not
	Attempts     int                    // how many times it was started
	Crashes      int                    // how many times the coordinator crashed while the job ran
	Progress     Progress               // of a job that runs or has ended
	Report       Report                 // of a job that succeeded
	ResultSHA256 string                 // of the result file, in hexadecimal; of a job that succeeded
	ResultBytes  uint64
}

// Progress is the progress of a job.
type Progress struct {
	LoadedBytes, LoadBytes uint64 // of keys, values and weights: loaded, and to load
	UnitsDone, Units       uint64 // answers (group and block): gathered, and to gather
	Phase                  string // what is being done, in a few words
}

// Report is the traffic and time of a job.
type Report struct {
	Workers     []WorkerReport
	Plan        []byte        // the geometry and the plan, as the JSON of docs/job-file.md
	Elapsed     time.Duration // from start to end
	WorkersLost int           // on the way
}

// WorkerReport is one worker's share in a job.
type WorkerReport struct {
	Name        string
	BytesOut    uint64        // keys, values, weights and queries sent to it
	BytesInRaw  uint64        // contexts and LSE that its answers stand for
	BytesInWire uint64        // frames that came back
	Compute     time.Duration // of its kernels, summed over its answers
	Wire        time.Duration // between sending a query and having its answer, neither waiting nor computing at the worker, summed
	Units       uint64        // answers that it gave
	Lost        bool          // before the job's end
}

// instant is the time of a message; zero if there is none.
func instant(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// newJob converts a job; nil stays nil.
func newJob(m *headwaterv1.Job) *Job {
	if m == nil {
		return nil
	}
	j := &Job{
		ID: m.GetId(), Key: m.GetKey(), Name: m.GetName(), Kind: m.GetKind(), State: jobState(m.GetState()), Error: m.GetError(),
		ErrorCode: codes.Code(m.GetErrorCode()), ContentHash: m.GetContentHash(), SizeBytes: m.GetSizeBytes(),
		Created: instant(m.GetCreated()), Heard: instant(m.GetHeard()), Started: instant(m.GetStarted()), Ended: instant(m.GetEnded()), Attempts: int(m.GetAttempts()), Crashes: int(m.GetCrashes()),
		ResultSHA256: m.GetResultSha256(), ResultBytes: m.GetResultBytes(),
	}
	if codec, err := layerproto.ReadContextCodec(m.GetCodec()); err == nil {
		j.Codec = Codec(codec.String())
	}
	for _, a := range m.GetArithmetics() {
		j.Arithmetics = append(j.Arithmetics, layerproto.ReadArithmetic(a))
	}
	p := m.GetProgress()
	j.Progress = Progress{p.GetLoadedBytes(), p.GetLoadBytes(), p.GetUnitsDone(), p.GetUnits(), p.GetPhase()}
	r := m.GetReport()
	j.Report = Report{Plan: r.GetPlan(), Elapsed: r.GetElapsed().AsDuration(), WorkersLost: int(r.GetWorkersLost())}
	for _, w := range r.GetWorkers() {
		j.Report.Workers = append(j.Report.Workers, WorkerReport{
			w.GetName(), w.GetBytesOut(), w.GetBytesInRaw(), w.GetBytesInWire(), w.GetCompute().AsDuration(), w.GetWire().AsDuration(), w.GetUnits(), w.GetLost(),
		})
	}
	return j
}

// Over reports whether the job has ended.
func (j *Job) Over() bool {
	return j.State == JobSucceeded || j.State == JobFailed || j.State == JobCancelled
}
