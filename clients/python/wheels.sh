#!/usr/bin/env bash
# Builds wheels of the Python client with the static programs inside: wheels.sh OUT PLATFORM..., as in wheels.sh out linux/arm64.
# With the PLATFORM "sdist" it builds the source distribution. $PYTHON has hatchling, $LDFLAGS are the programs'. The folder
# $PROGRAMS has programs of this machine's platform that are built already.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
python=${PYTHON:-python3}
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for platform in "$@"; do
  if [ "$platform" = sdist ]; then
    (cd "$here" && "$python" -m hatchling build -t sdist -d "$out")
    continue
  fi
  folder=$work/$platform
  mkdir -p "$folder"
  if [ -n "${PROGRAMS:-}" ] && [ "$platform" = "$(go env GOHOSTOS)/$(go env GOHOSTARCH)" ]; then
    cp "$PROGRAMS/coord" "$PROGRAMS/worker" "$folder/"
  else
    (cd "$root" && CGO_ENABLED=0 GOOS=${platform%/*} GOARCH=${platform#*/} go build -trimpath -ldflags "${LDFLAGS:--s -w}" -o "$folder/" ./cmd/coord ./cmd/worker)
  fi
  (cd "$root/tools" && go run ./licences -texts "$folder/LICENSES.txt" -platform "$platform")
  (cd "$here" && HEADWATER_WHEEL_PLATFORM=$platform HEADWATER_WHEEL_PROGRAMS=$folder "$python" -m hatchling build -t wheel -d "$out")
done
