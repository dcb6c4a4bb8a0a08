# Part of test.sh: jobs from pods, through the Service, and over the loss of a worker.
say "jobs"
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
cluster image "$work/client.tar" > /dev/null

# submit_pod runs `coord submit` of a job of the client image in a pod, under the pod's name as the job's key.
submit_pod() {
  local name=$1 job=$2 coordinator=$3
  kubectl apply -f - << POD
apiVersion: v1
kind: Pod
metadata:
  name: $name
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext: {runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: coord
      image: headwater/coord:jobs
      imagePullPolicy: Never
      args: [submit, /jobs/$job.safetensors, --key, $name, --coordinator, "$coordinator:7600", --tls-dir, /tls, --out, /out/result.safetensors, --output, json]
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      volumeMounts: [{name: out, mountPath: /out}, {name: tmp, mountPath: /tmp}, {name: tls, mountPath: /tls, readOnly: true}]
  volumes: [{name: out, emptyDir: {}}, {name: tmp, emptyDir: {}}, {name: tls, secret: {secretName: client-test-tls, defaultMode: 0440}}]
POD
}
state() { remote jobs show "$1" --output json 2> /dev/null | field state; }
in_state() { [ "$(state "$1")" = "$2" ]; }
pod_phase() { kubectl get pod "$1" -o 'jsonpath={.status.phase}'; }
pod_ended() { case $(pod_phase "$1") in Succeeded | Failed) ;; *) return 1 ;; esac; }
ends_well() {
  until_true "$2" pod_ended "$1"
  [ "$(pod_phase "$1")" = Succeeded ] || fail "the pod that submits failed: $(kubectl logs "$1")"
}

# tensors prints a safetensors file's data without its header, which tells times and the plan.
tensors() { tail -c +$(($(od -An -t u8 -N 8 "$1") + 9)) "$1"; }
# same_bits compares a job's result, fetched from its coordinator, with the one computed here.
same_bits() {
  local key=$1 reference=$2
  remote jobs result "$key" --out "$work/$key.safetensors" --quiet
  cmp <(tensors "$reference") <(tensors "$work/$key.safetensors") || fail "$key: the contexts differ from those of this machine"
  [ "$(tensors "$reference" | wc -c)" -gt 0 ] || fail "$reference holds nothing"
  "$coord" diff "$reference" "$work/$key.safetensors" || fail "$key: coord diff sees a difference"
}
# at_coordinator says which coordinator took a job: its id begins with the coordinator's name.
at_coordinator() {
  local id
  id=$(kubectl logs "$1" | field id)
  AT=$(kubectl get pod "${id%-*}" -o 'jsonpath={.status.podIP}'):7600
}

say "the fixture job, from a pod through the Service"
submit_pod first fixture headwater-coordinator
ends_well first 120
at_coordinator first
same_bits first "$work/fixture.here.safetensors"

say "a second job, whose worker is deleted"
AT=$(kubectl get pod headwater-coordinator-0 -o 'jsonpath={.status.podIP}'):7600
submit_pod second long headwater-coordinator-0.headwater-coordinators
attending() { [ "$(remote jobs show second --output json | field units_done)" -ge 1 ]; }
until_true 120 attending
kubectl delete pod headwater-worker-1 --grace-period=0 --force
in_state second running || fail "the second job ended before its worker was deleted"
ends_well second 300
lost=$(kubectl logs second | field workers_lost)
echo "workers lost: $lost"
[ "${lost:-0}" -ge 1 ] || fail "the deletion did not hit the job"
same_bits second "$work/long.here.safetensors"

say "the deleted worker is back"
rolled worker
AT=$address
remote health --workers 3 --wait 60s
submit_pod third fixture headwater-coordinator
ends_well third 120
at_coordinator third
same_bits third "$work/fixture.here.safetensors"
AT=$address
