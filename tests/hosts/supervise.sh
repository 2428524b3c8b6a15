#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs a host in control groups of its own, again each time it reboots.
#   supervise.sh GROUP ... -- PROGRAM ARGUMENT ...

groups=
while [ "$1" != -- ]; do
  groups="$groups $1"
  shift
done
shift

while :; do
  # Fresh groups each time: what the last boot left of its own would keep the next one's first process out.
  for group in $groups; do
    if [ -d "$group" ]; then find "$group" -depth -type d -exec rmdir {} \;; fi
    mkdir -p "$group"
  done
  (
    # 0 is whoever writes it.
    for group in $groups; do echo 0 >"$group/cgroup.procs"; done
    exec "$@"
  )
  status=$?
  # systemd-nspawn's way of saying that the host asked for a reboot.
  if [ "$status" -ne 133 ]; then exit "$status"; fi
done
