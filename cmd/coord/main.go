// Command coord is Headwater's coordinator and the client of it.
package main

import (
	"os"

	"headwater.example/internal/cli"
)

func main() {
	os.Exit(cli.Coord(os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
