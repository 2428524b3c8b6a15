#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Loads the saved chains of each family, and adds the jump to a chain where there is none. What others have loaded stays.
# A family that cannot be loaded leaves the other one alone; the status says that something is missing.
directory=${1:-/etc/derms/firewall}
status=0
for family in ipv4:iptables ipv6:ip6tables; do
  rules=$directory/${family%:*}.rules
  program=${family#*:}
  [ -f "$rules" ] || continue
  if ! "$program-restore" --noflush --wait=30 "$rules"; then
    echo "$rules was not loaded" >&2
    status=1
    continue
  fi
  # iptables-restore would add one more jump at each start, so the file names the jumps in comments.
  while read -r hash word table hook chain; do
    [ "$hash $word" = "# jump" ] || continue
    "$program" --wait 30 --table "$table" --check "$hook" --jump "$chain" 2>/dev/null ||
      "$program" --wait 30 --table "$table" --insert "$hook" --jump "$chain" || status=1
  done <"$rules"
done
exit "$status"
