# Part of test.sh: tenants by token, whose limits hold over the cluster and change without a restart, also for who speaks to workers itself.
say "tenants"
mkdir -p "$work/overlay" "$work/trust"
cp "$work/certs/ca.crt" "$work/trust/"
up=$(realpath --relative-to "$work/overlay" k8s)
printf 'resources: [%s/overlays/local]\ncomponents: [%s/components/tenants, %s/components/direct]\n' "$up" "$up" "$up" > "$work/overlay/kustomization.yaml"
tenants() { "$coord" tenants "$@" --file "$work/headwater-tenants.json"; }
bring() { kubectl create secret generic headwater-tenants --from-file="$work/headwater-tenants.json" --dry-run=client -o yaml | kubectl apply --server-side -f -; }
tenants add bob > "$work/bob.token"
tenants limit bob --sessions 1 > /dev/null
bring
kubectl apply -k "$work/overlay"
rolled coordinator
remote health --workers 3 --wait 60s
bob() { cluster exec "$coord" "$@" --tls-dir "$work/trust" --token-file "$work/bob.token" --coordinator "$address"; }
bob sessions list > /dev/null
# Two sessions, of which the second is direct: with a limit of one it is refused.
two() { cluster exec "$work/bin/stepper" -coordinator "$address" -tls-dir "$work/trust" -token-file "$work/bob.token" -sessions 2 < <(sleep 5; echo) > "$work/two" 2>&1; }
steps() { two && [ "$(field tokens < "$work/two")" -gt 0 ]; }
if two; then fail "a tenant has two sessions, and may have one"; fi
grep -q 'sessions' "$work/two" || fail "what is over the limit is refused by: $(cat "$work/two")"
cat "$work/two"
before=$(kubectl get pods -o 'jsonpath={.items[*].status.startTime}')
tenants limit bob --sessions 100 > /dev/null # the first session is there still
bring
until_true 180 steps
[ "$(field errors < "$work/two")" = 0 ] || fail "a tenant by token steps: $(cat "$work/two")"
[ "$(kubectl get pods -o 'jsonpath={.items[*].status.startTime}')" = "$before" ] || fail "pods were replaced for a change of a limit"
kubectl apply -k k8s/overlays/local > /dev/null
rolled coordinator
