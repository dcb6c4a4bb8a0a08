#!/bin/sh
# After the package was removed. Jobs in /var/lib/headwater and the user stay.
set -e
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
