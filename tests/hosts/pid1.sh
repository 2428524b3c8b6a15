#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# A host's first process: opens what the host may write, then becomes systemd.
#   pid1.sh [udev] [KEY=STAND-IN ...]    KEY like net/core/rmem_max

# The older control group hierarchies come read-only, and systemd would ignore every limit without a word.
for hierarchy in /sys/fs/cgroup/*/; do
  if mountpoint -q "$hierarchy"; then mount -o remount,rw,bind "$hierarchy"; fi
done

# These keys belong to the host's own network namespace.
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,rw,bind /proc/sys/net

for option in "$@"; do
  case $option in
    udev)
      mount -o remount,rw,bind /sys
      ;;
    *)
      # A key that the kernel keeps for the whole machine: a file stands in, that can be set and read, and does nothing.
      mkdir -p /run/sysctl-stand-ins
      stand_in=/run/sysctl-stand-ins/$(echo "$option" | tr / .)
      cat "/proc/sys/$option" >"$stand_in"
      mount --bind "$stand_in" "/proc/sys/$option"
      ;;
  esac
done

exec /sbin/init
