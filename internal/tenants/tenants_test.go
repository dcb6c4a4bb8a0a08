package tenants

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestATokenIsKnownByItsHash goes through a tenant's life, and looks for its tokens in the file.
func TestATokenIsKnownByItsHash(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tenants.json")
	if _, err := Read(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no file: %v", err)
	}
	var tokens []string
	change := func(what string, do func(*Table) (string, error)) {
		t.Helper()
		table, err := Read(path)
		if errors.Is(err, fs.ErrNotExist) {
			table, err = &Table{}, nil
		}
		if err == nil {
			var token string
			if token, err = do(table); token != "" {
				tokens = append(tokens, token)
			}
		}
		if err == nil {
			err = table.Write(path)
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	known := func(want ...string) {
		t.Helper()
		table, err := Read(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, token := range tokens {
			found, _ := table.Find(Hash(token))
			if found.Name != want[i] {
				t.Errorf("token %d is %q's, want %q", i, found.Name, want[i])
			}
		}
	}
	now := time.Unix(1e9, 0)
	change("add ann", func(tb *Table) (string, error) { return tb.Add("ann", false, now) })
	change("add ops", func(tb *Table) (string, error) { return tb.Add("ops", true, now) })
	known("ann", "ops")
	change("rotate ann, keeping", func(tb *Table) (string, error) { return tb.Rotate("ann", true) })
	known("ann", "ops", "ann")
	change("rotate ann", func(tb *Table) (string, error) { return tb.Rotate("ann", false) })
	known("", "ops", "", "ann")
	change("remove ops", func(tb *Table) (string, error) { return "", tb.Remove("ops") })
	known("", "", "", "ann")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range tokens {
		if strings.Contains(string(b), token) || Check(token) != nil {
			t.Errorf("the file has a token, or it is none: %v", Check(token))
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others may read the file: %v, %v", info.Mode(), err)
	}
	table, _ := Read(path)
	if _, err := table.Add("ann", false, now); !errors.Is(err, ErrExists) {
		t.Errorf("ann twice: %v", err)
	}
	if _, err := table.Rotate("bob", false); !errors.Is(err, ErrUnknown) {
		t.Errorf("rotating nobody: %v", err)
	}
	if err := table.Remove("bob"); !errors.Is(err, ErrUnknown) {
		t.Errorf("removing nobody: %v", err)
	}
}

func TestAFileThatBreaksARuleIsRefused(t *testing.T) {
	t.Parallel()
	hash := Hash("x")
	for text, says := range map[string]string{
		``:                             "EOF",
		`{"tenants":[]} x`:             "something follows",
		`{"tenant":[]}`:                "unknown field",
		`{"tenants":[{"name":"a/b"}]}`: "other characters",
		`{"tenants":[{"name":""}]}`:    "0 bytes",
		`{"tenants":[{"name":"a*"}]}`:  "has only one",
		`{"tenants":[{"name":"a"},{"name":"a"}]}`:                                                     "there twice",
		`{"tenants":[{"name":"a","tokens":["ff"]}]}`:                                                  "not a SHA-256",
		`{"tenants":[{"name":"a","tokens":["` + strings.ToUpper(hash) + `"]}]}`:                       "not a SHA-256",
		`{"tenants":[{"name":"a","tokens":["` + hash + `"]},{"name":"b","tokens":["` + hash + `"]}]}`: "there twice",
	} {
		if _, err := parse([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// FuzzParse: what is taken finds each tenant by its tokens.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"tenants":[{"name":"ann","tokens":["` + Hash("x") + `"]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := parse(b)
		if err != nil {
			return
		}
		for _, one := range table.Tenants {
			for _, hash := range one.Tokens {
				if found, ok := table.Find(hash); !ok || found.Name != one.Name {
					t.Fatalf("a token of %s is %s's", one.Name, found.Name)
				}
			}
		}
	})
}
