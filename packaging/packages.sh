#!/usr/bin/env bash
# Builds the .deb and the tarball of each architecture into out/packages: packages.sh VERSION SECONDS, where SECONDS since 1970 is
# the time of everything in them. The same commit gives the same bytes. NFPM names the program nfpm.
set -euo pipefail
export LC_ALL=C # one order of names
umask 022
cd "$(dirname "$0")/.."
version=$1 made=$2
# What git calls a commit, as a Debian version: v1.2.3 is 1.2.3, what has no number is below all that has one.
debian=${version#v}
[[ $debian =~ ^[0-9]+\. ]] || debian=0.0.0+$debian
debian=${debian//-/+}
rm -rf out/packages
mkdir -p out/packages
for arch in amd64 arm64; do
  bin=out/packages/$arch
  CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -ldflags "$LDFLAGS" -o "$bin/" ./cmd/...
  (cd tools && go run ./licences -texts "../$bin/LICENSES.txt" -platform "linux/$arch")
  SOURCE_DATE_EPOCH=$made ARCH=$arch VERSION=$debian BIN=$bin "$NFPM" package --config packaging/nfpm.yaml --packager deb \
    --target "out/packages/headwater_${debian}_$arch.deb"
  name=headwater-${version#v}-linux-$arch
  tree=out/packages/$name
  mkdir -p "$tree/systemd"
  cp "$bin/coord" "$bin/worker" "$bin/LICENSES.txt" LICENSE "$tree/"
  cp packaging/*.service packaging/*.yaml packaging/headwater.sysusers "$tree/systemd/"
  rm "$tree/systemd/nfpm.yaml"
  tar -C out/packages --sort=name --mtime="@$made" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --format=gnu -c "$name" | gzip -9n > "$tree.tar.gz"
  rm -rf "$tree" "$bin"
done
(cd out/packages && sha256sum -- * > SHA256SUMS)
ls -l out/packages
