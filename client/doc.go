// Package client speaks to a coordinator: it submits jobs, follows them, and fetches their results.
//
// The way of one job: Dial a coordinator; Submit streams a job file to it in pieces of 1 MiB, once the coordinator has
// looked at the file's header and wants the bytes; Wait follows the job to its end over lost connections; Download
// writes the result file, which appears under its name only when it is complete and its SHA-256 is right.
//
// A Client is safe for concurrent use. It never holds a job file or a result in memory: files are read and written in
// pieces. Errors are *Error, or *JobError for a job that ended without a result.
package client
