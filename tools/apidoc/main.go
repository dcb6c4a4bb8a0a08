// Command apidoc writes docs/api.md, the reference of the protocol, from the comments of its .proto files:
//
//	cd tools && go run ./apidoc
//
// With -check it writes nothing, and fails if the page is not what the files say.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func main() {
	check := flag.Bool("check", false, "fail if the page is not up to date")
	flag.Parse()
	if err := run(*check, ".."); err != nil {
		fmt.Fprintln(os.Stderr, "apidoc:", err)
		os.Exit(1)
	}
}

func run(check bool, root string) error {
	page, err := render(filepath.Join(root, "proto"))
	if err != nil {
		return err
	}
	path := filepath.Join(root, "docs", "api.md")
	if !check {
		return os.WriteFile(path, page, 0o644)
	}
	is, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(is, page) {
		return fmt.Errorf("docs/api.md is not what the .proto files say: make proto writes it anew")
	}
	return nil
}

const head = `# The protocol, call by call

Generated from ` + "`proto/headwater/v1`" + ` by ` + "`make proto`" + `: every service, message and enum of ` + "`headwater.v1`" + `, in the words of the files.
[sessions.md](sessions.md) says how the calls on sessions work together, [wire.md](wire.md) how contexts are coded,
[errors.md](errors.md) what errors mean, and [operations.md](operations.md#versions) which versions work together. Servers also have
gRPC's health service and reflection.
`

// render returns the page of the protocol in a folder.
func render(folder string) ([]byte, error) {
	paths, err := filepath.Glob(filepath.Join(folder, "headwater/v1/*.proto"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, path := range paths {
		name, err := filepath.Rel(folder, path)
		if err != nil {
			return nil, err
		}
		names = append(names, filepath.ToSlash(name))
	}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{folder}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(context.Background(), names...)
	if err != nil {
		return nil, err
	}
	p := &page{}
	p.WriteString(head)
	var messages []protoreflect.MessageDescriptor
	var enums []protoreflect.EnumDescriptor
	for _, file := range files {
		for i := range file.Services().Len() {
			p.service(file.Services().Get(i))
		}
		messages = append(messages, messagesOf(file.Messages())...)
		enums = append(enums, enumsOf(file.Enums())...)
	}
	for _, m := range messages {
		enums = append(enums, enumsOf(m.Enums())...)
	}
	byName := func(a, b protoreflect.Descriptor) int { return strings.Compare(short(a), short(b)) }
	slices.SortFunc(messages, func(a, b protoreflect.MessageDescriptor) int { return byName(a, b) })
	slices.SortFunc(enums, func(a, b protoreflect.EnumDescriptor) int { return byName(a, b) })
	p.WriteString("\n## Messages\n")
	for _, m := range messages {
		p.message(m)
	}
	p.WriteString("\n## Enums\n")
	for _, e := range enums {
		p.enum(e)
	}
	return p.Bytes(), nil
}

func messagesOf(all protoreflect.MessageDescriptors) (list []protoreflect.MessageDescriptor) {
	for i := range all.Len() {
		if m := all.Get(i); !m.IsMapEntry() {
			list = append(append(list, m), messagesOf(m.Messages())...)
		}
	}
	return list
}

func enumsOf(all protoreflect.EnumDescriptors) (list []protoreflect.EnumDescriptor) {
	for i := range all.Len() {
		list = append(list, all.Get(i))
	}
	return list
}

type page struct{ bytes.Buffer }

func (p *page) printf(format string, args ...any) { fmt.Fprintf(p, format, args...) }

// short is a name without the package.
func short(d protoreflect.Descriptor) string {
	return strings.TrimPrefix(string(d.FullName()), string(d.ParentFile().Package())+".")
}

// said is what stands above a declaration, in one line, fit for a cell of a table.
func said(d protoreflect.Descriptor) string {
	text := d.ParentFile().SourceLocations().ByDescriptor(d).LeadingComments
	return strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", "\\|")
}

func (p *page) service(s protoreflect.ServiceDescriptor) {
	p.printf("\n## %s\n\n%s\n\n| call | request | answer | |\n| --- | --- | --- | --- |\n", short(s), said(s))
	for i := range s.Methods().Len() {
		m := s.Methods().Get(i)
		p.printf("| %s | %s | %s | %s |\n", m.Name(), side(m.Input(), m.IsStreamingClient()), side(m.Output(), m.IsStreamingServer()), said(m))
	}
}

func side(m protoreflect.MessageDescriptor, stream bool) string {
	if stream {
		return "stream of " + link(m)
	}
	return link(m)
}

// link leads to a message or an enum of this page, or names one of another package.
func link(d protoreflect.Descriptor) string {
	if !strings.HasPrefix(string(d.FullName()), "headwater.") {
		return string(d.FullName())
	}
	name := short(d)
	return fmt.Sprintf("[%s](#%s)", name, strings.ToLower(strings.ReplaceAll(name, ".", "")))
}

func (p *page) message(m protoreflect.MessageDescriptor) {
	p.printf("\n### %s\n\n%s\n", short(m), said(m))
	if m.Fields().Len() == 0 {
		return
	}
	p.WriteString("\n| field | type | number | |\n| --- | --- | --: | --- |\n")
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		text := said(f)
		if one := f.ContainingOneof(); one != nil && !one.IsSynthetic() {
			text = strings.TrimSpace(fmt.Sprintf("One of %s. %s", one.Name(), text))
		}
		p.printf("| %s | %s | %d | %s |\n", f.Name(), kind(f), f.Number(), text)
	}
}

func kind(f protoreflect.FieldDescriptor) string {
	name := f.Kind().String()
	switch {
	case f.IsMap():
		return fmt.Sprintf("map of %s to %s", kind(f.MapKey()), kind(f.MapValue()))
	case f.Enum() != nil:
		name = link(f.Enum())
	case f.Message() != nil:
		name = link(f.Message())
	}
	switch {
	case f.IsList():
		return "repeated " + name
	case f.HasOptionalKeyword():
		return "optional " + name
	}
	return name
}

func (p *page) enum(e protoreflect.EnumDescriptor) {
	p.printf("\n### %s\n\n%s\n\n| value | number | |\n| --- | --: | --- |\n", short(e), said(e))
	for i := range e.Values().Len() {
		v := e.Values().Get(i)
		p.printf("| %s | %d | %s |\n", v.Name(), v.Number(), said(v))
	}
}
