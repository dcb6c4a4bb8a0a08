#!/usr/bin/env bash
# Builds the packages of this working tree twice and compares their bytes: in folders of other names and depths, under other umasks,
# time zones and languages, from files of other times. Then it looks whether a package can be read by those who are to read it.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { printf 'test-packages: %s\n' "$*" >&2; exit 1; }

# built FOLDER UMASK TIME [VARIABLE=VALUE...]: the packages of a copy of the working tree.
built() {
  local folder=$1 mask=$2 time=$3
  shift 3
  (
    umask "$mask"
    mkdir -p "$folder"
    git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$folder"
    find "$folder" -exec touch -h -d "$time" {} +
    cd "$folder"
    env "$@" make -s packages VERSION=v1.2.3 MADE=1700000000 > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
  )
}
built "$work/a" 022 '2020-01-01 00:00' TZ=UTC LC_ALL=C
built "$work/another/one" 077 '2025-06-07 08:09:10' TZ=Asia/Kathmandu LC_ALL=C.UTF-8
first=$work/a/out/packages second=$work/another/one/out/packages
[ "$(ls "$first" | wc -l)" = 5 ] || fail "there are not 2 packages, 2 tarballs and their sums: $(ls "$first")"
diff <(cd "$first" && ls) <(cd "$second" && ls) || fail "the names differ"
for file in "$first"/*; do
  cmp "$file" "$second/${file##*/}" || fail "${file##*/} differs"
done
(cd "$first" && sha256sum --quiet -c SHA256SUMS) || fail "the sums are of other files"

# What is in them, with modes and owners.
for package in "$first"/*.deb; do
  dpkg-deb -c "$package" | awk '{print $1, $2, $6}' > "$work/files"
  for want in '-rwxr-xr-x root/root ./usr/bin/coord' '-rwxr-xr-x root/root ./usr/bin/headwater-worker' '-rw-r--r-- root/root ./etc/headwater/worker.yaml' \
    'drwxr-x--- root/root ./etc/headwater/tls/' '-rw-r--r-- root/root ./usr/share/doc/headwater/copyright' \
    '-rw-r--r-- root/root ./usr/lib/systemd/system/headwater-worker.service'; do
    grep -qxF -- "$want" "$work/files" || fail "${package##*/} does not have $want: $(cat "$work/files")"
  done
done
for tarball in "$first"/*.tar.gz; do
  tar -tvzf "$tarball" | awk '{print $1, $2, $6}' > "$work/files"
  if grep -vE '^(-rw-r--r--|-rwxr-xr-x|drwxr-xr-x) (0/0|root/root) ' "$work/files"; then fail "${tarball##*/} has these modes and owners"; fi
  for want in coord worker LICENSE LICENSES.txt systemd/headwater-worker.service; do
    grep -q "/$want\$" "$work/files" || fail "${tarball##*/} has no $want"
  done
done
echo "the packages are the same bytes: $(ls "$first" | tr '\n' ' ')"
