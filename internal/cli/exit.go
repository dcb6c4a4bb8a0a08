package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"headwater.example/client"
	"headwater.example/internal/jobfile"
	"headwater.example/internal/snapshot"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Exit codes of both programs.
const (
	ExitOK          = 0
	ExitFailed      = 1 // what was asked for did not succeed
	ExitUsage       = 2 // the command line, the environment or the configuration file is wrong
	ExitUnreachable = 3 // no coordinator answers
	ExitRefused     = 4 // the job or the request was looked at and refused
	ExitDiffers     = 5 // diff found a difference
)

const exitHelp = `Exit codes: 0 done; 1 failed; 2 wrong usage; 3 coordinator unreachable; 4 refused; 5 results differ.`

// usageError is a wrong command line, environment or configuration file.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// differsError is a comparison that found a difference, which has been printed.
type differsError struct{ error }

// exitCode tells which code an error ends the program with.
func exitCode(err error) int {
	var (
		wrongUsage usageError
		differs    differsError
		format     *tensor.FormatError
		rule       *jobfile.Error
		geometry   *shard.GeometryError
		taken      *snapshot.Error
	)
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &wrongUsage):
		return ExitUsage
	case errors.As(err, &differs):
		return ExitDiffers
	case errors.Is(err, client.ErrUnreachable):
		return ExitUnreachable
	case errors.Is(err, client.ErrRefused), errors.As(err, &format), errors.As(err, &rule), errors.As(err, &geometry), errors.As(err, &taken):
		return ExitRefused
	}
	return ExitFailed
}

// line makes an error fit for one line of stderr.
func line(program string, err error) string {
	if errors.Is(err, context.Canceled) {
		return program + ": interrupted"
	}
	return program + ": " + strings.Join(strings.Fields(err.Error()), " ")
}
