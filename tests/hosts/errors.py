# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong, as one line for the person at the terminal."""

from __future__ import annotations


class HostsError(Exception):
    """Something failed; the message says what, and what to do about it where that is known."""

    exit_status = 1


class MachineLacksError(HostsError):
    """This machine cannot run test hosts: callers report a skipped part rather than a failed one."""

    exit_status = 3
