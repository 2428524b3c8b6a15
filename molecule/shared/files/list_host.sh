#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Lists what a run could change on a host: files, packages, units, kernel parameters, packet filter.
# Left out is what being logged in and looked at changes by itself (the package databases' own files as well: what they
# hold is listed), and /etc/hosts, which test hosts are kept to know one another by.
export LC_ALL=C

find / -xdev \( -path /tmp -o -path /var/tmp -o -path /var/log -o -path /var/lib/systemd/timers -o -path /var/lib/sudo \
  -o -path /var/lib/private -o -path /var/cache -o -path /home -o -path /root/.ansible -o -path /root/.gnupg \
  -o -path /etc/hosts -o -path /var/lib/dnf -o -path /var/lib/rpm -o -name __pycache__ \) -prune -o \
  \( -type d -printf 'directory %p %m %u:%g\n' -o -printf '%y %p %m %u:%g %s %t\n' \)
find /etc -xdev -type f ! -path /etc/hosts -exec sha256sum {} +
if command -v dpkg-query >/dev/null; then dpkg-query --show; fi
if command -v rpm >/dev/null; then rpm --query --all; fi
systemctl list-unit-files --no-legend --no-pager
systemctl list-units --type=service --no-legend --no-pager --plain | awk '!/^user/ {print "unit", $1, $3, $4}'
sysctl --all 2>/dev/null | grep -E '^(net\.(core|ipv4|ipv6)|kernel\.[a-z_]+ |fs\.(protected|suid))' \
  | grep -vE 'net\.core\.flow_limit|fib_multipath_hash|kernel\.ns_last_pid|kernel\.random|kernel\.perf_event_max_sample'
for program in iptables-save ip6tables-save; do
  if command -v "$program" >/dev/null; then "$program" | grep -v '^[#:]'; fi
done
