// Package k8s_test renders the manifests as `kubectl apply -k` would, checks them strictly against the API's schemas, and
// then what schemas can't say: that the parts name each other rightly and that every pod is confined.
package k8s_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// tool runs a program of tools/go.mod.
func tool(t *testing.T, in []byte, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"tool", "-modfile=../tools/go.mod"}, args...)...)
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s%s", err, out, stderr.Bytes())
	}
	return out, err
}

func render(t *testing.T, folder string) []byte {
	t.Helper()
	// Read here as well, so that a changed file makes a cached result of this test stale.
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			_, err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := tool(t, nil, "kustomize", "build", folder)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// conform checks manifests against the schemas: unknown fields, wrong types and unknown kinds are errors.
func conform(t *testing.T, manifests []byte) error {
	t.Helper()
	_, err := tool(t, manifests, "kubeconform", "-strict", "-skip", "Certificate,Issuer,ServiceMonitor", "-schema-location", "schemas/{{.ResourceKind}}{{.KindSuffix}}.json")
	return err
}

type labels map[string]string

// within tells whether a selector selects what has these labels.
func (selector labels) within(l labels) bool {
	for k, v := range selector {
		if l[k] != v {
			return false
		}
	}
	return len(selector) > 0
}

type selection struct {
	MatchLabels labels `yaml:"matchLabels"`
}

type metadata struct {
	Name, Namespace string
	Labels          labels
}

type security struct {
	RunAsNonRoot             *bool `yaml:"runAsNonRoot"`
	RunAsUser                *int  `yaml:"runAsUser"`
	AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
	ReadOnlyRootFilesystem   *bool `yaml:"readOnlyRootFilesystem"`
	Privileged               *bool
	SeccompProfile           struct{ Type string } `yaml:"seccompProfile"`
	Capabilities             struct{ Add, Drop []string }
}

type port struct {
	Name          string
	ContainerPort int `yaml:"containerPort"`
	Port          any // a number, or in a policy a name
	TargetPort    any `yaml:"targetPort"`
	Protocol      string
}

// rule is one of a NetworkPolicy.
type rule struct {
	From, To []struct {
		PodSelector selection `yaml:"podSelector"`
	}
	Ports []port
}

type probe struct {
	GRPC *struct {
		Port    int
		Service string
	} `yaml:"grpc"`
}

type container struct {
	Name, Image     string
	ImagePullPolicy string `yaml:"imagePullPolicy"`
	Command, Args   []string
	Env             []struct {
		Name, Value string
		ValueFrom   struct {
			FieldRef struct {
				FieldPath string `yaml:"fieldPath"`
			} `yaml:"fieldRef"`
		} `yaml:"valueFrom"`
	}
	Ports     []port
	Lifecycle struct {
		PreStop struct{ Sleep struct{ Seconds int } } `yaml:"preStop"`
	}
	StartupProbe    *probe `yaml:"startupProbe"`
	ReadinessProbe  *probe `yaml:"readinessProbe"`
	LivenessProbe   *probe `yaml:"livenessProbe"`
	Resources       struct{ Requests, Limits map[string]string }
	SecurityContext security `yaml:"securityContext"`
	VolumeMounts    []struct {
		Name        string
		MountPath   string `yaml:"mountPath"`
		SubPath     string `yaml:"subPath"`
		SubPathExpr string `yaml:"subPathExpr"`
		ReadOnly    bool   `yaml:"readOnly"`
	} `yaml:"volumeMounts"`
}

func (c container) env(name string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value + e.ValueFrom.FieldRef.FieldPath
		}
	}
	return ""
}

