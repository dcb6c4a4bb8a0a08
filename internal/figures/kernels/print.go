package main

import (
	"fmt"
	"io"
	"slices"
)

// print writes the row's figure, and to log what one should know of it.
func (r row) print(out, log io.Writer) {
	if !r.Figure {
		return
	}
	fmt.Fprintf(out, "figure %s %.4f\n", r.Name, r.Value)
	seconds := r.median(func(s sample) float64 { return s.Seconds })
	fmt.Fprintf(log, "figures: %s: kernel %s, %.2f GB/s, %.1f GFLOP/s, rounds from %.3f to %.3f;", r.Name, r.Kernel,
		r.Bytes/seconds/1e9, r.Flops/seconds/1e9, r.extreme(slices.Min), r.extreme(slices.Max))
	for _, l := range []limit{read1, read2, write1, peak, peak2, matrix} {
		if x := r.median(func(s sample) float64 { return s.Limits[l] }); x > 0 {
			fmt.Fprintf(log, " %s %.1f", l, x/1e9)
		}
	}
	fmt.Fprintln(log)
	if r.Intended != "" && r.Intended != r.Kernel {
		fmt.Fprintf(log, "figures: %s is of kernel %s, kernel %s was asked for\n", r.Name, r.Kernel, r.Intended)
	}
	if share := r.median(func(s sample) float64 { return s.Share }); share > r.Value*1.02 && r.Threads == 1 {
		other := "the FMA units hold"
		if r.median(func(s sample) float64 { return s.Bus - s.FMA }) > 0 {
			other = "the bus holds"
		}
		fmt.Fprintf(log, "figures: %s: %s it back more here; it is at %.4f of that\n", r.Name, other, share)
	}
}

// extreme returns the least or the largest figure of a round.
func (r row) extreme(of func([]float64) float64) float64 {
	var all []float64
	for _, s := range r.Samples {
		all = append(all, s.Value)
	}
	return of(all)
}

// header begins a table of rows.
func (h *harness) header(out io.Writer) {
	fmt.Fprintf(out, "%s, last-level cache %d MiB, kernel %s, decode over %d MiB, median of %d rounds\n\n",
		h.Processor, h.Cache>>20, h.Kernel, h.size.set>>20, h.Rounds)
	fmt.Fprintf(out, "| %-30s | %-22s | %-5s | %-8s | %2s | %7s | %8s | %6s | %-5s |\n",
		"test", "geometry", "type", "kernel", "t", "GB/s", "GFLOP/s", "share", "of")
	fmt.Fprintln(out, "| ------------------------------ | ---------------------- | ----- | -------- | -: | ------: | -------: | -----: | ----- |")
}

// line writes the row as one of a table. The share is of the limit that allows the least.
func (r row) line(out io.Writer) {
	seconds := r.median(func(s sample) float64 { return s.Seconds })
	geometry := "-"
	if r.Heads > 0 {
		geometry = fmt.Sprintf("%d heads / %d, d %d", r.Heads, r.Groups, r.HeadDim)
	}
	of := "FMA"
	if r.median(func(s sample) float64 { return s.Bus - s.FMA }) > 0 {
		of = "read"
		if r.Writes {
			of = "write"
		}
	}
	fmt.Fprintf(out, "| %-30s | %-22s | %-5s | %-8s | %2d | %7.2f | %8.2f | %5.1f%% | %-5s |\n",
		r.Test, geometry, r.DType, r.Kernel, r.Threads, r.Bytes/seconds/1e9, r.Flops/seconds/1e9,
		100*r.median(func(s sample) float64 { return s.Share }), of)
}
