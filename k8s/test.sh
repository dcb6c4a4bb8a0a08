#!/usr/bin/env bash
# Tries the manifests on a real one-node Kubernetes: applies overlays/local with the images of `make image` and the Secrets of
# `coord certs secrets`, runs jobs from pods through the Service and over the loss of a worker, and steps sessions while workers'
# pods are deleted, killed, replaced one after the other, and scaled up and down. All results are compared bit for bit with those
# computed on this machine without a cluster. The cluster is upgraded from an older version and back, and restored from encrypted
# snapshots. Who has a wrong Secret is refused. Prints `figure NAME VALUE`. Ends and removes what it started, however it ends.
#
#   test.sh            everything
#   test.sh PART...    of sessions, jobs, snapshots, upgrade, tenants, strangers, these alone; figures is sessions
#
#   HEADWATER_KUBE        folder with cluster.sh and build.sh, which make such a Kubernetes (needed; runs as root); README.md
#                         beside this file says what they have to do
#   HEADWATER_OLD         commit of the version that the upgrade begins with (default: the last one of protocol 1.3)
#   HEADWATER_KUBE_BUILD  folder of the built Kubernetes, kept between runs (default .cache/kube; 5 to 10 minutes the first time)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
parts=("$@")
[ $# -gt 0 ] || parts=(sessions jobs snapshots upgrade tenants strangers)

say() { printf '\n== %s\n' "$*" >&2; }
fail() { printf 'test-k8s: %s\n' "$*" >&2; exit 1; }

[ -n "${HEADWATER_KUBE:-}" ] || fail "HEADWATER_KUBE has to name a folder with cluster.sh and build.sh; k8s/README.md says what they have to do"
[ -x "$HEADWATER_KUBE/cluster.sh" ] || fail "no cluster.sh in $HEADWATER_KUBE"
[ "$(id -u)" = 0 ] || fail "namespaces, mounts and cgroups of a node need root"
kube=${HEADWATER_KUBE_BUILD:-.cache/kube}
export KUBE_NS=${KUBE_NS:-headwater-test}

missing=
for need in etcd:etcd-server openssl:openssl containerd:containerd runc:runc /usr/lib/cni/bridge:containernetworking-plugins \
  iptables:iptables conntrack:conntrack ethtool:ethtool socat:socat ip:iproute2; do
  command -v "${need%%:*}" > /dev/null || missing="$missing ${need##*:}"
done
if [ -n "$missing" ]; then
  say "installing$missing"
  apt-get install -y -q --no-install-recommends $missing > /dev/null || fail "install$missing and try again"
fi

mkdir -p "$kube"
kube=$(realpath "$kube")
if [ ! -x "$kube/bin/coredns" ]; then # the last that is built
  say "building Kubernetes in $kube, once"
  nice "$HEADWATER_KUBE/build.sh" "$kube" > "$kube/build.log" 2>&1 || fail "building Kubernetes failed: see $kube/build.log"
fi
cluster() { local cmd=$1; shift; "$HEADWATER_KUBE/cluster.sh" "$cmd" "$kube" "$@"; }
kubectl() { cluster exec kubectl -n headwater "$@"; }

work=$(mktemp -d)
ended=
finish() {
  code=$?
  trap - EXIT INT TERM
  if [ -z "$ended" ] && [ -d "$kube/run" ]; then
    say "what went on"
    kubectl get pods 2>&1 >&2 || true
    kubectl get events --sort-by .lastTimestamp 2>&1 | tail -40 >&2 || true
    for pod in $(kubectl get pods -o name 2> /dev/null); do
      echo "-- $pod" >&2
      kubectl logs --tail 30 "$pod" 2>&1 | cut -c 1-300 >&2 || true
    done
  fi
  [ -z "${stepper_PID:-}" ] || kill "$stepper_PID" 2> /dev/null || true
  cluster down > /dev/null 2>&1 || true
  rm -rf "$work"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

exec 3>&1 1>&2 # figures alone go to the standard output
figure() { printf 'figure %s %s\n' "$1" "$2" >&3; }

say "binaries, images and certificates"
make -s image
cp -r bin "$work/bin" && cp out/images.tar "$work/"
CGO_ENABLED=0 go build -o "$work/bin/stepper" ./k8s/stepper
coord=$work/bin/coord
certs() { "$coord" certs "$@" --dir "$work/certs" > /dev/null; }
certs init
certs issue coordinator 'headwater-coordinator-*'
certs issue worker 'headwater-worker-*'
certs issue client test
certs issue admin ops

say "the cluster"
cluster down > /dev/null 2>&1 || true # of a run that was killed
cluster up
cluster image "$work/images.tar" > /dev/null
kubectl apply -f k8s/base/namespace.yaml
dry_run() { kubectl apply -k "$1" --dry-run=server --validate=strict > /dev/null || fail "the API server does not take $1"; }
for folder in base overlays/local overlays/production; do
  dry_run "k8s/$folder"
done
# Components have kinds of other projects, of which the API server learns the names alone.
for kind in issuers.cert-manager.io/v1/Issuer certificates.cert-manager.io/v1/Certificate servicemonitors.monitoring.coreos.com/v1/ServiceMonitor; do
  IFS=/ read -r name version kind <<< "$kind"
  kubectl apply -f - > /dev/null << CRD
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: $name}
spec:
  group: ${name#*.}
  scope: Namespaced
  names: {plural: ${name%%.*}, kind: $kind}
  versions: [{name: $version, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
CRD
  kubectl wait --for=condition=Established "crd/$name" > /dev/null
done
mkdir -p "$work/all"
up=$(realpath --relative-to "$work/all" k8s)
{ echo "resources: [$up/overlays/production]"; echo 'components:'; for folder in k8s/components/*/; do echo "  - $up/components/$(basename "$folder")"; done; } > "$work/all/kustomization.yaml"
dry_run "$work/all"
"$coord" certs secrets coordinator worker client --dir "$work/certs" | kubectl apply --server-side -f -
kubectl apply -k k8s/overlays/local
rolled() { kubectl rollout status --timeout 600s "statefulset/headwater-$1"; }
rolled coordinator
rolled worker
address=$(kubectl get service headwater-coordinator -o 'jsonpath={.spec.clusterIP}'):7600

# remote runs coord inside the cluster's network, through the Service, or at the coordinator that AT names, as a client, or as WHO.
remote() { cluster exec "$coord" "$@" --tls-dir "$work/certs/${WHO:-client-test}" --coordinator "${AT:-$address}"; }

# field prints the first value of a name in JSON.
field() { grep -o "\"$1\": *[^,}]*" | head -1 | sed 's/^[^:]*: *//; s/"//g' || true; }

# until_true runs a command until it succeeds, for at most so many seconds.
until_true() {
  local limit=$((SECONDS + $1)); shift
  until "$@" > /dev/null 2>&1; do
    [ $SECONDS -lt $limit ] || fail "did not come true: $*"
    sleep 0.2
  done
}

# step_sessions N STEPPER... has a stepper step N sessions without a pause until step_no_more. It ends a window at each line, and says
# what was in it. Their ids are in stepped.
step_sessions() {
  local line n=$1
  shift
  coproc stepper { exec "$HEADWATER_KUBE/cluster.sh" exec "$kube" "$@" -coordinator "$address" -tls-dir "$work/certs/client-test"; }
  stepped=()
  while [ ${#stepped[@]} -lt "$n" ]; do
    read -r -t 60 line <&"${stepper[0]}" || fail "the stepper does not begin"
    stepped+=("$(field session <<< "$line")")
  done
}
step_no_more() {
  local pid=$stepper_PID
  exec {stepper[1]}>&-
  wait "$pid" || fail "the stepper failed"
  unset stepper_PID
}
window() {
  echo >&"${stepper[1]}"
  read -r -t 60 line <&"${stepper[0]}" || fail "the stepper has ended"
  echo "$1: $line"
  [ "$(field ended <<< "$line")" = 0 ] || fail "$1: a session has ended"
  [ "$(field tokens <<< "$line")" -gt 0 ] || fail "$1: nothing was stepped"
}
flawless() {
  window "$1"
  [ "$(field errors <<< "$line")" = 0 ] || fail "$1: steps failed"
}
whole() { [ "$(remote status --output json | field lacking_shards)" = 0 ]; }

remote health --workers 3 --wait 60s # pods are ready a moment before the Service leads to them
remote status
for part in "${parts[@]}"; do
  began=$SECONDS
  . "k8s/test-${part/figures/sessions}.sh"
  took="${took:-}$part $((SECONDS - began)) s, "
done

ended=yes
say "the same bits on this machine, on the cluster, and over the loss of workers (${took}all $SECONDS s)"
