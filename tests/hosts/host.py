# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's life: an overlay on its platform's base, booted in a network namespace and control groups of its own."""

from __future__ import annotations

import enum
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.hosts import cgroups, network, ssh
from tests.hosts.addresses import Address
from tests.hosts.errors import HostsError
from tests.hosts.image import Base
from tests.hosts.programs import run
from tests.hosts.settings import Settings

HERE = Path(__file__).parent
# What systemd, as the first process, understands as an order to power off.
POWER_OFF = signal.SIGRTMIN + 4
BOOT_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 15.0
# A host's systemd takes about seven; the kernel's usual 128 for all that root runs end with the seventeenth host.
INOTIFY_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_INSTANCES_NEEDED = 1024


def make_room() -> None:
    """Let root watch as many files as all hosts together may need, until the machine reboots."""
    if int(INOTIFY_INSTANCES.read_text(encoding="ascii")) < INOTIFY_INSTANCES_NEEDED:
        INOTIFY_INSTANCES.write_text(str(INOTIFY_INSTANCES_NEEDED), encoding="ascii")


@dataclass(frozen=True)
class Options:
    """What a host was asked to be, beyond its platform."""

    udev: bool = False
    fake_sysctl: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """What is written down of a host when it is started."""

    platform: str
    base: str
    options: Options
    boot_id: str
    pid: int
    started_ticks: int
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What an `up` asks for."""

    platform: str
    base: str
    options: Options
    fresh: bool


class Step(enum.Enum):
    """What an `up` has to do about a host."""

    KEEP = "is up"
    RESTART = "was raised again on its own disk"
    REPLACE = "was raised"


def next_step(wanted: Wanted, record: Record | None, *, alive: bool, answers: bool) -> Step:
    """Decide what to do about a host.

    Its disk is thrown away when it shall be, or when it lies on another base than the platform's present one.
    Otherwise a host that answers and is what is asked for is left alone, and any other is started again: one whose
    machine rebooted, one that was killed, one that locked everybody out.
    """
    if wanted.fresh or record is None or (record.platform, record.base) != (wanted.platform, wanted.base):
        return Step.REPLACE
    if alive and answers and record.options == wanted.options:
        return Step.KEEP
    return Step.RESTART


def boot_id() -> str:
    """Return what names this boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def started_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; nothing if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def with_names(hosts_file: str, names: Mapping[str, Address]) -> str:
    """Return /etc/hosts with the names that it lacks added; what is there stays."""
    known = {name for line in hosts_file.splitlines() for name in line.partition("#")[0].split()[1:]}
    return hosts_file + "".join(
        f"{address.ipv4} {name}\n{address.ipv6} {name}\n"
        for name, address in sorted(names.items())
        if name not in known
    )


