package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const repository = "../.."

// documents returns the text of every page that people read, by its path within the repository.
func documents(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "k8s/*.md", "clients/*/*.md", "examples/*.md", "test/*/*.md", "test/*/*/*.md"} {
		paths, err := filepath.Glob(filepath.Join(repository, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			name, err := filepath.Rel(repository, path)
			if err != nil {
				t.Fatal(err)
			}
			pages[name] = string(text)
		}
	}
	if len(pages) < 10 {
		t.Fatalf("found %d pages", len(pages))
	}
	return pages
}

// TestLinksInDocuments follows every relative link, and its anchor, in every page.
func TestLinksInDocuments(t *testing.T) {
	pages := documents(t)
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for name, text := range pages {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			path, anchor, _ := strings.Cut(m[1], "#")
			target := filepath.Join(filepath.Dir(name), path)
			if path == "" {
				target = name
			}
			if _, err := os.Stat(filepath.Join(repository, target)); err != nil {
				t.Errorf("%s: the link %s leads nowhere", name, m[1])
				continue
			}
			if anchor != "" && !slices.Contains(anchors(pages[target]), anchor) {
				t.Errorf("%s: %s has no heading #%s", name, target, anchor)
			}
		}
	}
}

// anchors are those that a page's headings have, as GitHub makes them.
func anchors(page string) []string {
	var found []string
	for _, line := range strings.Split(page, "\n") {
		heading, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " ")
		if !ok || !strings.HasPrefix(line, "#") {
			continue
		}
		heading = strings.ToLower(regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(heading, ""))
		found = append(found, strings.ReplaceAll(strings.TrimSpace(heading), " ", "-"))
	}
	return found
}

// TestCommandsInDocuments finds every command that a page shows: targets of make are there, packages and tests that go is
// asked for exist, and lines of coord and worker are read by the programs' own flags.
func TestCommandsInDocuments(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(repository, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for name, text := range documents(t) {
		if name == "CHANGELOG.md" {
			continue // it tells of commands that were, too
		}
		for _, line := range commands(text) {
			words := line.words
			counts[words[0]]++
			var err error
			switch words[0] {
			case "make":
				err = knownTarget(string(makefile), words[1:])
			case "go":
				err = knownTests(words[1:])
			default:
				err = readByProgram(words)
			}
			if err != nil {
				t.Errorf("%s: %q: %v", name, strings.Join(words, " "), err)
			}
		}
	}
	for _, program := range []string{"make", "go", "coord", "worker"} {
		if counts[program] == 0 {
			t.Errorf("no command of %s was found: the test reads too little", program)
		}
	}
}

var (
	code       = regexp.MustCompile("`([^`\n]+)`")
	redirected = regexp.MustCompile(` > [\w./-]+`) // what a command prints goes into a file
	comment    = regexp.MustCompile(`\s(#.*|\s{2,}.*)$`)
	program    = regexp.MustCompile(`^(\$ )?((?:[A-Z_]+=\S+ )*)(bin/|\./bin/)?(coord|worker(?: serve| --)|make|go test|go run)( .*|)$`)
)

// command is a command that a page shows: in a block of lines to type, or in a sentence.
type command struct {
	words []string
	shown bool // in a block
}

// commands returns the commands of a page, word by word: those of spans of code, of indented and of fenced lines.
func commands(page string) []command {
	type text struct {
		line  string
		shown bool
	}
	var lines []text
	fenced := false
	for _, line := range strings.Split(page, "\n") {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
			continue
		}
		if fenced || strings.HasPrefix(line, "    ") {
			lines = append(lines, text{strings.TrimSpace(line), true})
			continue
		}
		for _, m := range code.FindAllStringSubmatch(line, -1) {
			lines = append(lines, text{m[1], false})
		}
	}
	var found []command
	for _, l := range lines {
		m := program.FindStringSubmatch(redirected.ReplaceAllString(l.line, ""))
		if m == nil || strings.ContainsAny(m[5], "…|<>{[") || strings.Contains(m[5], "...") {
			continue
		}
		found = append(found, command{split(m[4] + comment.ReplaceAllString(m[5], "")), l.shown})
	}
	return found
}

// split cuts a line into words as a shell does, with its simple quotes.
func split(line string) []string {
	var words []string
	for _, m := range regexp.MustCompile(`'[^']*'|"[^"]*"|\S+`).FindAllString(line, -1) {
		words = append(words, strings.Trim(m, `'"`))
	}
	return words
}

func knownTarget(makefile string, words []string) error {
	for _, word := range words {
		if strings.Contains(word, "=") || strings.HasPrefix(word, "-") {
			continue
		}
		if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(word) + `:`).MatchString(makefile) {
			return fmt.Errorf("the Makefile has no target %s", word)
		}
	}
	return nil
}

// knownTests checks the packages of go test and go run, and that a pattern of tests or benchmarks finds one.
func knownTests(words []string) error {
	var dirs, patterns []string
	for i, word := range words {
		if strings.HasPrefix(word, "./") && word != "./..." {
			dirs = append(dirs, filepath.Join(repository, word))
		}
		if (word == "-run" || word == "-bench") && i+1 < len(words) && !slices.Contains([]string{"^$", ".", "NONE"}, words[i+1]) {
			patterns = append(patterns, words[i+1])
		}
	}
	var names []string
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			return fmt.Errorf("there is no package in %s", dir)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			for _, m := range regexp.MustCompile(`(?m)^func ((Test|Benchmark|Example|Fuzz)\w*)\(`).FindAllStringSubmatch(string(text), -1) {
				names = append(names, m[1])
			}
		}
	}
	for _, pattern := range patterns {
		first, _, _ := strings.Cut(strings.Trim(pattern, "^$"), "/")
		match, err := regexp.Compile(first)
		if err != nil {
			return err
		}
		if len(dirs) > 0 && !slices.ContainsFunc(names, match.MatchString) {
			return fmt.Errorf("no test or benchmark is called %s", pattern)
		}
	}
	return nil
}

// readByProgram reads a line of coord or worker with the flags and arguments that the command takes, and runs nothing.
func readByProgram(words []string) error {
	a := &app{Streams: Streams{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard}, program: words[0]}
	command, rest, err := a.tree().Find(words[1:])
	if err != nil {
		return err
	}
	if command.HasSubCommands() {
		if len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
			return fmt.Errorf("%s has no command %s", command.CommandPath(), rest[0])
		}
		return nil
	}
	if slices.Contains(rest, "--help") {
		return nil
	}
	if err := command.ParseFlags(rest); err != nil {
		return err
	}
	// A name alone stands for the command, not for a line that would run.
	if len(rest) == 0 {
		return nil
	}
	return command.ValidateArgs(command.Flags().Args())
}
