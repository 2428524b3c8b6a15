#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write agent/locks/: for each Python and processor that a gateway may have, one wheel for each package.

Each target is resolved with its own markers: a universal lock would leave the choice of the wheel to whoever downloads
it, and what a download on another Python leaves out is only missed on the gateway.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tomllib
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "collections"))
from ansible_collections.derms.edge.plugins.plugin_utils.wheelhouse import (
    EXTRAS,
    TARGETS,
    Target,
    Wheel,
)

LOCKS = ROOT / "agent" / "locks"
UV = Path(sys.prefix) / "bin" / "uv"


def accepted_tags(target: Target) -> dict[object, int]:
    """Return the tags of the wheels that run on a target, each with its rank, 0 the best."""
    major, minor = (int(part) for part in target.python.split("."))
    tags = [
        *cpython_tags((major, minor), platforms=target.platforms),
        *compatible_tags((major, minor), interpreter=f"cp{major}{minor}", platforms=target.platforms),
    ]
    return {tag: rank for rank, tag in enumerate(tags)}


def best_wheel(package: dict[str, Any], ranks: dict[object, int]) -> Wheel | None:
    """Return the wheel of a resolved package that fits best, or None where none fits."""
    fitting = []
    for wheel in package.get("wheels", []):
        file = wheel["url"].rsplit("/", 1)[1]
        rank = min((ranks[tag] for tag in parse_wheel_filename(file)[3] if tag in ranks), default=None)
        if rank is not None:
            fitting.append((rank, Wheel(package["name"], package["version"], file, wheel["hashes"]["sha256"])))
    return min(fitting, key=lambda one: one[0])[1] if fitting else None


def resolved(target: Target) -> list[Wheel]:
    """Return the newest wheels that the agent's requirements allow on a target."""
    with tempfile.TemporaryDirectory() as work:
        lock = Path(work, "pylock.toml")
        subprocess.run(
            [
                *(UV, "pip", "compile", "--quiet", "--no-header", "--only-binary=:all:", "--format=pylock.toml"),
                *(f"--extra={extra}" for extra in EXTRAS),
                f"--python-version={target.python}",
                f"--python-platform={target.machine}-manylinux_2_28",
                f"--output-file={lock}",
                ROOT / "agent" / "pyproject.toml",
            ],
            check=True,
        )
        packages = tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]
    ranks = accepted_tags(target)
    wheels = {package["name"]: best_wheel(package, ranks) for package in packages}
    without = [name for name, wheel in wheels.items() if wheel is None]
    if without:
        sys.exit(f"lock_wheels: no wheel of {', '.join(without)} fits Python {target.python} on {target.machine}")
    return [wheel for wheel in wheels.values() if wheel is not None]


def main() -> None:
    """Write every target's lock."""
    LOCKS.mkdir(exist_ok=True)
    for target in TARGETS:
        what = f"the agent's wheels on Python {target.python}, {target.machine}, one a package"
        text = f"# Written by `make lock`: {what}.\n" + "".join(f"{wheel.lock_line}\n" for wheel in resolved(target))
        (LOCKS / target.lock_name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
