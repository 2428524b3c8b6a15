# SPDX-License-Identifier: GPL-3.0-or-later
"""Run this machine's programs, and say how long the slow ones took."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.hosts.errors import HostsError

# One language for every program whose answer is parsed, and no questions from debconf.
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def run(*argv: str | Path, stdin: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and return what it printed; its own words are the error if it fails."""
    completed = subprocess.run(
        [str(word) for word in argv],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **ENVIRONMENT, **(environment or {})},
    )
    if completed.returncode != 0:
        words = (completed.stderr.strip() or completed.stdout.strip()).splitlines()[-12:]
        command = " ".join(str(word) for word in argv)
        command = command if len(command) < 100 else f"{command[:100]} …"
        raise HostsError(
            "\n  ".join(
                [
                    f"`{command}` ended with status {completed.returncode}:",
                    *words,
                ]
            )
        )
    return completed.stdout


def run_contained(*argv: str | Path) -> str:
    """Run a program whose processes and mounts all end with it, and with this process, however that ends."""
    private = ("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child")
    return run("setpriv", "--pdeathsig", "KILL", *private, *argv)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, and how long it took once it is done."""
    print(f"{what} …", flush=True)
    start_s = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - start_s:.1f} s", flush=True)
