# Part of test.sh: sessions are backed up by a pod, encrypted, to a volume; all workers are lost; a pod restores them, and they go on.
say "backup and restore"
# A node without a provisioner of volumes: a folder of this machine is the one of the claim.
mkdir -p "$work/backup"
kubectl apply -f - << VOLUME
apiVersion: v1
kind: PersistentVolume
metadata: {name: headwater-backup}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  persistentVolumeReclaimPolicy: Retain
  claimRef: {namespace: headwater, name: headwater-backup}
  local: {path: $work/backup}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/os, operator: In, values: [linux]}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: headwater-backup, namespace: headwater}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  volumeName: headwater-backup
  resources: {requests: {storage: 1Gi}}
VOLUME
keys() {
  "$coord" sessions key "$work/$1.key" > "$work/$1.pub"
  for half in pub key; do
    kubectl create secret generic "headwater-$1-$half" --from-file="snapshots.$half=$work/$1.$half"
  done
}
keys snapshots
keys others

# example POD OF PHASE [SED]: the pod of an example, with the test's certificate and the id of a session, ends so.
example() {
  kubectl delete --ignore-not-found --now pod "headwater-$1" > /dev/null
  sed "s/client-ann-tls/client-test-tls/; s/7c12460567eb4e982cbcc4ec446bf019/$2/; ${4:-}" "k8s/examples/$1.yaml" | kubectl apply -f -
  until_true 120 example_ended "$1"
  [ "$(example_phase "$1")" = "$3" ] || fail "the pod headwater-$1 did not end as $3: $(kubectl logs "headwater-$1")"
}
example_phase() { kubectl get pod "headwater-$1" -o 'jsonpath={.status.phase}'; }
example_ended() { case $(example_phase "$1") in Succeeded | Failed) ;; *) return 1 ;; esac; }
sessions_left() { remote sessions list --output json | grep -c '"id"' || true; }

step_sessions 4 "$work/bin/stepper"
sleep 1
kept=("${stepped[@]:0:2}")
for id in "${kept[@]}"; do
  example snapshot "$id" Succeeded "s/story/$id/"
  [ "$(head -c 21 "$work/backup/$id.snapshot")" = age-encryption.org/v1 ] || fail "the snapshot of $id is not encrypted"
done
flawless "while snapshots are written"
step_no_more

kubectl delete pod -l app.kubernetes.io/component=worker --grace-period=0 --force
rolled worker
remote health --workers 3 --wait 60s
for id in "${kept[@]}"; do
  ! remote sessions show "$id" > "$work/gone" 2>&1 || fail "a session outlives all its workers: $(cat "$work/gone")"
done

before=$(sessions_left)
example restore "" Failed "s/story/$id/; s/headwater-snapshots-key/headwater-others-key/"
kubectl logs headwater-restore
[ "$(sessions_left)" = "$before" ] || fail "a restore with another's key leaves a session"
for id in "${kept[@]}"; do
  example restore "" Succeeded "s/story/$id/"
  restored=$(kubectl logs headwater-restore | field id)
  step_sessions 1 "$work/bin/stepper" -attach "$restored"
  sleep 1
  flawless "session $id, restored as $restored"
  step_no_more
done
kubectl delete pod headwater-snapshot headwater-restore
kubectl delete pvc headwater-backup
cluster exec kubectl delete pv headwater-backup
