# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's release for a gateway's Python and processor: its own wheel, and the locked wheels that it needs.

A lock names one wheel for each package, by file and hash, for one Python and processor. So a control node needs no
resolver, knows what a gateway lacks without asking an index, and downloads only what its cache does not hold.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
# The oldest C library among the targets is RHEL 9's, glibc 2.34; 2.17 is the first that aarch64 wheels are built for.
GLIBC_MINORS = range(34, 16, -1)
EXTRAS = ("control", "service", "grid_gateway", "release")
# 1980-01-01, the first day that a ZIP archive can name: the wheel holds nothing of when it was built.
SOURCE_DATE_EPOCH = "315532800"
# What this control node's Python runs to make a release, by the package that has it.
PROGRAMS = ("pip", "flit_core")
DOWNLOAD_TIMEOUT_S = 1800
BUILD_TIMEOUT_S = 120

LOCK_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})  # (?P<file>\S+\.whl)"
)
DECLARED_VERSION = re.compile(r'^(?P<name>__version__|version) = "(?P<version>[^"]+)"$', re.MULTILINE)


class WheelhouseError(Exception):
    """Why there is no release for a gateway; its text says what to do."""


@dataclass(frozen=True)
class Wheel:
    """One package as one file."""

    name: str
    version: str
    file: str
    sha256: str

    @property
    def lock_line(self) -> str:
        """The wheel as pip and `parsed_lock` read it."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}  # {self.file}"


@dataclass(frozen=True)
class Target:
    """What a wheelhouse is for: Python's minor version and the processor as `uname -m` names it."""

    python: str
    machine: str

    @property
    def lock_name(self) -> str:
        """The lock's file name."""
        return f"requirements-{self.python}-{self.machine}.txt"

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platform tags whose wheels run there, the best first."""
        newer = [f"manylinux_2_{minor}_{self.machine}" for minor in GLIBC_MINORS]
        older = [f"manylinux2014_{self.machine}"]
        if self.machine == "x86_64":
            older += ["manylinux_2_12_x86_64", "manylinux2010_x86_64", "manylinux_2_5_x86_64", "manylinux1_x86_64"]
        return (*newer, *older)


TARGETS = tuple(Target(python, machine) for python in PYTHONS for machine in MACHINES)


def parsed_lock(text: str, file: str) -> list[Wheel]:
    """Return a lock's wheels.

    :raises WheelhouseError: a line is none of a lock's
    """
    wheels = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LOCK_LINE.fullmatch(line.strip())
        if match is None:
            raise WheelhouseError(f"{file}:{number}: found {line!r}, expected a line as `make lock` writes it")
        wheels.append(Wheel(**match.groupdict()))
    return wheels


def require_programs() -> None:
    """See that this control node can build the agent's wheel and download others.

    :raises WheelhouseError: it lacks a program for that
    """
    lacking = [name for name in PROGRAMS if importlib.util.find_spec(name) is None]
    if lacking:
        raise WheelhouseError(
            f"{sys.executable}: found no {' and no '.join(lacking)}; this control node needs {' and '.join(PROGRAMS)} "
            "to make the agent's release. `make setup` installs them; in an environment of your own, install the "
            "packages of these names beside ansible-core."
        )


@contextmanager
def opened(source: Path) -> Iterator[Path]:
    """Yield the agent's source as files: a checkout's as it stands, a built collection's out of the archive that it is.

    :raises WheelhouseError: there is neither
    """
    if (source / "pyproject.toml").is_file():
        yield source
        return
    archives = sorted(source.glob("derms_agent-*.tar.gz"))
    if len(archives) != 1:
        raise WheelhouseError(
            f"{source}: found {len(archives)} archives of the agent's source and no pyproject.toml, expected one of "
            "either; `make collection` builds a collection that has its archive"
        )
    # Python has it from 3.11.4 on, and asks for it from 3.12 on.
    careful: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tempfile.TemporaryDirectory() as directory:
        with tarfile.open(archives[0]) as archive:
            archive.extractall(directory, **careful)  # noqa: S202 (it came with this very code)
        yield Path(directory, archives[0].name.removesuffix(".tar.gz"))


def source_files(source: Path) -> list[Path]:
    """Return the files that the agent's wheel is made of, in an order that does not depend on the file system."""
    package = source / "src" / "derms_agent"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted([source / "pyproject.toml", source / "README.md", *files])


def release_version(source: Path, lock: str, target: Target) -> str:
    """Return what names a release: the agent's version, what its code and its lock hold, and the Python it is for.

    :raises WheelhouseError: there is no source
    """
    digest = hashlib.sha256(lock.encode())
    try:
        for path in source_files(source):
            digest.update(f"\0{path.relative_to(source)}\0".encode())
            digest.update(path.read_bytes())
        declared = DECLARED_VERSION.search((source / "pyproject.toml").read_text(encoding="utf-8"))
    except OSError as error:
        raise WheelhouseError(
            f"{source}: found no source of the agent, expected its pyproject.toml: {error}"
        ) from error
    if declared is None:
        raise WheelhouseError(f'{source / "pyproject.toml"}: found no version, expected a line version = "…"')
    # A letter first: a part of digits alone would lose its leading zeros.
    return f"{declared['version']}+h{digest.hexdigest()[:10]}.py{target.python.replace('.', '')}"


