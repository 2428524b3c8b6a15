#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: agent_release
short_description: The agent's release on a gateway, installed beside the one in service, put in service, rolled back
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - A release is a virtual environment of its own in O(directory), named after its version, on the gateway's own Python.
    The link C(current) beside them says which one is in service.
  - With O(state=installed) the release is built beside the others, from wheels in C(wheels) of O(directory) alone, each
    checked against its hash. The control node sends those that are not there.
  - The release that C(current) leads to is never deleted. What is not as released in it is put back from the wheels,
    file by file and each in one step, so that the unit can start from it at every instant, also where that fails or is
    cut off; then the unit is due for a restart. Any other release that is not whole is built anew.
  - With O(state=current) the link is switched in one step, the unit restarted, and asked for its health. If it does not
    answer as the new version in time, link, configuration and unit go back to what they were, whichever of them
    changed, and the task fails with the last lines of the journal. Where that was cut off before the answer, the next
    O(state=installed) calls it drift, and the next O(state=current) asks, and goes back, as the first would have.
  - The release that was in service before is kept, for a roll-back by hand, and C(previous) leads to it; others go.
options:
  state:
    description:
      - What is asked for.
      - V(obtainable) only looks whether the control node can make a release - its source, and the programs for it - and
        needs no gateway.
      - V(stored) is a step of V(installed) that only keeps the wheels in O(upload).
    type: str
    choices: [obtainable, installed, current, stored]
    required: true
  directory:
    description: Where releases are.
    type: path
    default: /opt/derms
  interpreter:
    description: The Python that releases are built on; a path or a name.
    type: str
    default: python3
  source:
    description:
      - On the control node, the directory of the agent's source, with its locks; or of the one archive of both that a
        built collection has. Used by O(state=obtainable) and O(state=installed).
    type: path
  cache:
    description: On the control node, where wheels are kept. Used by O(state=installed).
    type: path
  releases:
    description: Which version is wanted on which Python and processor. Set by the action plugin.
    type: list
    elements: dict
    default: []
    suboptions:
      python:
        description: Python's minor version.
        type: str
        required: true
      machine:
        description: The processor, as C(uname -m) says it.
        type: str
        required: true
      version:
        description: The release.
        type: str
        required: true
  requirements:
    description: The release's wheels with their hashes, as pip reads them. Set by the action plugin.
    type: str
  upload:
    description: A tar archive of wheels that has just been sent. Set by the action plugin.
    type: path
  version:
    description: The release that is to be in service; without it, the one that is. Used by O(state=current).
    type: str
  unit:
    description: The unit that runs the release.
    type: str
    default: derms-orchestrator.service
  followers:
    description:
      - Other units that run the release. Each that runs beforehand is restarted once O(unit) is well, and has to start
        for the release to stay. One that is stopped, has failed or crashes again and again is left alone.
    type: list
    elements: str
    default: []
  followers_only:
    description:
      - Leave O(unit) running, and restart and judge O(followers) alone. For where nothing that O(unit) reads at its
        start has changed.
    type: bool
    default: false
  configuration:
    description: Files that go back together with the release.
    type: list
    elements: path
    default: []
  health_timeout_s:
    description: How long the unit may take until it answers, in s.
    type: int
    default: 60
attributes:
  check_mode:
    description: Predicts the change; a Python that is not installed yet is taken at its name.
    support: full
  diff_mode:
    description: Returns one entry for all that differs.
    support: full
  platform:
    description: Where it works.
    support: full
    platforms: posix
"""

EXAMPLES = r"""
- name: Have the release ready
  derms.edge.agent_release:
    state: installed
    source: "{{ playbook_dir }}/../agent"
    cache: ~/.cache/derms-edge/wheels
  register: agent
  notify: Put the release in service

- name: Put the release in service
  derms.edge.agent_release:
    state: current
    version: "{{ agent.version }}"
"""

RETURN = r"""
version:
  description: The release that is wanted on this gateway.
  type: str
  returned: success
  sample: 0.1.0+h3f9c0a1b2d.py310
before:
  description: The release that was in service, or nothing.
  type: str
  returned: success
python:
  description: The gateway's Python, as far as the minor version.
  type: str
  returned: with O(state=installed)
  sample: '3.10'
