# Part of test.sh: sessions that are stepped without a pause while their workers go and come.
say "sessions, while workers go and come"

step_sessions 4 "$work/bin/stepper"

# pause NAME DO...: the longest gap while DO is done to each worker in turn, beyond that of as long a time in which nothing is.
pause() {
  local name=$1 most=0 began length calm gap worker
  shift
  for worker in 2 1 0; do
    until_true 60 whole
    sleep 1
    window "before $name of worker $worker"
    began=$(date +%s%N)
    "$@" "$worker"
    rolled worker
    until_true 60 whole
    length=$((($(date +%s%N) - began) / 1000000))
    flawless "$name of worker $worker"
    gap=$(field gap_ms <<< "$line")
    sleep "$(awk "BEGIN {print $length / 1000}")"
    window "as long without"
    calm=$(field gap_ms <<< "$line")
    most=$(awk "BEGIN {d = $gap - $calm; print (d > $most ? d : $most)}")
  done
  figure "$name" "$most"
}
deleted() { kubectl delete pod "headwater-worker-$1"; }
killed() {
  local id
  id=$(kubectl get pod "headwater-worker-$1" -o 'jsonpath={.status.containerStatuses[0].containerID}')
  cluster exec ctr -n k8s.io tasks kill -s SIGKILL "${id#containerd://}"
  until_true 60 restarted "$1" "$id"
}
restarted() {
  local id
  id=$(kubectl get pod "headwater-worker-$1" -o 'jsonpath={.status.containerStatuses[0].containerID}') && [ -n "$id" ] && [ "$id" != "$2" ]
}
pause pod_pause_ms deleted
pause pod_kill_pause_ms killed

sleep 1
window "before the update"
kubectl rollout restart statefulset/headwater-worker
rolled worker
window "a rolling update of all workers"
figure rollout_errors "$(field errors <<< "$line")"
[ "$(field errors <<< "$line")" = 0 ] || fail "the rolling update was noticed"

kubectl rollout restart statefulset/headwater-coordinator statefulset/headwater-worker
rolled coordinator
rolled worker
until_true 60 whole
flawless "all coordinators and workers at once"

kubectl scale statefulset/headwater-worker --replicas 5
rolled worker
remote health --workers 5 --wait 30s
WHO=admin-ops remote rebalance
sleep 1
flawless "five workers"
for worker in 4 3 2; do
  WHO=admin-ops remote drain "headwater-worker-$worker"
done
kubectl scale statefulset/headwater-worker --replicas 2
kubectl wait --for=delete --timeout=600s pod/headwater-worker-2 pod/headwater-worker-3 pod/headwater-worker-4
sleep 1
flawless "two workers"
remote health --workers 2
step_no_more
kubectl scale statefulset/headwater-worker --replicas 3
rolled worker
