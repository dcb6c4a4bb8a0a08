// Package jobfile reads job files: which problems a file of tensors holds, what their options are, and whether all of it
// can be computed. docs/job-file.md is the format's specification.
//
// A job is checked by its header alone, so that it is refused before its bytes are sent. What only the bytes can tell
// (a NaN, a mask byte that is neither 0 nor 1) is CheckValues' part. Every error is one line that names file, tensor,
// index and rule.
package jobfile
