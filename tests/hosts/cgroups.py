# SPDX-License-Identifier: GPL-3.0-or-later
"""A control group for each host, in every hierarchy that the machine has.

systemd-nspawn puts every machine that it starts from one place in one and the same group, so that two hosts would share
their services' groups and limits.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tests.hosts.errors import HostsError


def mount_points(mountinfo: str) -> dict[str, Path]:
    """Return where each hierarchy is mounted: by its first controller's name, `` for the unified one."""
    points: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        own, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        where = Path(own.split(" ")[4])
        if kind == "cgroup2":
            points[""] = where
        elif kind == "cgroup":
            points.setdefault(options.split(",", 1)[1].split(",")[-1].removeprefix("name="), where)
    return points


def parents(mountinfo: str, own_groups: str) -> list[Path]:
    """Return the group in each hierarchy that hosts' groups are made in.

    With controllers on the unified hierarchy that is its root, since a group that holds processes cannot hand
    controllers down; in the older hierarchies it is this process's own group, under whose limits the hosts belong.
    """
    points = mount_points(mountinfo)
    own = {}
    for line in own_groups.splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers.split(",")[-1].removeprefix("name=")] = path.lstrip("/")
    # A group of cpuset is of no use until it has been given processors, and systemd makes none in it.
    return [
        where if not controller else where / own.get(controller, "")
        for controller, where in points.items()
        if controller != "cpuset"
    ]


def groups_for(name: str) -> list[Path]:
    """Return the groups of that name that a host shall be run in; they are made when it starts."""
    mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    own_groups = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    groups = []
    for parent in parents(mountinfo, own_groups):
        available = parent / "cgroup.controllers"
        if available.exists() and (controllers := available.read_text(encoding="utf-8").split()):
            wanted = [f"+{controller}" for controller in ("cpu", "memory", "pids") if controller in controllers]
            (parent / "cgroup.subtree_control").write_text(" ".join(wanted), encoding="utf-8")
        groups.append(parent / name)
    return groups


def processes(groups: Iterable[Path]) -> set[int]:
    """Return every process in the groups and below them."""
    found: set[int] = set()
    for group in groups:
        for listing in group.rglob("cgroup.procs"):
            with suppress(OSError):  # the group goes away while it is being read, in more than one way
                found.update(int(line) for line in listing.read_text(encoding="utf-8").split())
    return found


def kill(groups: Iterable[Path], *, timeout_s: float = 10.0) -> None:
    """Kill every process in the groups; return when none is left."""
    groups = list(groups)
    deadline_s = time.monotonic() + timeout_s
    while left := processes(groups):
        if time.monotonic() > deadline_s:
            raise HostsError(f"processes {sorted(left)} could not be killed")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def remove(groups: Iterable[Path]) -> None:
    """Remove the groups, which must be empty of processes."""
    for group in groups:
        for directory, _, _ in os.walk(group, topdown=False):
            Path(directory).rmdir()
