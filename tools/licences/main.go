// Command licences says under which licences the modules are that are linked into the programs, and refuses those that are not allowed:
//
//	cd tools && go run ./licences
//
// writes the list docs/licences.md anew; with -check it fails if the list is not what go list and the modules' own files say. With
// -texts FILE it writes in place of that the texts that go with the programs of a platform, GOOS/GOARCH.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

func main() {
	check := flag.Bool("check", false, "fail if docs/licences.md is not up to date")
	texts := flag.String("texts", "", "`file` to write the texts to that go with the programs")
	platform := flag.String("platform", runtime.GOOS+"/"+runtime.GOARCH, "the programs' platform, for -texts")
	flag.Parse()
	if err := run("..", *check, *texts, *platform); err != nil {
		fmt.Fprintln(os.Stderr, "licences:", err)
		os.Exit(1)
	}
}

func run(root string, check bool, texts, platform string) error {
	if texts != "" {
		modules, err := linked(root, platform, programs...)
		if err != nil {
			return err
		}
		content, err := together(root, modules)
		if err != nil {
			return err
		}
		return os.WriteFile(texts, content, 0o644)
	}
	page, err := list(root)
	if err != nil {
		return err
	}
	path := filepath.Join(root, "docs", "licences.md")
	if !check {
		return os.WriteFile(path, page, 0o644)
	}
	is, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if string(is) != string(page) {
		return fmt.Errorf("docs/licences.md does not have the modules that are linked: make licences writes it anew")
	}
	return nil
}
