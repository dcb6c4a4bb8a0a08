# Part of test.sh: an upgrade of the whole cluster by its manifests, from an older version, and back, while sessions are stepped. The one
# of the last commit of protocol 1.3 is as old as docs/operations.md lets a part of a cluster be that bears drains. Its coordinators end
# before the Service leads elsewhere, and its direct clients bear no change of workers while they reach none: so they go first, as
# docs/kubernetes.md says, and a client may be told meanwhile to try again.
say "an upgrade and the way back"
old=${HEADWATER_OLD:-b7c8baf77733}
git cat-file -e "$old^{commit}" 2> /dev/null || fail "no commit $old: the upgrade needs the history of the repository"
mkdir -p "$work/old"
git archive "$old" | tar -x -C "$work/old"
make -s -C "$work/old" build VERSION=old
(cd "$work/old" && CGO_ENABLED=0 go build -o bin/stepper ./k8s/stepper)
go run ./internal/image/cmd -out "$work/old.tar" -version old "$work/old/bin/coord" "$work/old/bin/worker"
cluster image "$work/old.tar" > /dev/null

# The manifests of that version, with its images.
mkdir -p "$work/older"
cat > "$work/older/kustomization.yaml" << K
resources: [$(realpath --relative-to "$work/older" "$work/old/k8s/overlays/local")]
images: [{name: headwater/coord, newTag: old}, {name: headwater/worker, newTag: old}]
K
# change brings manifests, and waits until each pod is one of theirs.
change() {
  coordinators "$1"
  kubectl apply -k "$1" > /dev/null
  rolled worker
  remote health --workers 3 --wait 60s
  until_true 60 whole
}
# coordinators brings all of them but the workers.
coordinators() {
  kubectl apply -k "$1" -l 'app.kubernetes.io/component!=worker' > /dev/null
  rolled coordinator
}
# calm ends windows until one has no errors: the first is of what went on before, the others are of a second.
calm() {
  local limit=$((SECONDS + 60))
  while window "$1"; [ "$(field errors <<< "$line")" != 0 ]; do
    [ $SECONDS -lt $limit ] || fail "$1: steps still fail"
    sleep 1
  done
}
# run_all tells whether all pods run the image of a tag.
run_all() {
  local images
  images=$(kubectl get pods -l app.kubernetes.io/part-of=headwater -o 'jsonpath={range .items[*]}{.spec.containers[0].image}{"\n"}{end}' | sort -u | tr '\n' ' ')
  [ "$images" = "headwater/coord:$1 headwater/worker:$1 " ] || fail "the pods run $images, not those of $1"
}

change "$work/older"
run_all old
remote status
for by in old new; do
  program=$work/bin/stepper
  [ $by = new ] || program=$work/old/bin/stepper
  step_sessions 4 "$program"
  sleep 1
  flawless "by a client of the $by version, the cluster is old"
  coordinators k8s/overlays/local
  calm "by a client of the $by version, over the upgrade of coordinators"
  change k8s/overlays/local
  run_all local
  flawless "by a client of the $by version, over the upgrade of workers"
  change "$work/older"
  run_all old
  flawless "by a client of the $by version, over the way back"
  step_no_more
done
change k8s/overlays/local
run_all local
