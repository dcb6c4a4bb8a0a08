// Command worker is Headwater's worker: it holds keys and values of whole groups and attends over them.
package main

import (
	"os"

	"headwater.example/internal/cli"
)

func main() {
	os.Exit(cli.Worker(os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