def file_sha256(path: Path) -> str:
    """Return a file's hash; empty where there is no such file."""
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Let one process at a time change a cache: the hosts of a batch want the same wheels at once."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def built_wheel(source: Path, version: str, cache: Path) -> tuple[Wheel, Path]:
    """Return the agent's own wheel under a version, built unless the cache holds it.

    :raises WheelhouseError: it cannot be built
    """
    directory = cache / "agent" / version
    with locked(cache):
        if not (made := sorted(directory.glob("*.whl"))):
            with tempfile.TemporaryDirectory(dir=cache) as work:
                made = [_build(source, version, Path(work))]
                directory.mkdir(parents=True, exist_ok=True)
                made = [made[0].replace(directory / made[0].name)]
    return Wheel("derms-agent", version, made[0].name, file_sha256(made[0])), made[0]


def _build(source: Path, version: str, work: Path) -> Path:
    copy = work / "source"
    for path in source_files(source):
        place = copy / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    for path in (copy / "pyproject.toml", copy / "src" / "derms_agent" / "__init__.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(DECLARED_VERSION.sub(rf'\g<name> = "{version}"', text, count=1), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "flit_core.wheel", "--outdir", str(work), str(copy)],
        env={**os.environ, "SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_TIMEOUT_S,
    )
    if done.returncode:
        raise WheelhouseError(
            f"the agent's wheel could not be built from {source} (it takes flit_core, which `make setup` installs): "
            f"{done.stderr.strip()[-2000:]}"
        )
    return next(work.glob("*.whl"))


def cached_path(cache: Path, wheel: Wheel) -> Path:
    """Return where a cache keeps a wheel."""
    return cache / wheel.sha256 / wheel.file


def fetch(wheels: Sequence[Wheel], target: Target, cache: Path) -> None:
    """Have every wheel in the cache; download those that it lacks, and nothing else.

    :raises WheelhouseError: one cannot be had, or is not what the lock says
    """
    with locked(cache):
        lacking = [wheel for wheel in wheels if file_sha256(cached_path(cache, wheel)) != wheel.sha256]
        if lacking:
            with tempfile.TemporaryDirectory(dir=cache) as work:
                _download(lacking, target, Path(work))


def download_command(target: Target, requirements: Path, into: Path) -> list[str]:
    """Return the command that downloads a target's wheels, whatever Python and processor this machine has."""
    platforms = [f"--platform={platform}" for platform in target.platforms]
    return [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"),
        *("--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation=cp"),
        f"--python-version={target.python}",
        *platforms,
        *("--dest", str(into), "--requirement", str(requirements)),
    ]


def _download(lacking: Sequence[Wheel], target: Target, work: Path) -> None:
    requirements = work / "requirements.txt"
    requirements.write_text("".join(f"{wheel.lock_line}\n" for wheel in lacking), encoding="utf-8")
    done = subprocess.run(
        download_command(target, requirements, work),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=DOWNLOAD_TIMEOUT_S,
    )
    names = ", ".join(wheel.file for wheel in lacking)
    if done.returncode:
        raise WheelhouseError(
            f"pip could not download {names}: {done.stderr.strip()[-2000:]}. A control node without a package index "
            f"takes them from its cache: copy {work.parent} from one that has them."
        )
    for wheel in lacking:
        file = work / wheel.file
        if file_sha256(file) != wheel.sha256:
            raise WheelhouseError(f"{wheel.file}: pip downloaded another file than the lock names")
        place = cached_path(work.parent, wheel)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        file.replace(place)


def batches(wheels: Sequence[tuple[Wheel, Path]], size_bytes: int) -> Iterator[list[tuple[Wheel, Path]]]:
    """Yield wheels in parcels of about a size: what has arrived in one is not sent again when the next is cut off."""
    parcel: list[tuple[Wheel, Path]] = []
    weight = 0
    for wheel, path in sorted(wheels, key=lambda one: one[1].stat().st_size):
        parcel.append((wheel, path))
        weight += path.stat().st_size
        if weight >= size_bytes:
            yield parcel
            parcel, weight = [], 0
    if parcel:
        yield parcel


@contextmanager
def packed(parcel: Iterable[tuple[Wheel, Path]]) -> Iterator[Path]:
    """Pack wheels, which are compressed already, into one archive; it is gone when the context ends."""
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "wheels.tar"
        with tarfile.open(archive, "w") as files:
            for wheel, path in parcel:
                files.add(path, arcname=wheel.file)
        yield archive
