# SPDX-License-Identifier: GPL-3.0-or-later
"""Print as JSON what a gateway's kernel and services really do, seen from inside and without Ansible's modules."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import uuid
from pathlib import Path

WANTED_BUFFER_BYTES = 26_214_400
# A third of a second of 1,000 meters at 60 Hz, and more than fifty times what Linux's usual buffer holds.
BURST_DATAGRAMS = 20_000
DATAGRAM = bytes(100)
WATCHED = Path("/etc/derms", f"audit-probe-{uuid.uuid4()}")
AUDIT_KEY = "derms-configuration"


def output(*command: str) -> str:
    """Return what a program prints; some end with a status of their own where there is nothing to print."""
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stdout.strip()


def receive_buffer() -> dict[str, int]:
    """Ask for the buffer of the manual's step 1, and fill it faster than anybody reads."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WANTED_BUFFER_BYTES)
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        sender.connect(receiver.getsockname())
        for _ in range(BURST_DATAGRAMS):
            sender.send(DATAGRAM)
        kept = 0
        try:
            while receiver.recv(len(DATAGRAM)):
                kept += 1
        except BlockingIOError:
            pass
        # The kernel doubles what is asked for, to pay for its own overhead.
        granted_bytes = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    return {"granted_bytes": granted_bytes, "sent_datagrams": BURST_DATAGRAMS, "kept_datagrams": kept}


def instant_us(unit: str, instant: str) -> int:
    """Return when a unit last did something (systemd.unit's words for it), in microseconds since boot."""
    return int(output("systemctl", "show", f"--property={instant}TimestampMonotonic", "--value", unit))


def audited() -> list[str]:
    """Change something in the watched directory, and return what the audit log says of it."""
    WATCHED.touch()
    WATCHED.unlink()
    records = output("ausearch", "--input-logs", "--key", AUDIT_KEY, "--start", "recent", "--format", "text")
    return [line for line in records.splitlines() if WATCHED.name in line]


def main() -> None:
    """Look at everything once."""
    units = ("derms-firewall", "chrony", "fail2ban", "auditd", "ssh")
    observed = {
        "rmem_max": int(Path("/proc/sys/net/core/rmem_max").read_text(encoding="ascii")),
        "wmem_max": int(Path("/proc/sys/net/core/wmem_max").read_text(encoding="ascii")),
        "receive_buffer": receive_buffer(),
        "inactive_units": [unit for unit in units if output("systemctl", "is-active", unit) != "active"],
        "failed_units": output("systemctl", "list-units", "--failed", "--plain", "--no-legend").splitlines(),
        "firewall_stood_us": instant_us("derms-firewall", "ActiveEnter"),
        "network_started_us": instant_us("systemd-networkd", "InactiveExit"),
        "chains": [rule for rule in output("iptables", "--list-rules", "INPUT").splitlines() if "DERMS" in rule],
        "audited": audited(),
        "audit_daemon_pid": int(Path("/run/auditd.pid").read_text(encoding="ascii")),
        "audit_status": dict(line.split(maxsplit=1) for line in output("auditctl", "-s").splitlines()),
        "apparmor": Path("/sys/module/apparmor/parameters/enabled").read_text(encoding="ascii").strip(),
    }
    sys.stdout.write(json.dumps(observed))


if __name__ == "__main__":
    main()
