#!/usr/bin/env bash
# Tries the manifests on a real one-node Kubernetes: applies overlays/local with the images of `make image`, submits the fixture
# job from a pod through the Service, deletes a worker's pod while a second job runs, and compares the results' bits with
# those computed on this machine without a cluster. Ends and removes what it started, however it ends.
#
#   HEADWATER_KUBE        folder with cluster.sh and build.sh, which make such a Kubernetes (needed; runs as root); README.md
#                         beside this file says what they have to do
#   HEADWATER_KUBE_BUILD  folder of the built Kubernetes, kept between runs (default .cache/kube; 5 to 10 minutes the first time)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

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
    kubectl get pods,events 2>&1 | tail -40 >&2 || true
    for pod in headwater-coordinator-0 headwater-worker-0 headwater-worker-1 headwater-worker-2; do
      echo "-- $pod" >&2
      kubectl logs --tail 30 "$pod" 2>&1 | cut -c 1-300 >&2 || true
    done
  fi
  cluster down > /dev/null 2>&1 || true
  rm -rf "$work"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

say "binaries, images and jobs"
make -s image
cp -r bin "$work/bin" && cp out/images.tar "$work/"
coord=$work/bin/coord
cp test/data/smollm2/attention.safetensors "$work/fixture.safetensors"
"$coord" submit "$work/fixture.safetensors" --local 1 --out "$work/fixture.here.safetensors" --quiet > /dev/null
# A job that takes so long here takes long enough there for a worker to be deleted in its middle.
tokens=1024 positions=8192
while :; do
  go run ./k8s/testjob -out "$work/long.safetensors" -tokens $tokens -positions $positions
  began=$SECONDS
  "$coord" submit "$work/long.safetensors" --local 1 --out "$work/long.here.safetensors" --quiet > /dev/null
  echo "$tokens tokens on $positions positions take $((SECONDS - began)) s without a cluster"
  [ $((SECONDS - began)) -lt 10 ] || break
  [ $tokens -lt 65536 ] || fail "no job of a reasonable size takes long enough"
  tokens=$((tokens * 2)) positions=$((positions < 32768 ? positions * 2 : positions))
done
go run ./internal/image/cmd -out "$work/client.tar" -version jobs -add "$work/fixture.safetensors=/jobs/fixture.safetensors" \
  -add "$work/long.safetensors=/jobs/long.safetensors" "$work/bin/coord"

say "the cluster"
cluster down > /dev/null 2>&1 || true # of a run that was killed
cluster up
cluster image "$work/images.tar" > /dev/null
cluster image "$work/client.tar" > /dev/null
kubectl apply -f k8s/base/namespace.yaml
kubectl apply -k k8s/base --dry-run=server --validate=strict > /dev/null
kubectl apply -k k8s/overlays/local
kubectl rollout status --timeout 120s statefulset/headwater-coordinator
kubectl rollout status --timeout 120s statefulset/headwater-worker
address=$(kubectl get service headwater-coordinator -o 'jsonpath={.spec.clusterIP}'):7600

# remote runs coord inside the cluster's network, through the Service.
remote() { cluster exec "$coord" "$@" --insecure --coordinator "$address"; }

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
workers_seen() { [ "$(remote status --output json | grep -c '"boot"')" -ge "$1" ]; }
until_true 60 workers_seen 3
remote status

# submit_pod runs `coord submit` of a job of the client image in a pod, under the pod's name as the job's key.
submit_pod() {
  local name=$1 job=$2
  kubectl apply -f - << POD
apiVersion: v1
kind: Pod
metadata:
  name: $name
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext: {runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: coord
      image: headwater/coord:jobs
      imagePullPolicy: Never
      args: [submit, /jobs/$job.safetensors, --key, $name, --coordinator, "headwater-coordinator:7600", --insecure, --out, /out/result.safetensors, --output, json]
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      volumeMounts: [{name: out, mountPath: /out}, {name: tmp, mountPath: /tmp}]
  volumes: [{name: out, emptyDir: {}}, {name: tmp, emptyDir: {}}]
POD
}
state() { remote jobs show "$1" --output json 2> /dev/null | field state; }
in_state() { [ "$(state "$1")" = "$2" ]; }
pod_phase() { kubectl get pod "$1" -o 'jsonpath={.status.phase}'; }
pod_ended() { case $(pod_phase "$1") in Succeeded | Failed) ;; *) return 1 ;; esac; }

# tensors prints a safetensors file's data without its header, which tells times and the plan.
tensors() { tail -c +$(($(od -An -t u8 -N 8 "$1") + 9)) "$1"; }
# same_bits compares a job's result, fetched through the Service, with the one computed here.
same_bits() {
  local key=$1 reference=$2
  remote jobs result "$key" --out "$work/$key.safetensors" --quiet
  cmp <(tensors "$reference") <(tensors "$work/$key.safetensors") || fail "$key: the contexts differ from those of this machine"
  [ "$(tensors "$reference" | wc -c)" -gt 0 ] || fail "$reference holds nothing"
  "$coord" diff "$reference" "$work/$key.safetensors" || fail "$key: coord diff sees a difference"
}

say "the fixture job, from a pod through the Service"
submit_pod first fixture
until_true 120 pod_ended first
[ "$(pod_phase first)" = Succeeded ] || fail "the pod that submits failed: $(kubectl logs first)"
kubectl logs first | field state
same_bits first "$work/fixture.here.safetensors"

say "a second job, whose worker is deleted"
submit_pod second long
attending() { [ "$(remote jobs show second --output json | field units_done)" -ge 1 ]; }
until_true 120 attending
was=$(kubectl get pod headwater-worker-1 -o 'jsonpath={.metadata.uid}')
kubectl delete pod headwater-worker-1 --grace-period=0 --force
in_state second running || fail "the second job ended before its worker was deleted"
until_true 300 pod_ended second
[ "$(pod_phase second)" = Succeeded ] || fail "the pod that submits failed: $(kubectl logs second)"
lost=$(kubectl logs second | field workers_lost)
echo "workers lost: $lost"
[ "${lost:-0}" -ge 1 ] || fail "the deletion did not hit the job"
same_bits second "$work/long.here.safetensors"

say "the deleted worker is back"
came_back() { local now; now=$(kubectl get pod headwater-worker-1 -o 'jsonpath={.metadata.uid}') && [ "$now" != "$was" ]; }
until_true 60 came_back
kubectl rollout status --timeout 120s statefulset/headwater-worker
until_true 60 workers_seen 3
submit_pod third fixture
until_true 120 pod_ended third
same_bits third "$work/fixture.here.safetensors"
remote jobs list

ended=yes
say "the same bits on this machine, on the cluster, and over the loss of a worker"