type pod struct {
	ServiceAccountName           string   `yaml:"serviceAccountName"`
	AutomountServiceAccountToken *bool    `yaml:"automountServiceAccountToken"`
	EnableServiceLinks           *bool    `yaml:"enableServiceLinks"`
	HostNetwork                  bool     `yaml:"hostNetwork"`
	HostPID                      bool     `yaml:"hostPID"`
	HostIPC                      bool     `yaml:"hostIPC"`
	SecurityContext              security `yaml:"securityContext"`
	TopologySpreadConstraints    []struct {
		LabelSelector selection `yaml:"labelSelector"`
	} `yaml:"topologySpreadConstraints"`
	Containers []container
	Volumes    []struct {
		Name     string
		EmptyDir map[string]any `yaml:"emptyDir"`
		HostPath any            `yaml:"hostPath"`

		Projected struct {
			Sources []struct{ Secret struct{ Name string } }
		}
	}
	TerminationGracePeriodSeconds int `yaml:"terminationGracePeriodSeconds"`
}

// object is what of the kinds in use is looked at.
type object struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   metadata
	Spec       struct {
		// Selector is a Service's labels, or the matchLabels of the others.
		Selector                 map[string]any
		ClusterIP                string `yaml:"clusterIP"`
		PublishNotReadyAddresses bool   `yaml:"publishNotReadyAddresses"`
		Ports                    []port
		ServiceName              string `yaml:"serviceName"`
		PodManagementPolicy      string `yaml:"podManagementPolicy"`
		Replicas                 int
		PodSelector              selection `yaml:"podSelector"`
		Ingress, Egress          []rule
		PolicyTypes              []string `yaml:"policyTypes"`
		Template                 struct {
			Metadata metadata
			Spec     pod
		}
		VolumeClaimTemplates []struct{ Metadata metadata } `yaml:"volumeClaimTemplates"`
	}
	AutomountServiceAccountToken *bool `yaml:"automountServiceAccountToken"`
}

// selector returns an object's selector as labels.
func (o object) selector() labels {
	from := o.Spec.Selector
	if inner, ok := from["matchLabels"].(map[string]any); ok {
		from = inner
	}
	l := make(labels)
	for k, v := range from {
		l[k] = fmt.Sprint(v)
	}
	return l
}