class Host:
    """One host by its name; whether it exists is seen on the disk and in the process table each time it is asked."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self.name = name
        self._directory = settings.directory / "hosts" / name
        self._root = self._directory / "root"

    @property
    def root(self) -> Path:
        """The host's root as it is mounted while the host is up."""
        return self._root

    def record(self) -> Record | None:
        """Return what was written down when the host was last started."""
        path = self._directory / "host.json"
        if not path.exists():
            return None
        fields = json.loads(path.read_text(encoding="utf-8"))
        options = Options(udev=fields["options"]["udev"], fake_sysctl=tuple(fields["options"]["fake_sysctl"]))
        return Record(**{**fields, "options": options, "groups": tuple(fields["groups"])})

    def alive(self) -> bool:
        """Tell whether the process that was started for the host still runs."""
        record = self.record()
        return record is not None and record.boot_id == boot_id() and started_ticks(record.pid) == record.started_ticks

    def up(
        self, wanted: Wanted, base: Base, address: Address, names: Mapping[str, Address], authorized_key: str
    ) -> Step:
        """Bring the host up as asked; return what had to be done."""
        alive = self.alive()
        answers = alive and ssh.greets(address, timeout_s=3.0)
        step = next_step(wanted, self.record(), alive=alive, answers=answers)
        if step is Step.KEEP:
            return step
        self.stop()
        if step is Step.REPLACE and self._directory.exists():
            shutil.rmtree(self._directory)
        self._mount(base)
        self._prepare(names, authorized_key)
        self._start(wanted, base, network.connect(self._settings, self.name, address))
        return step

    def _mount(self, base: Base) -> None:
        for part in ("upper", "work", "root"):
            (self._directory / part).mkdir(parents=True, exist_ok=True)
        layers = f"lowerdir={base.root},upperdir={self._directory / 'upper'},workdir={self._directory / 'work'}"
        run("mount", "-t", "overlay", f"derms-{self.name}", "-o", layers, self._root)

    def _prepare(self, names: Mapping[str, Address], authorized_key: str) -> None:
        """Give the host what tells it from its base; a restart finds it there and changes nothing."""
        machine_id = self._root / "etc/machine-id"
        if not machine_id.read_text(encoding="ascii").strip():
            machine_id.write_text(uuid.uuid4().hex + "\n", encoding="ascii")
            (self._root / "etc/hostname").write_text(f"{self.name}\n", encoding="ascii")
            (self._root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n", encoding="ascii")
            self._authorize(authorized_key)
        ssh.make_host_keys(self._root)
        self.learn(names)

    def _authorize(self, authorized_key: str) -> None:
        home = self._root / "home" / ssh.USER
        owner = home.stat()
        keys = home / ".ssh/authorized_keys"
        keys.parent.mkdir(mode=0o700)
        keys.write_text(authorized_key, encoding="ascii")
        keys.chmod(0o600)
        for path in (keys.parent, keys):
            os.chown(path, owner.st_uid, owner.st_gid)

    def learn(self, names: Mapping[str, Address]) -> None:
        """Add other hosts' names to /etc/hosts; there is no name server, and a lookup must not wait for one."""
        path = self._root / "etc/hosts"
        before = path.read_text(encoding="utf-8")
        after = with_names(before, names)
        if after != before:
            path.write_text(after, encoding="utf-8")

    def public_key(self) -> str:
        """Return the host's own public key, from its disk."""
        return (self._root / "etc/ssh/ssh_host_ed25519_key.pub").read_text(encoding="ascii")

    def _start(self, wanted: Wanted, base: Base, network_namespace: Path) -> None:
        groups = cgroups.groups_for(f"{self._settings.bridge}-{self.name}")
        # Written first: whatever interrupts the start, its groups are known to the next one.
        record = Record(
            wanted.platform, wanted.base, wanted.options, boot_id(), 0, 0, tuple(str(group) for group in groups)
        )
        self._write(record)
        pid1_options = [
            *(["udev"] if wanted.options.udev else []),
            *(key.replace(".", "/") for key in wanted.options.fake_sysctl),
        ]
        with (self._directory / "console.log").open("ab") as console:
            process = subprocess.Popen(
                [
                    HERE / "supervise.sh",
                    *groups,
                    "--",
                    "systemd-nspawn",
                    "--quiet",
                    f"--directory={self._root}",
                    f"--machine={self.name}",
                    "--register=no",
                    "--keep-unit",
                    f"--network-namespace-path={network_namespace}",
                    "--resolv-conf=off",
                    "--timezone=off",
                    "--link-journal=no",
                    "--console=pipe",
                    # The clock is the whole machine's: a host that may set it, sets everybody's.
                    "--drop-capability=CAP_SYS_TIME",
                    "--capability=CAP_NET_ADMIN,CAP_SYSLOG",
                    f"--bind-ro={base.packages}:/srv/packages",
                    f"--bind-ro={HERE / 'pid1.sh'}:/run/pid1",
                    "/run/pid1",
                    *pid1_options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        ticks = started_ticks(process.pid)
        if ticks is None:
            raise HostsError(self._last_words("ended as soon as it was started"))
        self._write(replace(record, pid=process.pid, started_ticks=ticks))

    def _write(self, record: Record) -> None:
        fresh = self._directory / "host.json.new"
        fresh.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
        fresh.replace(self._directory / "host.json")

    def await_login(self, address: Address) -> None:
        """Return when `deploy` can log in."""
        deadline_s = time.monotonic() + BOOT_TIMEOUT_S
        while not ssh.logs_in(self._settings, address, timeout_s=1.0):
            if not self.alive():
                raise HostsError(self._last_words("ended while it booted"))
            if time.monotonic() > deadline_s:
                raise HostsError(self._last_words(f"let nobody in within {BOOT_TIMEOUT_S:.0f} s"))

    def _last_words(self, what: str) -> str:
        console = (self._directory / "console.log").read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        return "\n  ".join([f"{self.name} {what}; its console ends:", *console])

    def power_off(self) -> None:
        """Let the host shut its services down, as long as that takes within reason."""
        record = self.record()
        if record is None or not self.alive():
            return
        first = next((pid for pid in cgroups.processes(self._groups(record)) if is_first_process(pid)), None)
        if first is None:
            return
        os.kill(first, POWER_OFF)
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while self.alive() and time.monotonic() < deadline_s:
            time.sleep(0.05)

    def stop(self) -> None:
        """End the host's processes and take its mount and network away; whatever of them is there."""
        record = self.record()
        if record is not None and record.boot_id == boot_id():
            if self.alive():
                # First the one that would start it again.
                os.kill(record.pid, signal.SIGKILL)
            cgroups.kill(self._groups(record))
            cgroups.remove(self._groups(record))
            self._write(replace(record, boot_id="", pid=0))
        network.disconnect(self._settings, self.name)
        while self._root.is_mount():
            run("umount", self._root)

    @staticmethod
    def _groups(record: Record) -> list[Path]:
        return [Path(group) for group in record.groups]

    def remove(self) -> None:
        """Stop the host and throw its disk away."""
        self.stop()
        if self._directory.exists():
            shutil.rmtree(self._directory)


def is_first_process(pid: int) -> bool:
    """Tell whether a process is the first one of its own process namespace."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    ids = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
    return len(ids) > 1 and ids[-1] == "1"


def existing(settings: Settings) -> list[str]:
    """Return the names of all hosts that have a disk."""
    return sorted(path.parent.name for path in (settings.directory / "hosts").glob("*/host.json"))
