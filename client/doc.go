// Package client speaks to a coordinator: it submits jobs, follows them, and fetches their results.
//
// The way of one job: Dial a coordinator; Submit streams a job file to it in pieces of 1 MiB, once the coordinator has
// looked at the file's header and wants the bytes; Wait follows the job to its end over lost connections; Download
// writes the result file, which appears under its name only when it is complete and its SHA-256 is right.
//
// The way of one session: OpenSession makes it on the cluster, or Attach takes up one that is there; Step appends a token's
// keys and values to a layer and attends, Do has steps of many sessions in flight at once; Truncate takes positions back, Fork
// begins another session with the same ones; Drop frees it, Close leaves it on the cluster. Steps go through the coordinator,
// or to the workers where Direct is set. Errors are *SessionError where a holder refused or was lost.
//
// A Client is safe for concurrent use. It never holds a job file or a result in memory: files are read and written in
// pieces. Errors of jobs are *Error, or *JobError for a job that ended without a result.
package client
