// Package cli is the command lines of coord and worker: flags, environment and configuration file, what is printed, and
// the exit code. The work of the commands is done in other packages.
//
// One invocation: main calls Coord or Worker with the arguments and the standard streams; the command tree parses; every
// setting that no flag gave is taken from HEADWATER_* in the environment, then from the file named by --config; the
// command runs; an error becomes one line on stderr and an exit code. Results go to stdout, everything else to stderr.
package cli
