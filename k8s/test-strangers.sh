# Part of test.sh: who has a wrong Secret is refused, and nothing else is disturbed.
say "strangers"
foreign() { "$coord" certs "$@" --dir "$work/foreign" > /dev/null; }
foreign init
foreign issue client test
foreign issue worker 'headwater-worker-*'

# A client of another authority, and one whose certificate is that of a worker.
refused() {
  local dir=$1 says=$2 code=0
  cluster exec "$coord" status --tls-dir "$dir" --coordinator "$address" > "$work/refused" 2>&1 || code=$?
  [ $code = 4 ] || fail "$dir: exit code $code, $(cat "$work/refused")"
  grep -q "$says" "$work/refused" || fail "$dir: $(cat "$work/refused")"
}
refused "$work/foreign/client-test" 'signed by'
refused "$work/certs/worker-headwater-worker-any" 'certificate is that of a worker'
code=0
cluster exec "$coord" status --insecure --coordinator "$address" > "$work/refused" 2>&1 || code=$?
[ $code = 4 ] || fail "plain text: exit code $code, $(cat "$work/refused")"

# A worker with the Secret of another authority: it gets no place in the cluster.
"$coord" certs secrets worker --dir "$work/foreign" | sed 's/headwater-worker-tls/foreign-tls/; s/headwater-gossip/foreign-gossip/' | kubectl apply --server-side -f -
kubectl get statefulset headwater-worker -o json | sed 's/"headwater-worker-tls"/"foreign-tls"/; s/"headwater-gossip"/"foreign-gossip"/' > "$work/wrong.json"
kubectl apply -f "$work/wrong.json"
not_ready() {
  kubectl logs headwater-worker-2 | grep -q 'not ready' && [ "$(kubectl get pod headwater-worker-2 -o 'jsonpath={.status.containerStatuses[0].ready}')" = false ]
}
until_true 120 not_ready
remote health --workers 2
[ "$(remote status --output json | grep -c '"boot"')" = 2 ] || fail "a worker of another authority is a member"
kubectl apply -k k8s/overlays/local > /dev/null
kubectl delete pod headwater-worker-2
rolled worker
remote health --workers 3 --wait 60s