func parse(t *testing.T, manifests []byte) []object {
	t.Helper()
	var objects []object
	for dec := yaml.NewDecoder(bytes.NewReader(manifests)); ; {
		var o object
		err := dec.Decode(&o)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
}

func find(t *testing.T, objects []object, kind, name string) object {
	t.Helper()
	for _, o := range objects {
		if o.Kind == kind && o.Metadata.Name == name {
			return o
		}
	}
	t.Fatalf("no %s %s", kind, name)
	return object{}
}

func is(b *bool, want bool) bool { return b != nil && *b == want }

// optional returns a folder with an overlay that has all components.
func optional(t *testing.T) string {
	t.Helper()
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	to := func(folder string) string {
		path, err := filepath.Rel(dir, filepath.Join(here, folder))
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	text := "resources: [" + to("overlays/production") + "]\ncomponents: [" + to("components/cert-manager") + ", " + to("components/direct") + ", " + to("components/tenants") + ", " + to("components/monitoring") + "]\n"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestManifests(t *testing.T) {
	for _, folder := range []string{"base", "overlays/local", "overlays/production", optional(t)} {
		t.Run(folder, func(t *testing.T) {
			manifests := render(t, folder)
			if err := conform(t, manifests); err != nil {
				t.Error(err)
			}
			objects := parse(t, manifests)
			seen := make(map[string]bool)
			for _, o := range objects {
				if key := o.Kind + " " + o.Metadata.Name; seen[key] {
					t.Errorf("%s is there twice", key)
				} else {
					seen[key] = true
				}
				if strings.Contains(o.Kind, "Role") {
					t.Errorf("%s %s: the accounts are to have no rights", o.Kind, o.Metadata.Name)
				}
				if o.Kind != "Namespace" && o.Metadata.Namespace != "headwater" {
					t.Errorf("%s %s is in namespace %q", o.Kind, o.Metadata.Name, o.Metadata.Namespace)
				}
				// An upgrade applies first what has not this label.
				if worker := o.Metadata.Labels["app.kubernetes.io/component"] == "worker"; worker != (o.Kind == "StatefulSet" && o.Metadata.Name == "headwater-worker") {
					t.Errorf("%s %s: the label of the workers is there: %v", o.Kind, o.Metadata.Name, worker)
				}
				if o.Kind == "ServiceAccount" && !is(o.AutomountServiceAccountToken, false) {
					t.Errorf("account %s mounts its token", o.Metadata.Name)
				}
			}
			if find(t, objects, "Namespace", "headwater").Metadata.Labels["pod-security.kubernetes.io/enforce"] != "restricted" {
				t.Error("the namespace does not enforce the restricted profile")
			}
			for name, service := range map[string]string{"headwater-coordinator": "headwater-coordinators", "headwater-worker": "headwater-workers"} {
				set := find(t, objects, "StatefulSet", name)
				if set.Spec.PodManagementPolicy != "Parallel" || set.Spec.ServiceName != service {
					t.Errorf("%s starts %q under %q", name, set.Spec.PodManagementPolicy, set.Spec.ServiceName)
				}
				if !set.selector().within(set.Spec.Template.Metadata.Labels) {
					t.Errorf("%s does not select its own pods", name)
				}
				headless := find(t, objects, "Service", service)
				if headless.Spec.ClusterIP != "None" || !headless.Spec.PublishNotReadyAddresses {
					t.Errorf("service %s has to be headless, and to name pods that are not ready", service)
				}
				find(t, objects, "PodDisruptionBudget", name)
				find(t, objects, "ServiceAccount", set.Spec.Template.Spec.ServiceAccountName)
				confined(t, name, set)
			}
			selectsOneSet(t, objects)
			reachable(t, objects)
			settings(t, objects)
			graces(t, objects)
		})
	}
}

// TestExamples: pods that people apply by themselves are as confined as the cluster's.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := conform(t, text); err != nil {
				t.Error(err)
			}
			var o struct {
				Kind     string
				Metadata metadata
				Spec     pod
			}
			if err := yaml.Unmarshal(text, &o); err != nil {
				t.Fatal(err)
			}
			if o.Kind != "Pod" || o.Metadata.Namespace != "headwater" {
				t.Errorf("it is a %s in namespace %q", o.Kind, o.Metadata.Namespace)
			}
			contained(t, o.Metadata.Name, o.Spec, nil)
		})
	}
}

// confined checks a set's pods: what contained checks, their probes and their certificates.
func confined(t *testing.T, name string, set object) {
	t.Helper()
	p := set.Spec.Template.Spec
	var claims []string
	for _, v := range set.Spec.VolumeClaimTemplates {
		claims = append(claims, v.Metadata.Name)
	}
	contained(t, name, p, claims)
	for _, c := range p.Containers {
		health := 0
		for _, p := range c.Ports {
			if p.Name == "health" {
				health = p.ContainerPort
			}
		}
		for what, p := range map[string]*probe{"": c.StartupProbe, "ready": c.ReadinessProbe, " ": c.LivenessProbe} {
			if p == nil || p.GRPC == nil || p.GRPC.Port != health || health == 0 || p.GRPC.Service != strings.TrimSpace(what) {
				t.Errorf("%s: a probe does not ask the gRPC health service at %d: %+v", name, health, p)
			}
		}
	}
	certificates(t, name, p)
}

