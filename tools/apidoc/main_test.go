package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestThePageHasWhatTheFilesSay(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "headwater", "v1")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	const file = `syntax = "proto3";
package headwater.v1;
import "google/protobuf/duration.proto";
// A is asked
// for a | b.
service A {
  // Ask asks.
  rpc Ask(B) returns (stream B);
}
// B is one.
message B {
  // How many.
  optional uint32 n = 1;
  repeated C list = 2;
  map<string, C> names = 3;
  google.protobuf.Duration time = 4;
  oneof x { B b = 5; }
  message D {}
}
// C is a kind.
enum C {
  // Nothing.
  C_UNSPECIFIED = 0;
}
`
	if err := os.WriteFile(filepath.Join(folder, "a.proto"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	page, err := render(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"## A\n\nA is asked for a \\| b.\n", "| Ask | [B](#b) | stream of [B](#b) | Ask asks. |", "### B\n\nB is one.\n", "| n | optional uint32 | 1 | How many. |",
		"| list | repeated [C](#c) | 2 |  |", "| names | map of string to [C](#c) | 3 |  |", "| time | google.protobuf.Duration | 4 |  |",
		"| b | [B](#b) | 5 | One of x. |", "### B.D\n", "### C\n\nC is a kind.\n", "| C_UNSPECIFIED | 0 | Nothing. |",
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page does not say %q:\n%s", want, page)
		}
	}
}

// TestThePageIsUpToDate: docs/api.md is what the protocol's files say.
func TestThePageIsUpToDate(t *testing.T) {
	if err := run(true, "../.."); err != nil {
		t.Error(err)
	}
}
