#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Starts the broker on the configuration in /etc/mosquitto, in namespaces of its own for mounts and network: Mosquitto
# 2.0 has no way to check one without starting. The running broker's port, state and credentials are out of its reach.
#   sh -c "$(cat try-configuration.sh)" sh CREDENTIALS [ADDRESS…]
set -eu
certificates=/etc/derms/certs
credentials=$1
shift
command -v mosquitto >/dev/null || exit 0
# A dry run on a host that has no certificates yet: there is nothing to start it with.
[ -e "$certificates/broker.key" ] || exit 0

# Stopping, it would write an empty state over that of the running one.
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tmpfs -o mode=0700 tmpfs /var/lib/mosquitto
chown mosquitto: /var/lib/mosquitto
mkdir -p "$credentials"
for name in broker.ca.crt broker.crt broker.key; do
  install -o mosquitto -m 0400 "$certificates/$name" "$credentials/$name"
done
ip link set lo up
for address in "$@"; do
  ip address add "$address" dev lo 2>/dev/null || ip address show dev lo | grep -qwF "$address"
done

mosquitto -c /etc/mosquitto/mosquitto.conf >/run/said 2>&1 &
broker=$!
tries=0
while kill -0 "$broker" 2>/dev/null && [ "$tries" -lt 100 ]; do
  if grep -q '^mosquitto version .* running$' /run/said; then
    kill "$broker"
    wait "$broker" || true
    exit 0
  fi
  tries=$((tries + 1))
  sleep 0.1
done
cat /run/said >&2
exit 1