// contained checks a pod: the restricted profile and what this project asks beyond it. The names are those of volumes that its set claims.
func contained(t *testing.T, name string, p pod, claims []string) {
	t.Helper()
	if !is(p.AutomountServiceAccountToken, false) || !is(p.EnableServiceLinks, false) || p.HostNetwork || p.HostPID || p.HostIPC {
		t.Errorf("%s: its pods see more than they need", name)
	}
	if c := p.SecurityContext; !is(c.RunAsNonRoot, true) || c.RunAsUser == nil || *c.RunAsUser != 65532 || c.SeccompProfile.Type != "RuntimeDefault" {
		t.Errorf("%s: pod security context %+v", name, c)
	}
	volumes := make(map[string]bool)
	for _, v := range p.Volumes {
		volumes[v.Name] = true
		if v.HostPath != nil {
			t.Errorf("%s mounts a path of its node", name)
		}
		if v.EmptyDir != nil && v.EmptyDir["sizeLimit"] == nil {
			t.Errorf("%s: volume %s has no bound", name, v.Name)
		}
	}
	for _, name := range claims {
		volumes[name] = true
	}
	for _, c := range p.Containers {
		s := c.SecurityContext
		if !is(s.AllowPrivilegeEscalation, false) || !is(s.ReadOnlyRootFilesystem, true) || s.Privileged != nil || len(s.Capabilities.Add) != 0 || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
			t.Errorf("%s: container security context %+v", name, s)
		}
		if c.Resources.Requests["cpu"] == "" || c.Resources.Requests["memory"] == "" || c.Resources.Limits["memory"] == "" {
			t.Errorf("%s: resources %+v", name, c.Resources)
		}
		for _, v := range c.VolumeMounts {
			if !volumes[v.Name] {
				t.Errorf("%s mounts %s, which is not there", name, v.Name)
			}
		}
	}
}

// certificates checks that a set's pods have a certificate of their role and the keys of gossip in one folder, into which renewals
// come.
func certificates(t *testing.T, name string, p pod) {
	t.Helper()
	c := p.Containers[0]
	for _, m := range c.VolumeMounts {
		if m.SubPath != "" || m.SubPathExpr != "" {
			t.Errorf("%s: what changes in %s does not come to %s", name, m.Name, m.MountPath)
		}
		if m.MountPath != c.env("HEADWATER_TLS_DIR") {
			continue
		}
		for _, v := range p.Volumes {
			if v.Name != m.Name {
				continue
			}
			var secrets []string
			for _, source := range v.Projected.Sources {
				secrets = append(secrets, source.Secret.Name)
			}
			if want := []string{name + "-tls", "headwater-gossip"}; !slices.Equal(secrets, want) || !m.ReadOnly {
				t.Errorf("%s: its folder of certificates is of %q, not %q", name, secrets, want)
			}
			return
		}
	}
	t.Errorf("%s has no certificate", name)
}

// graces checks that a worker that is full has the time to hand over what it holds.
func graces(t *testing.T, objects []object) {
	t.Helper()
	set := find(t, objects, "StatefulSet", "headwater-worker").Spec.Template.Spec
	rate := find(t, objects, "StatefulSet", "headwater-coordinator").Spec.Template.Spec.Containers[0].env("HEADWATER_COPY_RATE")
	if rate == "" {
		rate = "64MiB" // docs/limits.md
	}
	drain, err := time.ParseDuration(set.Containers[0].env("HEADWATER_DRAIN_TIMEOUT"))
	if err != nil {
		t.Fatal(err)
	}
	need := sizeOf(t, set.Containers[0].env("HEADWATER_MEMORY")) / sizeOf(t, rate)
	if has := int(drain.Seconds()); has < need || set.TerminationGracePeriodSeconds < has+20 {
		t.Errorf("a worker that is full needs %d s to move away what it holds, and has %d s, of %d s in all", need, has, set.TerminationGracePeriodSeconds)
	}
	// It leaves the Service before it sends its clients away, and has docs/limits.md's time for what it has accepted.
	coordinator := find(t, objects, "StatefulSet", "headwater-coordinator").Spec.Template.Spec
	if wait := coordinator.Containers[0].Lifecycle.PreStop.Sleep.Seconds; wait < 5 || coordinator.TerminationGracePeriodSeconds < wait+27 {
		t.Errorf("a coordinator serves on for %d s of the %d s that its end may take", wait, coordinator.TerminationGracePeriodSeconds)
	}
}

