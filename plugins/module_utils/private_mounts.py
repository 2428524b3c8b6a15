# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a checker on the whole configuration with candidates in place that nobody else on the host can see.

A child process gets a mount namespace of its own. There a directory that is to change is covered by a directory in
memory in which every untouched entry is the real one, and every candidate a file in memory. The checker opens the
paths it always opens; everyone else goes on reading the old files, and nothing has to be taken back when it is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, List, Optional

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# <sched.h> and <sys/mount.h>
CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000

CHECKER_TIMEOUT_S = 60


@dataclass(frozen=True)
class Candidate:
    """One file as it is to be; content None takes it away."""

    path: str
    content: Optional[bytes]
    owner: int
    group: int
    mode: int


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    argv: List[str]
    status: int
    stdout: str
    stderr: str


class TrialError(Exception):
    """The candidates could not be stood in their place."""


def covered_directory(path: str, existing: Iterable[str]) -> str:
    """Return the nearest existing directory above a path: the one that must be covered to show a file there."""
    known = set(existing)
    parents = [str(parent) for parent in Path(path).parents]
    return next((parent for parent in parents if parent in known), "/")


def covers(paths: Sequence[str], existing: Iterable[str]) -> Dict[str, List[str]]:
    """Return each directory to cover, outermost first, with the names in it that candidates replace."""
    known = list(existing)
    names: Dict[str, List[str]] = {}
    for path in paths:
        directory = covered_directory(path, known)
        entries = names.setdefault(directory, [])
        if str(Path(path).parent) == directory:
            entries.append(Path(path).name)
    return dict(sorted(names.items(), key=lambda entry: (entry[0].count("/"), entry[0])))


def _existing_ancestors(paths: Sequence[str]) -> List[str]:
    return [str(parent) for path in paths for parent in Path(path).parents if parent.is_dir()]


def _real_path(path: str) -> str:
    """Follow links in the directory part only: the last part is what is replaced."""
    return str(Path(path).parent.resolve() / Path(path).name)


class _Libc:
    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)

    def _checked(self, status: int, what: str) -> None:
        if status != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")

    def unshare_mounts(self) -> None:
        self._checked(self._library.unshare(CLONE_NEWNS), "private mount namespace")
        self.mount("none", "/", MS_REC | MS_PRIVATE)

    def mount(self, source: str, target: str, flags: int, kind: Optional[str] = None, options: str = "") -> None:
        arguments = [os.fsencode(source), os.fsencode(target), os.fsencode(kind) if kind else None]
        self._checked(self._library.mount(*arguments, ctypes.c_ulong(flags), options.encode()), f"mount on {target}")


def _cover(libc: _Libc, directory: str, replaced: Sequence[str], stage: Path) -> None:
    """Cover a directory with one in memory whose entries are the real ones, but for the replaced."""
    stage.mkdir()
    status = Path(directory).stat()
    os.chown(stage, status.st_uid, status.st_gid)
    stage.chmod(status.st_mode & 0o7777)
    for entry in os.scandir(directory):
        place = stage / entry.name
        if entry.name in replaced:
            continue
        if entry.is_symlink():
            place.symlink_to(Path(entry.path).readlink())
        elif entry.is_dir():
            place.mkdir()
            libc.mount(entry.path, str(place), MS_BIND | MS_REC)
        else:
            place.touch()
            libc.mount(entry.path, str(place), MS_BIND)
    libc.mount(str(stage), directory, MS_BIND | MS_REC)


def _write(candidate: Candidate) -> None:
    if candidate.content is None:
        return
    Path(candidate.path).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(candidate.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(candidate.content)
        os.fchown(stream.fileno(), candidate.owner, candidate.group)
        os.fchmod(stream.fileno(), candidate.mode)


def _run(argv: Sequence[str], environment: Mapping[str, str]) -> Answer:
    try:
        ran = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHECKER_TIMEOUT_S,
            check=False,
            cwd="/",
            env=dict(environment),
        )
    except subprocess.TimeoutExpired:
        return Answer(list(argv), 124, "", f"no answer within {CHECKER_TIMEOUT_S} s")
    return Answer(list(argv), ran.returncode, ran.stdout.decode(errors="replace"), ran.stderr.decode(errors="replace"))


def _trial(
    candidates: Sequence[Candidate], commands: Sequence[Sequence[str]], stage: str, environment: Mapping[str, str]
) -> str:
    try:
        libc = _Libc()
        libc.unshare_mounts()
        libc.mount("tmpfs", stage, 0, "tmpfs", "mode=0700")
        placed = [Candidate(_real_path(one.path), one.content, one.owner, one.group, one.mode) for one in candidates]
        paths = [one.path for one in placed]
        for number, (directory, names) in enumerate(covers(paths, _existing_ancestors(paths)).items()):
            _cover(libc, directory, names, Path(stage, str(number)))
        for candidate in placed:
            _write(candidate)
        return json.dumps({"answers": [asdict(_run(argv, environment)) for argv in commands]})
    except OSError as error:
        return json.dumps({"error": str(error)})


def answers_on_trial(
    candidates: Sequence[Candidate],
    commands: Sequence[Sequence[str]],
    environment: Mapping[str, str],
) -> List[Answer]:
    """Return what each command says where the candidates stand in their place, seen by these commands alone."""
    # Something to mount on; what is mounted there is visible in the child only.
    with tempfile.TemporaryDirectory(prefix="derms-trial-") as stage:
        words = _in_a_child(lambda: _trial(candidates, commands, stage, environment))
    if not words:
        raise TrialError("the trial ended without an answer")
    said = json.loads(words)
    if "error" in said:
        raise TrialError(said["error"])
    return [Answer(**answer) for answer in said["answers"]]


def _in_a_child(speak: Callable[[], str]) -> str:
    """Return what a function says in a child process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever happens, the child must never return into the module, which would then answer twice.
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as stream:
                stream.write(speak())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        words = stream.read()
    os.waitpid(child, 0)
    return words
