package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"headwater.example/client"
	"headwater.example/internal/jobfile"
	"headwater.example/internal/snapshot"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Exit codes of both programs. exitHelp says them to users, and a table in docs/errors.md what to do; a test compares the two.
const (
	exitOK          = 0
	exitFailed      = 1 // what was asked for did not succeed
	exitUsage       = 2 // the command line, the environment or the configuration file is wrong
	exitUnreachable = 3 // no coordinator answers
	exitRefused     = 4 // the job or the request was looked at and refused: asking again changes nothing
	exitDiffers     = 5 // diff found a difference
	exitTryAgain    = 6 // refused for now: a full disk, no room, a lost worker; the same may succeed later
	exitUnhealthy   = 7 // health found too few workers, or a coordinator that is stopping
)

const exitHelp = "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 coordinator unreachable; 4 refused, and asking again changes nothing; " +
	"5 results differ; 6 refused for now, by a full disk for instance: the same may succeed later; 7 not healthy."

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
		unhealthy  unhealthyError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &unhealthy):
		return exitUnhealthy
	case errors.As(err, &wrongUsage):
		return exitUsage
	case errors.As(err, &differs):
		return exitDiffers
	case errors.Is(err, client.ErrUnreachable):
		return exitUnreachable
	case mayPass(err):
		return exitTryAgain
	case errors.Is(err, client.ErrRefused), errors.Is(err, client.ErrGone), errors.Is(err, client.ErrNotFound), errors.As(err, &format), errors.As(err, &rule), errors.As(err, &geometry), errors.As(err, &taken):
		return exitRefused
	}
	return exitFailed
}

// passingError is a state of things that may pass.
type passingError struct{ error }

// mayPass tells whether an error is of a state of things that may pass, of this machine, the coordinator or the workers, and
// not of the request.
func mayPass(err error) bool {
	var own passingError
	return errors.As(err, &own) || errors.Is(err, client.ErrTryAgain) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// line makes an error fit for one line of stderr.
func line(program string, err error) string {
	if errors.Is(err, context.Canceled) {
		return program + ": interrupted"
	}
	return program + ": " + strings.Join(strings.Fields(err.Error()), " ")
}
