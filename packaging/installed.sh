#!/bin/sh
# After the package was installed: the user, the folder for certificates, and the units. Nothing is started.
set -e
if command -v systemd-sysusers > /dev/null; then
  systemd-sysusers headwater.conf
elif ! getent passwd headwater > /dev/null; then
  useradd --system --home-dir /var/lib/headwater --no-create-home --shell /usr/sbin/nologin headwater
fi
chgrp headwater /etc/headwater/tls
chmod 0750 /etc/headwater/tls
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
