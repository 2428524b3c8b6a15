# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the agent's release for several Pythons, install each offline, import all of it.

    python tests/install_releases.py COPY CHECKOUT CACHE 3.10=/path/to/python3.10 …

The release is made by an installed copy of the collection, COPY, which has to be the one that is imported; CHECKOUT is
what the copy was built from, and has to give releases of the same names. A Python that a gateway may have and that is
not named is told as not tested. tests/check_sanity runs it.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ansible_collections.derms.edge.plugins.plugin_utils import wheelhouse

UV = Path(sys.prefix) / "bin" / "uv"
TIMEOUT_S = 600
# All of the agent, and what only a service asks for.
IMPORT_EVERYTHING = """
import importlib, pkgutil, aiomqtt, numpy, rich, scipy.optimize, derms_agent
for module in pkgutil.walk_packages(derms_agent.__path__, "derms_agent."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(derms_agent.__version__)
"""


def run(*words: str | Path) -> str:
    """Run a program that has to succeed; return what it printed."""
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    if done.returncode:
        sys.exit(f"{' '.join(str(word) for word in words[:4])} …: {done.stderr}{done.stdout}")
    return done.stdout.strip()


def version_of(source: Path, target: wheelhouse.Target) -> str:
    """Return the release that a source is for a target."""
    lock = (source / "locks" / target.lock_name).read_text(encoding="utf-8")
    return wheelhouse.release_version(source, lock, target)


def made(source: Path, target: wheelhouse.Target, cache: Path, into: Path) -> str:
    """Gather a release's wheels and its requirements; return its version."""
    wheels = wheelhouse.parsed_lock((source / "locks" / target.lock_name).read_text("utf-8"), target.lock_name)
    wheelhouse.fetch(wheels, target, cache)
    version = version_of(source, target)
    own, own_path = wheelhouse.built_wheel(source, version, cache)
    everything = [(own, own_path), *((wheel, wheelhouse.cached_path(cache, wheel)) for wheel in wheels)]
    for wheel, path in everything:
        (into / wheel.file).symlink_to(path)
    (into / "requirements.txt").write_text("".join(f"{wheel.lock_line}\n" for wheel, _path in everything), "utf-8")
    return version


def installed(interpreter: Path, wheels: Path, environment: Path) -> str:
    """Install a release from its wheels alone, and import all of it; return the version that it tells."""
    run(UV, "venv", "--quiet", "--no-cache", "--python", interpreter, environment)
    python = environment / "bin" / "python"
    run(
        *(UV, "pip", "install", "--quiet", "--offline", "--no-cache", "--python", python),
        *("--no-index", "--find-links", wheels, "--require-hashes", "--only-binary=:all:"),
        *("--requirement", wheels / "requirements.txt"),
    )
    run(UV, "pip", "check", "--quiet", "--python", python)
    return run(python, "-IB", "-c", IMPORT_EVERYTHING)


def main() -> None:
    """Do so for each Python that was named."""
    copy, checkout, cache = (Path(word) for word in sys.argv[1:4])
    interpreters = dict(word.split("=", 1) for word in sys.argv[4:])
    if not Path(wheelhouse.__file__).is_relative_to(copy):
        sys.exit(f"{wheelhouse.__file__}: found another copy of the collection, expected {copy}")
    with wheelhouse.opened(copy / "agent") as source:
        for target in wheelhouse.TARGETS:
            found, expected = version_of(source, target), version_of(checkout / "agent", target)
            if found != expected:
                sys.exit(f"{target.lock_name}: found {found} in the collection, expected {expected}")
        for python in wheelhouse.PYTHONS:
            if python not in interpreters:
                print(f"NOT TESTED: install on Python {python}, not on this machine")
                continue
            target = wheelhouse.Target(python, platform.machine())
            with TemporaryDirectory() as directory:
                work = Path(directory)
                (work / "wheels").mkdir()
                version = made(source, target, cache, work / "wheels")
                told = installed(Path(interpreters[python]), work / "wheels", work / "environment")
            if told != version:
                sys.exit(f"Python {python}: found a release that says {told}, expected {version}")
            print(f"Python {python}, {target.machine}: {version} installed and imported", flush=True)
    for machine in wheelhouse.MACHINES:
        if machine != platform.machine():
            print(f"NOT TESTED: install on {machine}, this machine is {platform.machine()}")


if __name__ == "__main__":
    main()
