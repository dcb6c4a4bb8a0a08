// Command cmd packs Headwater's static binaries into an archive of container images, one image a binary:
//
//	go run ./internal/image/cmd -out bin/images.tar -version 0.1.0 bin/coord bin/worker
//
// makes headwater/coord:0.1.0 and headwater/worker:0.1.0, whose entrypoints are /coord and /worker with the argument
// serve. With -also TAG they have that tag as well. With -add FILE=/PATH each image also holds a copy of that file. With -bills
// DIR, DIR/coord.spdx.json and DIR/worker.spdx.json say what the binaries were built from.
//
// It prints a line an image: its names and its digest.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"headwater.example/internal/atomicfile"
	"headwater.example/internal/image"
	"headwater.example/internal/sbom"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// files is the flag -add.
type files map[string]string

func (f files) String() string { return "" }

// Set implements flag.Value.
func (f files) Set(s string) error {
	from, to, ok := strings.Cut(s, "=")
	if !ok {
		return fmt.Errorf("%q is not FILE=/PATH", s)
	}
	f[to] = from
	return nil
}

func run(args []string) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	out := flags.String("out", "", "archive to write")
	repository := flags.String("repository", "headwater", "prefix of the images' names")
	version := flags.String("version", "dev", "version, which is the images' tag")
	also := flags.String("also", "", "another tag of the same images")
	revision := flags.String("revision", "", "commit that the binaries were built from")
	made := flags.Int64("made", 0, "`time` of the images and bills, in seconds since 1970")
	bills := flags.String("bills", "", "`folder` for the bills of materials, in SPDX")
	add := files{}
	flags.Var(add, "add", "`FILE=/PATH` to put into each image; may be repeated")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" || flags.NArg() == 0 {
		return fmt.Errorf("want -out ARCHIVE and the binaries to pack")
	}
	var specs []image.Spec
	for _, binary := range flags.Args() {
		base := filepath.Base(binary)
		labels := map[string]string{
			"org.opencontainers.image.title":    "headwater " + base,
			"org.opencontainers.image.version":  *version,
			"org.opencontainers.image.licenses": "Apache-2.0",
			"org.opencontainers.image.created":  time.Unix(*made, 0).UTC().Format(time.RFC3339),
		}
		if *revision != "" {
			labels["org.opencontainers.image.revision"] = *revision
		}
		tags := []string{*repository + "/" + base + ":" + *version}
		if *also != "" && *also != *version {
			tags = append(tags, *repository+"/"+base+":"+*also)
		}
		specs = append(specs, image.Spec{Tags: tags, Binary: binary, Cmd: []string{"serve"}, Files: add, Labels: labels, Made: time.Unix(*made, 0)})
	}
	var digests []v1.Hash
	if err := write(*out, func(w io.Writer) (err error) {
		digests, err = image.Write(w, specs...)
		return err
	}); err != nil {
		return err
	}
	for i, spec := range specs {
		fmt.Println(strings.Join(spec.Tags, " "), digests[i])
	}
	if *bills == "" {
		return nil
	}
	for _, spec := range specs {
		bill := filepath.Join(*bills, filepath.Base(spec.Binary)+".spdx.json")
		if err := write(bill, func(w io.Writer) error { return sbom.Write(w, spec.Binary, *version, spec.Made) }); err != nil {
			return err
		}
	}
	return nil
}

// write writes a file, whole or not at all.
func write(path string, content func(io.Writer) error) error {
	f, err := atomicfile.Create(path, 0)
	if err != nil {
		return err
	}
	if err := content(f); err != nil {
		return errors.Join(err, f.Abort())
	}
	return f.Commit()
}
