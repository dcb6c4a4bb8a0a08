// Command schemas writes the JSON schemas that the manifests are checked against without a network, from what an API
// server says of itself:
//
//	kubectl get --raw /openapi/v2 | go run ./k8s/schemas -out k8s/schemas
//
// Each file describes one kind with all that it is made of, refuses fields that are unknown, and says no more than types:
// the descriptions are left out.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// kinds are the definitions that the manifests use, by file.
var kinds = map[string]string{
	"namespace-v1.json":                  "io.k8s.api.core.v1.Namespace",
	"secret-v1.json":                     "io.k8s.api.core.v1.Secret",
	"service-v1.json":                    "io.k8s.api.core.v1.Service",
	"serviceaccount-v1.json":             "io.k8s.api.core.v1.ServiceAccount",
	"pod-v1.json":                        "io.k8s.api.core.v1.Pod",
	"statefulset-apps-v1.json":           "io.k8s.api.apps.v1.StatefulSet",
	"poddisruptionbudget-policy-v1.json": "io.k8s.api.policy.v1.PodDisruptionBudget",
	"networkpolicy-networking-v1.json":   "io.k8s.api.networking.v1.NetworkPolicy",
}

// definition is the part of a schema that is kept. Its fields are in the order of the alphabet, as they are written.
type definition struct {
	AdditionalProperties any                    `json:"additionalProperties,omitempty"` // false, or the definition of a map's values
	AnyOf                []definition           `json:"anyOf,omitempty"`
	Definitions          map[string]*definition `json:"definitions,omitempty"`
	Format               string                 `json:"format,omitempty"`
	Items                *definition            `json:"items,omitempty"`
	Properties           map[string]*definition `json:"properties,omitempty"`
	Ref                  string                 `json:"$ref,omitempty"`
	Required             []string               `json:"required,omitempty"`
	Type                 string                 `json:"type,omitempty"`
}

func main() {
	out := flag.String("out", "k8s/schemas", "folder to write to")
	flag.Parse()
	if err := run(os.Stdin, *out); err != nil {
		fmt.Fprintln(os.Stderr, "schemas:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out string) error {
	var api struct {
		Definitions map[string]*definition `json:"definitions"`
	}
	if err := json.NewDecoder(in).Decode(&api); err != nil {
		return fmt.Errorf("reading the API's description: %w", err)
	}
	if len(api.Definitions) == 0 {
		return errors.New("the API's description has no definitions")
	}
	for file, kind := range kinds {
		root, ok := api.Definitions[kind]
		if !ok {
			return fmt.Errorf("the API does not know %s", kind)
		}
		used := make(map[string]*definition)
		whole := *strict(root, api.Definitions, used)
		whole.Definitions = used
		b, err := json.Marshal(whole)
		if err != nil {
			return fmt.Errorf("writing %s: %w", file, err)
		}
		if err := os.WriteFile(filepath.Join(out, file), append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	return nil
}

const prefix = "#/definitions/"

// strict returns a definition that refuses unknown fields, and adds those that it refers to to used.
func strict(d *definition, all, used map[string]*definition) *definition {
	if name, ok := strings.CutPrefix(d.Ref, prefix); ok {
		if _, done := used[name]; !done {
			used[name] = nil // ends a definition's reference to itself
			used[name] = strict(all[name], all, used)
		}
		return &definition{Ref: d.Ref}
	}
	if d.Format == "int-or-string" {
		return &definition{AnyOf: []definition{{Type: "string"}, {Type: "integer"}}}
	}
	kept := &definition{Type: d.Type, Required: d.Required}
	if d.Items != nil {
		kept.Items = strict(d.Items, all, used)
	}
	if d.Properties != nil {
		kept.Type = "object"
		kept.Properties = make(map[string]*definition, len(d.Properties))
		for name, p := range d.Properties {
			kept.Properties[name] = strict(p, all, used)
		}
		kept.AdditionalProperties = false
	}
	if values, ok := d.AdditionalProperties.(map[string]any); ok {
		// A map's values: read again as a definition, which an any can't be.
		b, _ := json.Marshal(values)
		var v definition
		if json.Unmarshal(b, &v) == nil {
			kept.AdditionalProperties = strict(&v, all, used)
		}
	}
	return kept
}