machine:
  description: The gateway's processor.
  type: str
  returned: with O(state=installed)
  sample: aarch64
to_build:
  description: Whether the release has to be built, or what is not as released put back.
  type: bool
  returned: with O(state=installed)
wheels:
  description: The hash of each wheel that the gateway has, where it needs some.
  type: dict
  returned: with O(state=installed)
rolled_back:
  description: What is as it was before the run again, named as in RV(drift); files stand for their attributes too.
  type: list
  elements: str
  returned: failure
  sample: [agent, /etc/derms/agent.conf]
drift:
  description: Every difference between what is declared and what was found.
  type: list
  elements: dict
  returned: always
  sample:
    - what: agent
      is: 0.1.0+h3f9c0a1b2d.py310
      should_be: 0.1.0+h77aa01c9e4.py310
"""

import base64
import csv
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import tarfile
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.derms.edge.plugins.module_utils.kept_files import KeptFiles
from ansible_collections.derms.edge.plugins.module_utils.text_files import ABSENT, Drift, drift, drift_diff

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# What a finished release holds, written last: a directory without it is one whose building was cut off.
MARKER = "release.json"
VERSION = re.compile(r"\d+(\.\d+)*\+h[0-9a-f]+\.py\d+")
OWN_PACKAGE = "derms-agent"
LOCKED_PIP = re.compile(r"^pip==\S+ --hash=sha256:(?P<sha256>[0-9a-f]{64})  # (?P<file>\S+)$", re.MULTILINE)
# As compileall takes it, of paths.
NOT_COMPILED = "/(pip|tests)/"
# So many restarts of its own, and a unit will not come up any more.
MOST_RESTARTS = 4
JOURNAL_LINES = 20
ASK_TIMEOUT_S = 10
PAUSE_S = 0.5
RUNNING_STATES = ("active", "activating", "reloading")


class RefusalError(Exception):
    """Why the release could not be installed or put in service, and what was put back as it was before.

    `rolled_back` names it as drift does: the agent, and files.
    """

    def __init__(self, message: str, rolled_back: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.rolled_back = list(rolled_back)


def python_in_name(interpreter: str) -> str:
    """Return the minor version that an interpreter's name tells, such as 3.11 of python3.11; empty if it tells none."""
    match = re.search(r"python(3\.\d+)$", interpreter)
    return match[1] if match else ""


def file_sha256(path: Path) -> bytes:
    """Return a file's hash."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.digest()


def package_name(text: str) -> str:
    """Return a package's name as locks have it."""
    return re.sub(r"[-_.]+", "-", text).lower()


def recorded(record: Path) -> list[tuple[str, str, str]]:
    """Return path, hash and size of each file that a package brought; nothing where its record is damaged."""
    try:
        with record.open(newline="", encoding="utf-8") as stream:
            return [(row[0], row[1], row[2]) for row in csv.reader(stream)]
    except (csv.Error, IndexError, ValueError):
        return []


def is_as_recorded(path: str, digest: str, size: str) -> bool:
    """Tell whether a file has the size, and where one is given the hash, that its package's record has."""
    try:
        found = os.stat(path)  # noqa: PTH116 (of thousands; a Path for each takes thrice as long)
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode) or str(found.st_size) != size:
        return False
    method, _separator, value = digest.partition("=")
    return method != "sha256" or base64.urlsafe_b64encode(file_sha256(Path(path))).decode().rstrip("=") == value


def altered_files(release: Path) -> list[tuple[str, str]]:
    """Return the files that are not as their wheels brought them, each with its package.

    The agent's own are known by their hashes; of all others, which nobody edits, the size tells what a power cut left.
    """
    altered, found = [], []
    for record in sorted(release.glob("lib/python*/site-packages/*.dist-info/RECORD")):
        site = record.parents[1]
        package = package_name(record.parent.name.removesuffix(".dist-info").rpartition("-")[0])
        rows = recorded(record)
        if rows:
            found.append(package)
        for name, digest, size in rows:
            path = f"{site}/{name}"
            if size and not is_as_recorded(path, digest if package == OWN_PACKAGE else "", size):
                altered.append((package, os.path.normpath(path)))
    listed = release / "requirements.txt"
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    wanted = {OWN_PACKAGE, *(package_name(line.partition("==")[0]) for line in lines)}
    return altered + [(package, str(release / "lib")) for package in sorted(wanted) if found.count(package) != 1]


