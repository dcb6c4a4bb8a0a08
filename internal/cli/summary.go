package cli

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"google.golang.org/protobuf/types/known/durationpb"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// printJob prints one job: what it is, and for one that succeeded its geometry, its plan and each worker's share.
func (a *app) printJob(job *headwaterv1.Job, out string) error {
	if a.json() {
		view := viewJob(job)
		view.Out = out
		return a.printJSON(view)
	}
	t := a.newTable("", "job", job.GetId())
	row := func(name, value string) {
		if value != "" {
			t.AppendRow(table.Row{name, value})
		}
	}
	row("name", job.GetName())
	row("key", job.GetKey())
	row("kind", job.GetKind())
	switch {
	case lossy(job):
		row("codec", jobCodec(job)+": contexts were narrowed, which loses bits")
	case jobCodec(job) != "":
		row("codec", jobCodec(job)+": no bit of a context is lost")
	}
	t.AppendRow(table.Row{"state", state(stateName(job.GetState()))})
	row("error", job.GetError())
	row("size", sizeOf(int64(job.GetSizeBytes())))
	row("content", job.GetContentHash())
	row("created", clock(job.GetCreated()))
	row("started", clock(job.GetStarted()))
	if job.GetAttempts() > 1 {
		row("attempts", fmt.Sprint(job.GetAttempts()))
	}
	if p := job.GetProgress(); p != nil && job.GetReport() == nil {
		row("progress", fmt.Sprintf("%s: %s of %s loaded, %d of %d answers", p.GetPhase(), sizeOf(int64(p.GetLoadedBytes())), sizeOf(int64(p.GetLoadBytes())), p.GetUnitsDone(), p.GetUnits()))
	}
	row("elapsed", elapsed(job, time.Now()))
	if job.GetResultBytes() > 0 {
		row("result", sizeOf(int64(job.GetResultBytes())))
		row("SHA-256", job.GetResultSha256())
	}
	row("written to", out)
	if err := a.printTable(t); err != nil {
		return err
	}
	report := job.GetReport()
	if report == nil {
		return nil
	}
	if len(report.GetPlan()) > 0 {
		plan, err := drawPlan(json.RawMessage(report.GetPlan()))
		if err != nil {
			return err
		}
		if err := a.say("\n"); err != nil {
			return err
		}
		if err := a.printPlan(plan); err != nil {
			return err
		}
	}
	return a.printShares(report)
}

// printShares prints what each worker was sent, what came back, and what it took.
func (a *app) printShares(report *headwaterv1.Report) error {
	t := a.newTable("\ntraffic and time", "worker", ">answers", ">sent", ">received", ">of raw", ">compute", ">wire")
	var sum headwaterv1.WorkerReport
	var compute, wire time.Duration
	for _, w := range report.GetWorkers() {
		note := ""
		if w.GetLost() {
			note = ", lost"
		}
		t.AppendRow(a.shareRow(w, note))
		sum.Units += w.GetUnits()
		sum.BytesOut += w.GetBytesOut()
		sum.BytesInRaw += w.GetBytesInRaw()
		sum.BytesInWire += w.GetBytesInWire()
		compute += w.GetCompute().AsDuration()
		wire += w.GetWire().AsDuration()
	}
	sum.Name, sum.Compute, sum.Wire = "all", durationpb.New(compute), durationpb.New(wire)
	note := ""
	if n := report.GetWorkersLost(); n > 0 {
		note = fmt.Sprintf(", %d lost", n)
	}
	t.AppendFooter(a.shareRow(&sum, note))
	if err := a.printTable(t); err != nil {
		return err
	}
	return a.say("elapsed %s\n", span(report.GetElapsed()))
}

func (a *app) shareRow(w *headwaterv1.WorkerReport, note string) table.Row {
	ratio := "-"
	if w.GetBytesInRaw() > 0 {
		ratio = fmt.Sprintf("%.3f", float64(w.GetBytesInWire())/float64(w.GetBytesInRaw()))
	}
	return table.Row{a.narrow(w.GetName(), 16) + note, w.GetUnits(), sizeOf(int64(w.GetBytesOut())), sizeOf(int64(w.GetBytesInWire())), ratio, span(w.GetCompute()), span(w.GetWire())}
}
