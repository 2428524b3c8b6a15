# SPDX-License-Identifier: Apache-2.0
"""Tells systemd how a service does (sd_notify(3)): one datagram to the socket that it names, or nothing without one."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> bool:
    """Send lines such as READY=1, WATCHDOG=1, STATUS=…; return whether there was anybody to tell.

    A listener that is gone ends no control: without the watchdog's line it is systemd that draws the conclusion.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        # A name that begins with @ is in the abstract namespace.
        try:
            one.connect("\0" + address[1:] if address.startswith("@") else address)
            one.sendall("\n".join(lines).encode())
        except OSError:
            return False
    return True
