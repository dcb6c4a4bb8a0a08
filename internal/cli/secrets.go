package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"headwater.example/internal/certs"
)

// gossipSecret is the Secret that has the keys of gossip, which all coordinators and workers share.
const gossipSecret = "headwater-gossip"

// secretView is a Secret of Kubernetes. Its values are base64, as encoding/json makes them of bytes.
type secretView struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   secretMetadata    `json:"metadata"`
	Type       string            `json:"type"`
	Data       map[string][]byte `json:"data"`
}

type secretMetadata struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	Labels    map[string]string `json:"labels"`
}

// secretList is a list of Secrets, as kubectl reads it from JSON.
type secretList struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Items      []secretView `json:"items"`
}

func (a *app) certsSecrets() *cobra.Command {
	var at authorityFlags
	var namespace string
	cmd := &cobra.Command{
		Use: "secrets [ROLE]...", Short: "Print certificates and keys as Secrets of Kubernetes",
		Long: "Print the certificates that were issued into the authority's folder as manifests of Secrets, with their private keys: those of\n" +
			"coordinators, workers and relays, or of the roles that are named. -o json prints one list.\n\n" +
			"A Secret is named by its certificate, without a '*': headwater-worker-tls has the certificate of worker headwater-worker-*,\n" +
			"client-ann-tls that of client ann. headwater-gossip has the keys of gossip. `kubectl apply --server-side` keeps no second\n" +
			"copy of them in an annotation.",
		Example:   "  coord certs secrets | kubectl apply --server-side -f -\n  coord certs secrets client --namespace models",
		ValidArgs: []string{"coordinator", "worker", "relay", "client", "admin", "monitor"},
		RunE: func(_ *cobra.Command, args []string) error {
			if !dnsLabel.MatchString(namespace) {
				return usage("--namespace: %q is not a DNS label: 1 to 63 of a-z, 0-9 and '-', with no '-' at its ends", namespace)
			}
			roles := []certs.Role{certs.Coordinator, certs.Worker, certs.Relay}
			if len(args) > 0 {
				roles = nil
			}
			for _, arg := range args {
				if err := (certs.Identity{Role: certs.Role(arg), Name: "a"}).Validate(); err != nil {
					return usageError{err}
				}
				roles = append(roles, certs.Role(arg))
			}
			authority, err := at.open()
			if err != nil {
				return err
			}
			secrets, err := secretsOf(authority, namespace, roles)
			if err != nil {
				return err
			}
			if len(secrets) == 0 {
				return fmt.Errorf("%s: no certificate was issued to a %s: `coord certs issue` does", at.folder, namesOf(roles))
			}
			if a.json() {
				return a.printJSON(secretList{"v1", "List", secrets})
			}
			return a.printYAML(secrets)
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().StringVar(&namespace, "namespace", "headwater", "`namespace` of the Secrets")
	flagOnly(cmd.Flags(), "namespace")
	return cmd
}

func namesOf(roles []certs.Role) string {
	all := make([]string, len(roles))
	for i, r := range roles {
		all[i] = string(r)
	}
	return strings.Join(all, " or ")
}

// secretsOf returns the Secrets of what was issued to some roles, and that of gossip if one of them gossips.
func secretsOf(authority *certs.Authority, namespace string, roles []certs.Role) ([]secretView, error) {
	issued, err := authority.List()
	if err != nil {
		return nil, err
	}
	var all []secretView
	var gossip []byte
	from := map[string]string{}
	for _, one := range issued {
		if !slices.Contains(roles, one.Holder.Role) {
			continue
		}
		name, err := secretName(one.Holder)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", one.Folder, err)
		}
		if before := from[name]; before != "" {
			return nil, fmt.Errorf("%s and %s: both are Secret %s", before, one.Folder, name)
		}
		from[name] = one.Folder
		s := newSecret(name, namespace, "kubernetes.io/tls")
		for _, file := range []string{certs.TrustFile, certs.CertFile, certs.KeyFile} {
			if s.Data[file], err = os.ReadFile(filepath.Join(one.Folder, file)); err != nil {
				return nil, err
			}
		}
		if revoked, err := os.ReadFile(filepath.Join(one.Folder, certs.RevokedFile)); err == nil {
			s.Data[certs.RevokedFile] = revoked
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		all = append(all, s)
		if role := one.Holder.Role; role != certs.Coordinator && role != certs.Worker {
			continue
		}
		keys, err := os.ReadFile(filepath.Join(one.Folder, certs.GossipFile))
		if err != nil {
			return nil, err
		}
		if gossip != nil && !bytes.Equal(gossip, keys) {
			return nil, fmt.Errorf("%s has other keys of gossip than the folders before it: `coord certs renew` brings all up to date", one.Folder)
		}
		gossip = keys
	}
	if gossip != nil {
		s := newSecret(gossipSecret, namespace, "Opaque")
		s.Data[certs.GossipFile] = gossip
		all = append(all, s)
	}
	return all, nil
}

func newSecret(name, namespace, kind string) secretView {
	return secretView{
		APIVersion: "v1", Kind: "Secret", Type: kind, Data: map[string][]byte{},
		Metadata: secretMetadata{Name: name, Namespace: namespace, Labels: map[string]string{"app.kubernetes.io/name": "headwater"}},
	}
}

// subdomain is how Kubernetes names Secrets.
var subdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// secretName names the Secret of a certificate: by the name that is in it, and for those of many by their role as well.
func secretName(h certs.Holder) (string, error) {
	name := strings.TrimRight(strings.TrimSuffix(h.Names[0], "*"), "-_.")
	switch {
	case name == "":
		name = "headwater-" + string(h.Role)
	case h.Role != certs.Coordinator && h.Role != certs.Worker:
		name = string(h.Role) + "-" + name
	}
	if name += "-tls"; len(name) > 253 || !subdomain.MatchString(name) {
		return "", fmt.Errorf("%q is no name of a Secret, which has a-z, 0-9, '-' and '.': issue it to another name", name)
	}
	return name, nil
}

// printYAML prints manifests one after the other, with the fields in the order of their JSON.
func (a *app) printYAML(secrets []secretView) error {
	for _, s := range secrets {
		b, err := json.Marshal(s)
		if err != nil {
			return err
		}
		var node yaml.Node // JSON is YAML, and a node keeps its order
		if err := yaml.Unmarshal(b, &node); err != nil {
			return err
		}
		inBlocks(&node)
		var text bytes.Buffer
		enc := yaml.NewEncoder(&text)
		enc.SetIndent(2)
		if err := enc.Encode(&node); err != nil {
			return err
		}
		for line := range strings.Lines("---\n" + text.String()) {
			if err := a.say("%s\n", strings.TrimSuffix(line, "\n")); err != nil {
				return err
			}
		}
	}
	return nil
}

// inBlocks takes the style of JSON from a node.
func inBlocks(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		inBlocks(c)
	}
}