// sizeOf reads a size in binary units.
func sizeOf(t *testing.T, size string) int {
	t.Helper()
	for unit, bytes := range map[string]int{"MiB": 1 << 20, "GiB": 1 << 30} {
		if number, ok := strings.CutSuffix(size, unit); ok {
			n, err := strconv.Atoi(number)
			if err != nil || n <= 0 {
				t.Fatalf("size %q: %v", size, err)
			}
			return n * bytes
		}
	}
	t.Fatalf("size %q", size)
	return 0
}

// selectsOneSet checks that whatever selects pods selects those of one set, and names ports that these have.
func selectsOneSet(t *testing.T, objects []object) {
	t.Helper()
	for _, o := range objects {
		var selector labels
		ports := o.Spec.Ports
		switch o.Kind {
		case "Service", "PodDisruptionBudget":
			selector = o.selector()
		case "NetworkPolicy":
			selector = o.Spec.PodSelector.MatchLabels
			for _, rule := range o.Spec.Ingress {
				ports = append(ports, rule.Ports...)
			}
			var dns []string
			for _, rule := range o.Spec.Egress {
				for _, p := range rule.Ports {
					dns = append(dns, fmt.Sprint(p.Protocol, p.Port))
				}
			}
			adds := o.Metadata.Name == "headwater-worker-direct" && slices.Equal(o.Spec.PolicyTypes, []string{"Ingress"}) && dns == nil
			if !adds && (!slices.Equal(o.Spec.PolicyTypes, []string{"Ingress", "Egress"}) || !slices.Equal(dns, []string{"53", "UDP53"})) {
				t.Errorf("%s %s: out go %q", o.Kind, o.Metadata.Name, dns)
			}
		case "StatefulSet":
			for _, c := range o.Spec.Template.Spec.TopologySpreadConstraints {
				if !c.LabelSelector.MatchLabels.within(o.Spec.Template.Metadata.Labels) {
					t.Errorf("%s spreads others' pods", o.Metadata.Name)
				}
			}
			continue
		default:
			continue
		}
		var sets []object
		for _, set := range objects {
			if set.Kind == "StatefulSet" && selector.within(set.Spec.Template.Metadata.Labels) {
				sets = append(sets, set)
			}
		}
		if len(sets) != 1 {
			t.Errorf("%s %s selects the pods of %d sets", o.Kind, o.Metadata.Name, len(sets))
			continue
		}
		has := make(map[string]port)
		for _, p := range sets[0].Spec.Template.Spec.Containers[0].Ports {
			has[p.Name] = p
		}
		for _, p := range ports {
			name := p.TargetPort
			if o.Kind == "NetworkPolicy" {
				name = p.Port
			}
			to, ok := has[fmt.Sprint(name)]
			if !ok || to.Protocol != p.Protocol || (o.Kind == "Service" && p.Port != to.ContainerPort) {
				t.Errorf("%s %s: port %+v leads to %+v", o.Kind, o.Metadata.Name, p, to)
			}
		}
	}
}

// reachable checks that the policies let everything of the cluster reach workers, also other workers, which copy sessions from each other.
func reachable(t *testing.T, objects []object) {
	t.Helper()
	worker := find(t, objects, "StatefulSet", "headwater-worker").Spec.Template.Metadata.Labels
	for _, from := range []string{"headwater-coordinator", "headwater-worker"} {
		pod := find(t, objects, "StatefulSet", from).Spec.Template.Metadata.Labels
		in, out := false, false
		for _, r := range find(t, objects, "NetworkPolicy", "headwater-worker").Spec.Ingress {
			for _, peer := range r.From {
				in = in || peer.PodSelector.MatchLabels.within(pod) && slices.ContainsFunc(r.Ports, func(p port) bool { return p.Port == "grpc" })
			}
		}
		for _, r := range find(t, objects, "NetworkPolicy", from).Spec.Egress {
			for _, peer := range r.To {
				out = out || peer.PodSelector.MatchLabels.within(worker) && len(r.Ports) == 0
			}
		}
		if !in || !out {
			t.Errorf("the policies keep %s from workers: out %v, in %v", from, out, in)
		}
	}
}

