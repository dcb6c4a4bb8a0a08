// Package script runs sessions from text: what a client does, what each holder is told, and what comes back, faults included.
//
// The way of a script: datadriven reads a command and its expected output; a Cluster (a coordinator and holders in this
// process) obeys the commands about holders, and a Driver does the commands about sessions as one client does them. The same
// scripts run against the reference holder and against workers, through a coordinator and directly, in Go and in other
// languages, with the same output: contexts are told by the CRC of their bits. test/session has the scripts and its README the
// commands.
package script

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// Command is one line of a script: "verb name key=value …".
type Command struct {
	Verb string            `json:"verb"`
	Name string            `json:"name,omitempty"` // of a session or holder
	Args map[string]string `json:"args,omitempty"`
}

// Driver does a client's commands. Do returns what the script shows: lines without the last line's end. An error of a
// session is output; the error that Do returns is the driver's own, and ends the script.
type Driver interface {
	Do(Command) (string, error)
	Close() error
}

// Way says how a script is run.
type Way struct {
	Plain  bool // reference holders, not workers
	Direct bool // the client speaks to the holders, not through the coordinator
	// Start makes the driver of a client of that coordinator.
	Start func(t testing.TB, address string, direct bool) Driver
}

// Run runs a script.
func Run(t *testing.T, path string, way Way) {
	var cluster *Cluster
	var driver Driver
	end := func() {
		if driver != nil {
			if err := driver.Close(); err != nil {
				t.Errorf("%s: end the driver: %v", path, err)
			}
		}
		if cluster != nil {
			cluster.Close()
		}
		driver, cluster = nil, nil
	}
	defer end()
	datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
		command, err := parse(d)
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		if command.Verb == "cluster" {
			end()
			n, err := command.Int("workers", 1)
			if err != nil {
				d.Fatalf(t, "%v", err)
			}
			cluster = Start(t, n, way.Plain)
			driver = way.Start(t, cluster.Address(), way.Direct)
			return ""
		}
		if cluster == nil {
			d.Fatalf(t, "a script begins with a cluster")
		}
		out, err := do(cluster, driver, command)
		// What another process learns in its own time is asked again until it is as expected.
		for end := time.Now().Add(patience); err == nil && command.Args["settles"] != "" && out != d.Expected && time.Now().Before(end); {
			out, err = do(cluster, driver, command)
		}
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		return out
	})
}

// patience is how long a command that settles may take.
const patience = 20 * time.Second

// do does one command, of the cluster or of the client.
func do(cluster *Cluster, driver Driver, command Command) (string, error) {
	out, known, err := cluster.Do(command)
	if !known && err == nil {
		out, err = driver.Do(command)
	}
	if out != "" && !strings.HasSuffix(out, "\n") {
		out += "\n"
	}
	return out, err
}

// parse reads a line. The first argument without a value is the name.
func parse(d *datadriven.TestData) (Command, error) {
	c := Command{Verb: d.Cmd, Args: map[string]string{}}
	for _, a := range d.CmdArgs {
		switch {
		case len(a.Vals) == 0 && c.Name == "":
			c.Name = a.Key
		case len(a.Vals) == 0:
			c.Args[a.Key] = "true"
		default:
			c.Args[a.Key] = strings.Join(a.Vals, ",")
		}
	}
	return c, nil
}

// Int reads a number, or the default if it is not given.
func (c Command) Int(key string, otherwise int) (int, error) {
	text, ok := c.Args[key]
	if !ok {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("%s: %s=%s is not a number", c.Verb, key, text)
	}
	return n, nil
}
