package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"headwater.example/client"
)

// printJob prints one job: what it is, and for one that succeeded its geometry, its plan and each worker's share.
func (a *app) printJob(job *client.Job, out string) error {
	if a.json() {
		view := viewJob(job)
		view.Out = out
		return a.printJSON(view)
	}
	t := a.newTable("", "job", job.ID)
	row := func(name, value string) {
		if value != "" {
			t.AppendRow(table.Row{name, value})
		}
	}
	row("name", job.Name)
	row("key", job.Key)
	row("kind", job.Kind)
	switch {
	case lossy(job):
		row("codec", string(job.Codec)+": contexts were narrowed, which loses bits")
	case string(job.Codec) != "":
		row("codec", string(job.Codec)+": no bit of a context is lost")
	}
	row("arithmetic", strings.Join(viewJob(job).Arithmetics, " and "))
	t.AppendRow(table.Row{"state", state(string(job.State))})
	row("error", job.Error)
	row("size", sizeOf(int64(job.SizeBytes)))
	row("content", job.ContentHash)
	row("created", clock(job.Created))
	row("started", clock(job.Started))
	if job.Attempts > 1 {
		row("attempts", fmt.Sprint(job.Attempts))
	}
	if p := job.Progress; p != (client.Progress{}) && job.State != client.JobSucceeded {
		row("progress", fmt.Sprintf("%s: %s of %s loaded, %d of %d answers", p.Phase, sizeOf(int64(p.LoadedBytes)), sizeOf(int64(p.LoadBytes)), p.UnitsDone, p.Units))
	}
	row("elapsed", elapsed(job, time.Now()))
	if job.ResultBytes > 0 {
		row("result", sizeOf(int64(job.ResultBytes)))
		row("SHA-256", job.ResultSHA256)
	}
	row("written to", out)
	if err := a.printTable(t); err != nil {
		return err
	}
	if job.State != client.JobSucceeded {
		return nil
	}
	report := &job.Report
	if len(report.Plan) > 0 {
		plan, err := drawPlan(report.Plan)
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
func (a *app) printShares(report *client.Report) error {
	t := a.newTable("\ntraffic and time", "worker", ">answers", ">sent", ">received", ">of raw", ">compute", ">wire")
	var sum client.WorkerReport
	var compute, wire time.Duration
	for _, w := range report.Workers {
		note := ""
		if w.Lost {
			note = ", lost"
		}
		t.AppendRow(a.shareRow(w, note))
		sum.Units += w.Units
		sum.BytesOut += w.BytesOut
		sum.BytesInRaw += w.BytesInRaw
		sum.BytesInWire += w.BytesInWire
		compute += w.Compute
		wire += w.Wire
	}
	sum.Name, sum.Compute, sum.Wire = "all", compute, wire
	note := ""
	if n := report.WorkersLost; n > 0 {
		note = fmt.Sprintf(", %d lost", n)
	}
	t.AppendFooter(a.shareRow(sum, note))
	if err := a.printTable(t); err != nil {
		return err
	}
	return a.say("elapsed %s\n", duration(report.Elapsed))
}

func (a *app) shareRow(w client.WorkerReport, note string) table.Row {
	ratio := "-"
	if w.BytesInRaw > 0 {
		ratio = fmt.Sprintf("%.3f", float64(w.BytesInWire)/float64(w.BytesInRaw))
	}
	return table.Row{a.narrow(w.Name, 16) + note, w.Units, sizeOf(int64(w.BytesOut)), sizeOf(int64(w.BytesInWire)), ratio, duration(w.Compute), duration(w.Wire)}
}