// settings checks that the processes are told their names, and seeds that exist.
func settings(t *testing.T, objects []object) {
	t.Helper()
	for _, o := range objects {
		if o.Kind != "StatefulSet" {
			continue
		}
		c := o.Spec.Template.Spec.Containers[0]
		if c.env("HEADWATER_NAME") != "metadata.name" || c.env("POD_IP") != "status.podIP" || !slices.Equal(c.Args, []string{"serve"}) || c.Command != nil {
			t.Errorf("%s: %s %v", o.Metadata.Name, c.env("HEADWATER_NAME"), c.Args)
		}
		at := make(map[string]int)
		for _, p := range c.Ports {
			at[p.Name] = p.ContainerPort
		}
		for setting, want := range map[string]string{
			"HEADWATER_LISTEN":           fmt.Sprintf(":%d", at["grpc"]),
			"HEADWATER_ADVERTISE":        fmt.Sprintf("[$(POD_IP)]:%d", at["grpc"]),
			"HEADWATER_GOSSIP":           fmt.Sprintf(":%d", at["gossip"]),
			"HEADWATER_HEALTH":           fmt.Sprintf(":%d", at["health"]),
			"HEADWATER_INSECURE":         "",
			"HEADWATER_GOSSIP_ADVERTISE": fmt.Sprintf("[$(POD_IP)]:%d", at["gossip"]),
		} {
			if got := c.env(setting); got != want {
				t.Errorf("%s: %s is %q, not %q", o.Metadata.Name, setting, got, want)
			}
		}
		for _, seed := range strings.Split(c.env("HEADWATER_JOIN"), ",") {
			host, number, _ := strings.Cut(seed, ":")
			s := find(t, objects, "Service", host)
			protocols := 0
			for _, p := range s.Spec.Ports {
				if fmt.Sprint(p.Port) == number {
					protocols++
				}
			}
			if protocols != 2 {
				t.Errorf("%s: gossip at %s needs TCP and UDP, %d are served", o.Metadata.Name, seed, protocols)
			}
		}
	}
}

func TestLocalOverlayNeedsNoRegistryAndNoVolumes(t *testing.T) {
	objects := parse(t, render(t, "overlays/local"))
	for name, image := range map[string]string{"headwater-coordinator": "headwater/coord:local", "headwater-worker": "headwater/worker:local"} {
		set := find(t, objects, "StatefulSet", name)
		c := set.Spec.Template.Spec.Containers[0]
		if c.Image != image || c.ImagePullPolicy != "Never" {
			t.Errorf("%s takes %s, %s", name, c.Image, c.ImagePullPolicy)
		}
		if set.Spec.VolumeClaimTemplates != nil {
			t.Errorf("%s claims a volume", name)
		}
	}
	if n := find(t, objects, "StatefulSet", "headwater-worker").Spec.Replicas; n != 3 {
		t.Errorf("%d workers", n)
	}
}

