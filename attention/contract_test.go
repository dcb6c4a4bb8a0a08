package attention

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestTheContractHasTheConstants compares the constants of exp, tanh and log with those of docs/numerics.md.
func TestTheContractHasTheConstants(t *testing.T) {
	hexadecimal := regexp.MustCompile(`-?0x1[0-9a-f.]*p[+-]\d+`)
	constants := func(path, from, to string) []string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, part, ok := strings.Cut(strings.ReplaceAll(string(text), "−", "-"), from)
		part, _, ok2 := strings.Cut(part, to)
		if !ok || !ok2 {
			t.Fatalf("%s has no part from %q to %q", path, from, to)
		}
		found := hexadecimal.FindAllString(part, -1)
		for i := range found {
			found[i] = strings.TrimPrefix(found[i], "-") // formulas subtract where the source has a negative constant
		}
		slices.Sort(found)
		return slices.Compact(found)
	}
	source := constants("elementary.go", "const (", "\n)")
	contract := constants("../docs/numerics.md", "## Exp, tanh and log", "## A fused multiply-add")
	// √½ stands in the source as its bits, which the contract has beside it.
	contract = slices.DeleteFunc(contract, func(c string) bool { return c == "0x1.6a09e8p-1" })
	if len(source) < 20 || !slices.Equal(source, contract) {
		t.Errorf("the source has %v\nthe contract  %v", source, contract)
	}
}

// TestTheContractHasTheBlock: the block of tokens that the contract of gradients names is that of the source.
func TestTheContractHasTheBlock(t *testing.T) {
	text, err := os.ReadFile("../docs/numerics.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("[%db, %[1]db + %[1]d)", tokenBlock); !strings.Contains(string(text), want) {
		t.Errorf("docs/numerics.md does not have %q", want)
	}
}
