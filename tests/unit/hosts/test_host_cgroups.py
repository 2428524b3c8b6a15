# SPDX-License-Identifier: GPL-3.0-or-later
"""Where hosts' control groups are made."""

from __future__ import annotations

from pathlib import Path

from tests.hosts.cgroups import parents

OLDER_AND_UNIFIED = """\
30 29 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/cpuset rw,nosuid - cgroup cgroup rw,cpuset
33 30 0:29 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,name=systemd
35 30 0:31 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
"""
OWN = """\
5:name=systemd:/user.slice
4:memory:/session
3:cpuset:/
2:cpu,cpuacct:/
0::/user.slice
"""


def test_in_the_older_hierarchies_hosts_are_below_whoever_raises_them() -> None:
    assert parents(OLDER_AND_UNIFIED, OWN) == [
        Path("/sys/fs/cgroup/cpu,cpuacct"),
        Path("/sys/fs/cgroup/memory/session"),
        Path("/sys/fs/cgroup/systemd/user.slice"),
        Path("/sys/fs/cgroup/unified"),
    ]


def test_in_the_unified_hierarchy_hosts_are_at_the_top() -> None:
    mountinfo = "30 29 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
    assert parents(mountinfo, "0::/user.slice/user-0.slice/session-1.scope\n") == [Path("/sys/fs/cgroup")]