// TestLocalOverlayNamesWhatMakeImageTags runs the recipe of `make image` on other binaries: what it packs is what the overlay's
// pods take.
func TestLocalOverlayNamesWhatMakeImageTags(t *testing.T) {
	recipe, err := exec.CommandContext(t.Context(), "make", "-n", "-C", "..", "image", "VERSION=9.8.7").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, recipe)
	}
	at := slices.IndexFunc(strings.Split(string(recipe), "\n"), func(line string) bool { return strings.Contains(line, "internal/image/cmd") })
	if at < 0 {
		t.Fatalf("make image packs no images:\n%s", recipe)
	}
	dir := t.TempDir()
	args := strings.Fields(strings.Split(string(recipe), "\n")[at])[1:]
	licences := false
	for i, arg := range args {
		switch arg {
		case "out/LICENSES.txt=/LICENSES.txt":
			licences = true
			args[i] = "LICENSE=/LICENSES.txt" // which is there
		case "out/images.tar", "out":
			args[i] = filepath.Join(dir, strings.TrimPrefix(arg, "out"))
		case "bin/coord", "bin/worker":
			args[i] = filepath.Join(dir, filepath.Base(arg))
			build := exec.CommandContext(t.Context(), "go", "build", "-o", args[i], "../internal/image/cmd") // any static program
			build.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
	}
	if !licences {
		t.Errorf("make image packs no licences: %q", args)
	}
	pack := exec.CommandContext(t.Context(), "go", args...)
	pack.Dir = ".."
	out, err := pack.CombinedOutput()
	if err != nil {
		t.Fatalf("go %q: %v: %s", args, err, out)
	}
	packed := strings.Fields(string(out))
	for _, o := range parse(t, render(t, "overlays/local")) {
		for _, c := range o.Spec.Template.Spec.Containers {
			if !slices.Contains(packed, c.Image) {
				t.Errorf("%s takes %s, make image packs %q", o.Metadata.Name, c.Image, packed)
			}
		}
	}
	if !slices.Contains(packed, "headwater/coord:9.8.7") || !slices.Contains(packed, "headwater/worker:9.8.7") {
		t.Errorf("make image VERSION=9.8.7 packs %q", packed)
	}
}

// TestTheSecretsOfPodsAreThoseThatTheProgramPrints runs the commands of docs/kubernetes.md.
func TestTheSecretsOfPodsAreThoseThatTheProgramPrints(t *testing.T) {
	dir := t.TempDir()
	coord := filepath.Join(dir, "coord")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", coord, "../cmd/coord").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var printed []byte
	for _, args := range [][]string{{"init"}, {"issue", "coordinator", "headwater-coordinator-*"}, {"issue", "worker", "headwater-worker-*"}, {"secrets"}} {
		cmd := exec.CommandContext(t.Context(), coord, append([]string{"certs"}, args...)...)
		cmd.Dir = dir
		var err error
		if printed, err = cmd.Output(); err != nil {
			t.Fatalf("%q: %v", args, err)
		}
	}
	secrets := parse(t, printed)
	if err := conform(t, printed); err != nil {
		t.Error(err)
	}
	for _, o := range parse(t, render(t, "base")) {
		for _, v := range o.Spec.Template.Spec.Volumes {
			for _, source := range v.Projected.Sources {
				if find(t, secrets, "Secret", source.Secret.Name).Metadata.Namespace != o.Metadata.Namespace {
					t.Errorf("%s is in another namespace than %s", source.Secret.Name, o.Metadata.Name)
				}
			}
		}
	}
}

// The check itself has to see mistakes.
func TestSchemasAreStrict(t *testing.T) {
	manifests := string(render(t, "base"))
	for mistake, change := range map[string][2]string{
		"a misspelled field":    {"podManagementPolicy:", "podManagmentPolicy:"},
		"a field out of place":  {"automountServiceAccountToken: false\nkind", "hostNetwork: false\nkind"},
		"a number for a word":   {"protocol: UDP", "protocol: 17"},
		"a word for a number":   {"containerPort: 7601", "containerPort: grpc"},
		"an unknown kind":       {"kind: PodDisruptionBudget", "kind: PodDisruptionBadget"},
		"an unknown version":    {"apiVersion: apps/v1", "apiVersion: apps/v2"},
		"a missing part":        {"          type: RuntimeDefault", "          localhostProfile: x"},
		"an unknown probe":      {"          grpc:\n", "          grcp:\n"},
		"a list for one string": {"serviceName: headwater-workers", "serviceName: [headwater-workers]"},
	} {
		wrong := strings.Replace(manifests, change[0], change[1], 1)
		if wrong == manifests {
			t.Errorf("%s: %q is not in the manifests", mistake, change[0])
			continue
		}
		if err := conform(t, []byte(wrong)); err == nil {
			t.Errorf("%s is not seen", mistake)
		}
	}
}
