#!/bin/sh
# Before the package is removed, and not when it is replaced by a newer one: the services are stopped.
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl disable --now headwater-coordinator.service headwater-worker.service || true
fi