class Releases:
    """The releases in a directory, and the link that says which one is in service."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.link = directory / "current"
        # Which release was in service before: one that was built later need not have been.
        self.previous = directory / "previous"
        self.wheels = directory / "wheels"
        # Where wheels are unpacked that a release is mended from.
        self.unpacked = directory / "unpacked"
        # The configuration as it was before the release that is about to be put in service.
        self.before = directory / "before"

    def finished(self) -> list[str]:
        """Return the releases that are whole, the newest first."""
        markers = sorted(self.directory.glob(f"*/{MARKER}"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.parent.name for path in markers if VERSION.fullmatch(path.parent.name)]

    def in_service(self) -> str:
        """Return the release that the link names; empty where it names none of them."""
        return self.named(str(self.link.readlink())) if self.link.is_symlink() else ""

    def named(self, words: str) -> str:
        """Return the whole release that a link of these words names; empty where it names none of them."""
        target = self.target(words)
        return target.name if target.parent == self.directory and target.name in self.finished() else ""

    def linked(self) -> Path:
        """Return where the link leads, by its words alone."""
        return self.target(str(self.link.readlink()))

    def target(self, words: str) -> Path:
        """Return where a link of these words leads."""
        return Path(os.path.normpath(self.directory / words))

    def is_linked(self, version: str) -> bool:
        """Tell whether the link names a release, whole or not: a unit may run from it, or start from it any time."""
        return self.link.is_symlink() and self.linked() == self.directory / version

    def link_words(self) -> str:
        """Return what the link is, in words."""
        if self.link.is_symlink():
            return str(self.link.readlink())
        return "no link" if self.link.exists() else ABSENT

    def point_to(self, version: str) -> None:
        """Switch the link in one step, so that at every instant there is one that leads to a whole release."""
        if self.link.exists() and not self.link.is_symlink():
            raise RefusalError(f"{self.link} is in the way: it is no link")
        self.lead_to(version)
        # Newer than the start of a unit that still runs what was in service before: the restart that is owed shows.
        os.utime(self.directory / version / MARKER)

    def lead_to(self, words: str) -> None:
        """Make the link what it is to be, in one step."""
        self._make_link(self.link, words)

    @staticmethod
    def _make_link(link: Path, words: str) -> None:
        candidate = link.with_name(f".{link.name}")
        candidate.unlink() if candidate.is_symlink() else None
        candidate.symlink_to(words)
        candidate.replace(link)

    def remember(self, previous: str) -> None:
        """Note which release was in service before."""
        self._make_link(self.previous, previous)

    def one_before(self, version: str) -> str:
        """Return the release that was in service before a version; the newest other where nothing tells, empty if none.

        While that version is put in service, the copies of the configuration tell, and then the link `current`.
        """
        others = [name for name in self.finished() if name != version]
        links = [self.before / self.link.name, self.link, self.previous]
        told = [self.named(str(link.readlink())) for link in links if link.is_symlink()]
        return next((name for name in [*told, *others] if name in others), "")

    def superfluous(self, version: str) -> list[Path]:
        """Return the releases that are neither in service nor the one before, and what a cut-off building left."""
        kept = {version, self.in_service(), self.one_before(version)}
        return [
            path
            for path in sorted(self.directory.iterdir() if self.directory.is_dir() else [])
            if path.is_dir() and not path.is_symlink() and VERSION.fullmatch(path.name) and path.name not in kept
        ]

    def remove_unpacked(self) -> None:
        """Remove what is left of wheels that a release was mended from."""
        if self.unpacked.is_dir():
            shutil.rmtree(self.unpacked)

    def has_python(self, version: str) -> bool:
        """Tell whether a release has a Python to run on, and what makes that look for the release's packages."""
        release = self.directory / version
        configuration = release / "pyvenv.cfg"
        return (
            os.access(release / "bin" / "python", os.X_OK)
            and configuration.is_file()
            and bool(configuration.read_text())
        )

    def flaws(self, version: str) -> list[Drift]:
        """Return what is wrong with a release that is wanted; nothing where it is whole and unaltered."""
        release = self.directory / version
        if not (release / MARKER).is_file():
            return [drift(str(release), "cut off while it was built" if release.exists() else ABSENT, "built")]
        if not self.has_python(version):
            return [drift(str(release), "without its Python", "built")]
        return [drift(path, "not as released", "as released") for _package, path in altered_files(release)]

    def drift(self, version: str) -> list[Drift]:
        """Return everything that differs, an upgrade as one line."""
        flaws, now = self.flaws(version), self.in_service()
        differences = []
        if now and now != version:
            differences.append(drift("agent", now, version))
        elif not now and not self.link.is_symlink() and not self.finished():
            differences.append(drift("agent", ABSENT, version))
        else:
            differences += flaws
            # One that names the release that is wanted, but is not whole, says nothing that its flaws do not.
            if not now and not self.is_linked(version):
                differences.append(drift(str(self.link), self.link_words(), version))
        return differences + [drift(str(path), "present", ABSENT) for path in self.superfluous(version)]


class Gateway:
    """What is asked of and done to this gateway."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.releases = Releases(Path(module.params["directory"]))
        self.configuration = KeptFiles(module.params["configuration"], self.releases.before)
        self.unit = str(module.params["unit"])
        self.followers: list[str] = module.params["followers"]
        self.followers_only: bool = module.params["followers_only"]
        # Those that ran before anything was switched.
        self.running: list[str] = []
        # Which unit is not well, where one is not.
        self.ill = self.unit
        # pip must not be led elsewhere by what root's own settings or the calling environment say.
        self.environment = {"LC_ALL": "C.UTF-8", "PIP_CONFIG_FILE": os.devnull, "PYTHONPATH": "", "PYTHONHOME": ""}

    def _run(self, *words: str) -> str:
        status, out, error = self.module.run_command(list(words), environ_update=self.environment, cwd="/")
        if status != 0:
            raise RefusalError(f"{' '.join(words[:4])} …: {(error.strip() or out.strip())[-2000:]}")
        return str(out)

    # --- building -------------------------------------------------------------------------------------------------

    def python(self) -> str:
        """Return the minor version of the Python that releases are built on."""
        interpreter = self.module.params["interpreter"]
        program = self.module.get_bin_path(interpreter)
        if program is None:
            if named := python_in_name(interpreter):
                return named
            raise RefusalError(f"{interpreter}: there is no such Python, and its name does not say which it is to be")
        return self._run(program, "-Ic", "import sys; print('%d.%d' % sys.version_info[:2])").strip()

    def wanted(self, python: str, machine: str) -> str:
        """Return the release that is wanted here."""
        for one in self.module.params["releases"]:
            if (one["python"], one["machine"]) == (python, machine):
                return str(one["version"])
        offered = ", ".join(sorted({f"{one['python']} on {one['machine']}" for one in self.module.params["releases"]}))
        raise RefusalError(f"found Python {python} on {machine}; the agent runs on {offered}. See agent_rhel_python.")

    def store(self) -> None:
        """Keep the wheels that were sent; a name shows only once the file is whole."""
        self.releases.wheels.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tarfile.open(self.module.params["upload"], "r:") as archive:
            for member in archive:
                name, sent = member.name, archive.extractfile(member)
                if sent is None or name != Path(name).name or not name.endswith(".whl"):
                    raise RefusalError(f"{name}: found among the wheels that were sent, expected wheels alone")
                beside = self.releases.wheels / f".{name}"
                with sent, beside.open("wb") as kept:
                    shutil.copyfileobj(sent, kept)
                beside.chmod(0o644)
                beside.replace(self.releases.wheels / name)

    def installer(self, requirements: str) -> Path:
        """Return the wheel of pip among those of a release, seen to be the locked one: it runs out of its wheel.

        A pip of the gateway's own would be another one on each distribution, and one more package to keep.
        """
        locked = LOCKED_PIP.search(requirements)
        if locked is None:
            raise RefusalError("the release's wheels have no pip among them, which would install the others")
        wheel = self.releases.wheels / locked["file"]
        if file_sha256(wheel).hex() != locked["sha256"]:
            raise RefusalError(f"{wheel} does not have the hash that the lock names")
        return wheel

    def build(self, version: str, requirements: str) -> None:
        """Build a release from the wheels that are here, by their hashes; a directory that is not whole is replaced."""
        release = self.releases.directory / version
        if release.exists():
            shutil.rmtree(release)
        try:
            pip = self.installer(requirements)
            self._make_environment(release)
            listed = release / "requirements.txt"
            listed.write_text(requirements, encoding="utf-8")
            self._install(pip, release, listed)
            self._finish(version)
        except (RefusalError, OSError):
            shutil.rmtree(release, ignore_errors=True)
            raise

    def mend(self, version: str, requirements: str) -> None:
        """Put back what is not as released, file by file and each in one step: the unit may start at any instant.

        A virtual environment's paths are absolute, so that none that was built elsewhere could take this one's place.
        """
        release, unpacked = self.releases.directory / version, self.releases.unpacked
        self.releases.remove_unpacked()
        try:
            pip = self.installer(requirements)
            if not self.releases.has_python(version):
                self._make_environment(release)
            tree = unpacked / str(release).lstrip("/")
            tree.mkdir(parents=True)
            (tree / "requirements.txt").write_text(requirements, encoding="utf-8")
            listed = unpacked / "requirements.txt"
            listed.write_text(self._lacking(release, requirements), encoding="utf-8")
            # As into the release itself, its programs' first lines among it, but below another root.
            self._install(pip, release, listed, f"--root={unpacked}", "--ignore-installed", "--no-deps")
            self._put_back(tree, release)
            self._finish(version)
        finally:
            self.releases.remove_unpacked()
        if flaws := self.releases.flaws(version):
            raise RefusalError(f"{flaws[0]['what']} is {flaws[0]['is']} after its wheel was put back")

    def _lacking(self, release: Path, requirements: str) -> str:
        """Return the lines of the wheels that brought what is not as released; all of them where that is not known."""
        packages = {package for package, _path in altered_files(release)} if (release / MARKER).is_file() else set()
        lines = requirements.splitlines(keepends=True)
        return "".join(line for line in lines if not packages or package_name(line.partition("==")[0]) in packages)

    def _put_back(self, tree: Path, release: Path) -> None:
        """Move each file of a tree that a release does not have as it is there; both are on the disk first."""
        os.sync()
        if (release / MARKER).is_file():
            # Newer than the start of a unit that runs what was altered, also where this is cut off.
            os.utime(release / MARKER)
        for file in sorted(path for path in tree.rglob("*") if path.is_file()):
            place = release / file.relative_to(tree)
            if not place.is_file() or file_sha256(place) != file_sha256(file):
                place.parent.mkdir(parents=True, exist_ok=True)
                for compiled in place.parent.glob(f"__pycache__/{place.stem}.*.pyc"):
                    compiled.unlink()
                file.replace(place)

    def _make_environment(self, release: Path) -> None:
        for program in release.glob("bin/python*"):
            program.unlink()
        interpreter = self.module.get_bin_path(self.module.params["interpreter"], required=True)
        self._run(interpreter, "-m", "venv", "--without-pip", str(release))

    def _install(self, pip: Path, release: Path, listed: Path, *options: str) -> None:
        self._run(
            *(str(release / "bin" / "python"), "-I", f"{pip}/pip", "--isolated", "--disable-pip-version-check"),
            *("install", "--quiet", "--no-cache-dir", "--no-compile", "--no-index"),
            *(f"--find-links={self.releases.wheels}", "--require-hashes", "--only-binary=:all:", *options),
            f"--requirement={listed}",
        )

    def _finish(self, version: str) -> None:
        """Compile a release, see that it runs, and mark it as whole."""
        release = self.releases.directory / version
        # Half of the installation; pip would do it on one processor, and with what a service never imports.
        self._run(
            *(str(release / "bin" / "python"), "-m", "compileall", "-q", "-j", "0", "-x", NOT_COMPILED),
            str(release / "lib"),
        )
        said = self._run(str(release / "bin" / "derms-agent"), "--version").strip()
        if not said.endswith(f" {version}"):
            raise RefusalError(f"the release that was built says {said!r}, expected version {version}")
        if self.module.selinux_enabled() and (restorecon := self.module.get_bin_path("restorecon")):
            self._run(restorecon, "-RF", str(release))
        # A power cut must not leave the mark of a release whose files are still to be written.
        os.sync()
        with (release / MARKER).open("w", encoding="utf-8") as stream:
            json.dump({"version": version, "python": python_in_name(self.module.params["interpreter"])}, stream)
            stream.flush()
            os.fsync(stream.fileno())

    def stored_wheels(self) -> dict[str, str]:
        """Return the hash of each wheel that is here."""
        return {path.name: file_sha256(path).hex() for path in sorted(self.releases.wheels.glob("*.whl"))}

    # --- in service -----------------------------------------------------------------------------------------------

    def _systemctl(self, *words: str) -> str:
        return self._run(self.module.get_bin_path("systemctl", required=True), *words)

    def restart(self) -> None:
        """Restart the unit, with its file on disk; whether it comes up is asked apart from this."""
        self._systemctl("daemon-reload")
        # A unit that has failed too often would refuse to start.
        self.module.run_command([self.module.get_bin_path("systemctl", required=True), "reset-failed", self.unit])
        self._systemctl("restart", "--no-block", self.unit)

    def running_followers(self) -> list[str]:
        """Return the other units that run; one that has failed did so before this, and says nothing of a release."""
        return [unit for unit in self.followers if self._runs(self._state(unit))]

    @staticmethod
    def _runs(state: dict[str, str]) -> bool:
        # One that crashes and is started again never fails, as systemd has it: it is activating time and again.
        crashes = state.get("ActiveState") == "activating" and state.get("NRestarts") not in (None, "0")
        return state.get("ActiveState") in RUNNING_STATES and not crashes

    def ailment(self, version: str) -> str:
        """Restart all units and wait until they run a version; return what one did instead, empty if they are well."""
        self.ill = self.unit
        try:
            if self.followers_only:
                self._systemctl("daemon-reload")
                return self.followers_ailment()
            self.restart()
            return self.unit_ailment(version) or self.followers_ailment()
        except RefusalError as refusal:
            # A unit file that systemd does not take goes back like one that the unit does not run with.
            return str(refusal)

    def followers_ailment(self) -> str:
        """Restart the other units that ran, one after the other; return which does not start, empty if each does."""
        program = self.module.get_bin_path("systemctl", required=True)
        for unit in self.running:
            status, _out, error = self.module.run_command([program, "restart", unit])
            if status != 0:
                self.ill = unit
                return f"{unit} does not start: {error.strip()}"
        return ""

    def unit_ailment(self, version: str) -> str:
        """Wait until the unit answers as a version that is ready; return what it did instead, empty if it is well."""
        program = self.releases.link / "bin" / "derms-agent"
        deadline_s = time.monotonic() + self.module.params["health_timeout_s"]
        said = "nothing"
        while time.monotonic() < deadline_s:
            state = self._state(self.unit)
            if int(state.get("NRestarts") or 0) >= MOST_RESTARTS or state.get("ActiveState") == "failed":
                return (
                    f"{self.unit} does not stay up: {state.get('ActiveState')} after {state.get('NRestarts')} restarts"
                )
            if state.get("ActiveState") == "active":
                said = self._answer(program)
                if said == "":
                    said = "no status"
                elif said == f"{version} ready":
                    return ""
            else:
                said = f"{self.unit} is {state.get('ActiveState')}"
            time.sleep(PAUSE_S)
        return f"no answer as {version} within {self.module.params['health_timeout_s']} s; last: {said}"

    def _state(self, unit: str) -> dict[str, str]:
        """Return whether a unit is active, and how often systemd restarted it."""
        shown = self._systemctl("show", "--property=ActiveState,NRestarts", unit)
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    def _answer(self, program: Path) -> str:
        """Return version and readiness as the unit tells them over its socket, or why it does not."""
        timeout = self.module.get_bin_path("timeout", required=True)
        status, out, error = self.module.run_command(
            [timeout, str(ASK_TIMEOUT_S), str(program), "status", "--json"], environ_update=self.environment, cwd="/"
        )
        if status != 0:
            return str(error.strip() or out.strip() or f"exit status {status}").splitlines()[-1]
        try:
            told = json.loads(out)
            return f"{told['version']} {'ready' if told['ready'] else 'not ready'}"
        except (ValueError, KeyError, TypeError):
            return "a status that is not understood"

    def journal(self) -> str:
        """Return the last lines of the journal of the unit that was not well."""
        program = self.module.get_bin_path("journalctl", required=True)
        words = ["--namespace=derms", f"--unit={self.ill}", f"--lines={JOURNAL_LINES}", "--no-pager", "--output=cat"]
        _status, out, error = self.module.run_command([program, *words])
        return str((out.strip() or error.strip())[-4000:])

    def put_in_service(self, version: str) -> None:
        """Switch to a release and restart the unit; go back to what was before if it does not come up."""
        if flaws := self.releases.flaws(version):
            raise RefusalError(f"{flaws[0]['what']} is {flaws[0]['is']}, so it was not put in service")
        # Where copies were kept, the release that they belong to: the one that the link names now may be the very one
        # that a run put in service and was cut off before it answered.
        words = self.configuration.of() or (self.releases.link_words() if self.releases.link.is_symlink() else "")
        before = self.releases.named(words)
        # A link to something that is no release; with what it leads to the unit may run all the same.
        elsewhere = "" if before else words
        ran = bool(elsewhere) and self._state(self.unit).get("ActiveState") == "active"
        self._switch_to(version)
        ailment = self.ailment(version)
        if not ailment:
            if before not in ("", version):
                self.releases.remember(before)
            self.configuration.forget()
            self.tidy(version)
            return
        lines = self.journal()
        rolled_back, stuck = self._put_back_configuration()
        if before == version and not rolled_back:
            gone_back = stuck or f"{version} was in service before as well, so there is nothing to go back to."
            raise RefusalError(f"{ailment}. {gone_back}\nThe journal's last lines:\n{lines}")
        if before != version:
            # As drift names them: the link stands for the agent where it named no release, or none there was.
            rolled_back = ["agent", *([] if before else [str(self.releases.link)]), *rolled_back]
        gone_back = self._gone_back(before, version) if before else self._as_without_release(version, elsewhere, ran)
        if stuck:
            # The copies stay: the next run goes back to them.
            gone_back = f"{stuck} {gone_back}"
        else:
            self.configuration.forget()
        raise RefusalError(f"{ailment}. {gone_back}\nThe journal's last lines:\n{lines}", rolled_back)

    def _switch_to(self, version: str) -> None:
        # Its mark would owe the unit a restart.
        if not self.followers_only:
            self.releases.point_to(version)

    def _put_back_configuration(self) -> tuple[list[str], str]:
        """Return which files are as they were, and why they could not be put back, where they could not."""
        try:
            return self.configuration.put_back(), ""
        except OSError as error:
            return [], f"The configuration before could not be put back: {error}."

    def _gone_back(self, before: str, version: str) -> str:
        """Run the release that was in service, with its files back in their places; return how that went."""
        what = f"{before} with the configuration before" if before == version else before
        self._switch_to(before)
        ailment = self.ailment(before)
        if ailment:
            return f"Went back to {what}, which is not well either: {ailment}."
        return f"Went back to {what}, which is in service again."

    def _as_without_release(self, version: str, elsewhere: str, ran: bool) -> str:
        """Make the link, and the unit, what they were when the link named no release; return how that went."""
        if elsewhere:
            self.releases.lead_to(elsewhere)
        else:
            self.releases.link.unlink()
        try:
            if ran:
                self.restart()
                return f"{self.releases.link} leads to {elsewhere} again, and the unit was restarted with that."
            self._systemctl("daemon-reload")
            self._systemctl("stop", self.unit)
        except RefusalError as refusal:
            return f"The link is as it was before {version}, but not the unit: {refusal}."
        return f"There was no release before {version}: the unit is stopped."

    def tidy(self, version: str) -> None:
        """Remove all releases but this one and the one before, and the wheels that neither needs."""
        for path in self.releases.superfluous(version):
            shutil.rmtree(path)
        self.releases.remove_unpacked()
        needed = "".join(
            (self.releases.directory / name / "requirements.txt").read_text(encoding="utf-8")
            for name in self.releases.finished()
        )
        for wheel in self.releases.wheels.glob("*.whl"):
            if wheel.name not in needed:
                wheel.unlink()


def installed(gateway: Gateway) -> dict[str, Any]:
    """Compare, and outside check mode build the release once its requirements are known."""
    module, releases = gateway.module, gateway.releases
    python, machine = gateway.python(), platform.machine()
    version = gateway.wanted(python, machine)
    differences = releases.drift(version)
    flaws = releases.flaws(version)
    serves, kept = releases.in_service() == version, gateway.configuration
    # Changed by a run that was cut off before the unit answered; what was before is still there to go back to.
    unproven = serves and kept.are_there() and (releases.named(kept.of()) != version or kept.differ())
    if unproven:
        differences.insert(0, drift("agent", f"{version}, not seen to be well", version))
    result = {
        "changed": bool(differences),
        "version": version,
        "before": releases.in_service(),
        "python": python,
        "machine": machine,
        "to_build": bool(flaws),
        "wheels": gateway.stored_wheels() if flaws else {},
        "drift": differences,
        "diff": drift_diff(differences),
    }
    if module.check_mode or (flaws and module.params["requirements"] is None):
        return result
    if not releases.is_linked(version):
        kept.keep(releases.link)
    elif serves and not unproven:
        kept.forget()
    if flaws:
        old_mask = os.umask(0o022)
        try:
            mended = releases.is_linked(version) and (releases.directory / version).is_dir()
            (gateway.mend if mended else gateway.build)(version, module.params["requirements"])
        finally:
            os.umask(old_mask)
    if serves and not unproven:
        gateway.tidy(version)
    return result


def current(gateway: Gateway) -> dict[str, Any]:
    """Put a release in service, or in check mode say that it would be."""
    before = gateway.releases.in_service()
    version = gateway.module.params["version"] or before
    gateway.running = gateway.running_followers()
    units = gateway.running if gateway.followers_only else [gateway.unit, *gateway.running]
    differences = [drift(unit, f"runs {before or 'no release'}", "restarted") for unit in units]
    if not gateway.module.check_mode:
        if not version:
            link = gateway.releases.link
            raise RefusalError(f"{link}: found {gateway.releases.link_words()}, expected a link to a release")
        gateway.put_in_service(version)
    return {
        "changed": True,
        "version": version,
        "before": before,
        "drift": differences,
        "diff": drift_diff(differences),
    }


def stored(gateway: Gateway) -> dict[str, Any]:
    """Keep what was sent."""
    if not gateway.module.check_mode:
        gateway.store()
    return {"changed": True, "drift": []}


def argument_spec() -> dict[str, Any]:
    """Return what the module takes."""
    return {
        "state": {"type": "str", "choices": ["obtainable", "installed", "current", "stored"], "required": True},
        "directory": {"type": "path", "default": "/opt/derms"},
        "interpreter": {"type": "str", "default": "python3"},
        "source": {"type": "path"},
        "cache": {"type": "path"},
        "releases": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "python": {"type": "str", "required": True},
                "machine": {"type": "str", "required": True},
                "version": {"type": "str", "required": True},
            },
        },
        "requirements": {"type": "str"},
        "upload": {"type": "path"},
        "version": {"type": "str"},
        "followers_only": {"type": "bool", "default": False},
        "unit": {"type": "str", "default": "derms-orchestrator.service"},
        "followers": {"type": "list", "elements": "str", "default": []},
        "configuration": {"type": "list", "elements": "path", "default": []},
        "health_timeout_s": {"type": "int", "default": 60},
    }


REQUIRED: Iterable[tuple[str, str, list[str]]] = [("state", "stored", ["upload"])]


def main() -> None:
    """Do what is asked for."""
    module = AnsibleModule(argument_spec=argument_spec(), required_if=REQUIRED, supports_check_mode=True)
    gateway = Gateway(module)
    verb = {"installed": installed, "current": current, "stored": stored}[module.params["state"]]
    try:
        result = verb(gateway)
    except RefusalError as refusal:
        module.fail_json(msg=str(refusal), rolled_back=refusal.rolled_back)
    except (OSError, tarfile.TarError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
