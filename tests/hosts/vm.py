# SPDX-License-Identifier: GPL-3.0-or-later
"""`python3 -m tests.hosts.vm VERB`, as root: the one test host with a kernel of its own, emulated in software.

It is booted once, when it is built; from then on it goes on from the state saved there, a few seconds from a login. Its
address is part of that state, so there is one such machine at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.hosts import __main__ as hosts
from tests.hosts import image, network, ntp_server, ssh
from tests.hosts.addresses import Address, address_of
from tests.hosts.errors import HostsError, MachineLacksError
from tests.hosts.host import boot_id, started_ticks
from tests.hosts.programs import run, step
from tests.hosts.recipes import PLATFORMS, vm
from tests.hosts.recipes.platform import recipe_hash
from tests.hosts.settings import Settings

# Below the octets that are allotted to containers.
OCTET = 5
CONTAINERS_PLATFORM = PLATFORMS["ubuntu2204"]
# Emulated, on a machine that does other things beside it.
BOOT_TIMEOUT_S = 600.0
RESUME_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 30
STOP_TIMEOUT_S = 10.0
SETUP = "run `python3 -m tests.hosts.vm setup`"


@dataclass(frozen=True)
class MachineBase:
    """What the machine is raised from, as its recipe is now; it may not have been built yet."""

    directory: Path

    @property
    def kernel(self) -> Path:
        """The kernel that the emulator boots, at a reboot as well."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The initial file system that goes with the kernel."""
        return self.directory / "initrd.img"

    @property
    def disk(self) -> Path:
        """The disk as it was when the state was saved."""
        return self.directory / "disk.qcow2"

    @property
    def state(self) -> Path:
        """Memory and devices, an SSH server waiting for the first connection."""
        return self.directory / "state"

    @property
    def public_key(self) -> Path:
        """The machine's own public key."""
        return self.directory / "ssh_host_ed25519_key.pub"


@dataclass(frozen=True)
class Record:
    """What is written down of the emulator when it is started."""

    base: str
    boot_id: str
    pid: int
    started_ticks: int


def own_settings(settings: Settings) -> Settings:
    """Return the settings with a place of its own for keys: the containers' lists of hosts know nothing of it."""
    return replace(settings, directory=settings.directory / "vm")


def base_of(settings: Settings) -> MachineBase:
    """Return the machine's base as its recipe is now."""
    address = address_of(settings, OCTET)
    name = f"vm-{address.ipv4}-{recipe_hash(vm.sources(own_settings(settings)))}"
    return MachineBase(settings.directory / "bases" / name)


class Control:
    """The emulator's control socket (QEMU machine protocol): one JSON object to a line, commands answered in order."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                self._socket.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline_s:
                    self._socket.close()
                    raise HostsError(f"the emulator opened no {path.name} within {timeout_s:.0f} s") from None
                time.sleep(0.02)
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._receive()
        self.execute("qmp_capabilities")

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._socket.close()

    def _receive(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise HostsError("the emulator ended")
        message: dict[str, Any] = json.loads(line)
        return message

    def execute(self, command: str, **arguments: object) -> dict[str, Any]:
        """Carry out one command and return its answer; what the emulator tells in between is passed over."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            message = self._receive()
            if "error" in message:
                raise HostsError(f"{command}: {message['error']['desc']}")
            if "return" in message:
                answer: dict[str, Any] = message["return"]
                return answer

    def await_status(self, query: str, *, over: Sequence[str], timeout_s: float) -> str:
        """Return a query's status once it is none of those that will pass."""
        deadline_s = time.monotonic() + timeout_s
        while (status := self.execute(query).get("status", "")) in over:
            if time.monotonic() > deadline_s:
                raise HostsError(f"{query} still says {status} after {timeout_s:.0f} s")
            time.sleep(0.02)
        return str(status)

    def save(self, state: Path) -> None:
        """Stop the machine where it is and write its state to a file; it does not go on."""
        self.execute("stop")
        self.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 32})
        self.execute("migrate", uri=f"exec:cat > {state}")
        status = self.await_status("query-migrate", over=("none", "setup", "active", "device"), timeout_s=60)
        if status != "completed":
            raise HostsError(f"the machine's state could not be saved: {status}")

    def go_on(self) -> None:
        """Let the machine go on once its state has been read."""
        self.await_status("query-status", over=("inmigrate",), timeout_s=RESUME_TIMEOUT_S)
        self.execute("cont")


class Machine:
    """The virtual machine; whether it runs is seen in the process table each time it is asked."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.access = own_settings(settings)
        self.address: Address = address_of(settings, OCTET)
        self._directory = self.access.directory
        self._disk = self._directory / "disk.qcow2"
        self._control = self._directory / "control.sock"
        self._record = self._directory / "vm.json"
        self._console = self._directory / "console.log"
        self._tap = f"{settings.bridge}-vm"

    def record(self) -> Record | None:
        """Return what was written down when the emulator was last started."""
        return Record(**json.loads(self._record.read_text(encoding="utf-8"))) if self._record.exists() else None

    def alive(self) -> bool:
        """Tell whether the emulator that was started still runs."""
        record = self.record()
        return record is not None and record.boot_id == boot_id() and started_ticks(record.pid) == record.started_ticks

    def connect(self) -> None:
        """Put the machine's interface on the bridge."""
        network.bridge_up(self._settings)
        if not network.interface_exists(self._tap):
            run("ip", "tuntap", "add", self._tap, "mode", "tap")
        run("ip", "link", "set", self._tap, "master", self._settings.bridge, "up")

    def boot(self, base: MachineBase) -> None:
        """Boot the machine on the base's own disk, as its building does."""
        self._start(base, base.disk, resume=False)

    def resume(self, base: MachineBase) -> None:
        """Raise the machine on a new disk over the base's, from where the base left off."""
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.disk, self._disk)
        self._start(base, self._disk, resume=True)
        with self.control() as control:
            control.go_on()

    def control(self) -> Control:
        """Open the emulator's control socket."""
        return Control(self._control, timeout_s=RESUME_TIMEOUT_S)

    def _start(self, base: MachineBase, disk: Path, *, resume: bool) -> None:
        self._control.unlink(missing_ok=True)
        emulator = vm.command(
            kernel=base.kernel,
            initrd=base.initrd,
            disk=disk,
            tap=self._tap,
            mac=self.address.mac,
            control=self._control,
            state=base.state if resume else None,
        )
        with self._console.open("wb") as console:
            process = subprocess.Popen(
                emulator, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )
        ticks = started_ticks(process.pid)
        if ticks is None:
            raise HostsError(self._last_words("ended as soon as it was started"))
        record = Record(str(base.directory), boot_id(), process.pid, ticks)
        self._record.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")

    def await_login(self, *, timeout_s: float) -> None:
        """Return when `deploy` can log in."""
        deadline_s = time.monotonic() + timeout_s
        while not self.answers():
            if not self.alive():
                raise HostsError(self._last_words("ended"))
            if time.monotonic() > deadline_s:
                raise HostsError(self._last_words(f"let nobody in within {timeout_s:.0f} s"))
            time.sleep(0.1)

    def answers(self) -> bool:
        """Tell whether `deploy` can log in now."""
        login = self.ssh_command("-oBatchMode=yes", "true")
        return subprocess.run(login, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0

    def _last_words(self, what: str) -> str:
        console = self._console.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        return "\n  ".join([f"the virtual machine {what}; its console ends:", *console])

    def ssh_command(self, *remote: str) -> list[str]:
        """Return the ssh command that logs in as `deploy`, with the patience that an emulated machine needs."""
        program, *arguments = ssh.command(self.access, self.address, *remote)
        return [program, f"-oConnectTimeout={ANSWER_TIMEOUT_S}", *arguments]

    def tell_known_hosts(self, public_key: str) -> None:
        """Write down how the machine is reached, and its key."""
        ssh.write_known_hosts(self.access, {"vm": (self.address, public_key)})
        ssh.write_config(self.access, {"vm": self.address})

    def stop(self) -> None:
        """End the emulator and take its disk and its interface away; whatever of them is there."""
        record = self.record()
        if record is not None and self.alive():
            os.kill(record.pid, signal.SIGTERM)
            deadline_s = time.monotonic() + STOP_TIMEOUT_S
            while self.alive():
                if time.monotonic() > deadline_s:
                    os.kill(record.pid, signal.SIGKILL)
                time.sleep(0.02)
        if network.interface_exists(self._tap):
            run("ip", "link", "delete", self._tap)
        for leftover in (self._disk, self._control, self._record):
            leftover.unlink(missing_ok=True)


def require_machine() -> None:
    """Refuse a machine that the virtual one cannot run on, in one line that says why."""
    hosts.require_machine()
    if packages := hosts.missing(vm.PROGRAMS):
        raise MachineLacksError(f"this machine lacks {', '.join(sorted(packages))}: {SETUP}")


def install_programs() -> None:
    """Install what this machine lacks."""
    if not (packages := sorted(hosts.missing(vm.PROGRAMS))):
        return
    if shutil.which("apt-get") is None:
        raise MachineLacksError(f"this machine lacks {', '.join(packages)}, and apt-get to install them")
    with step(f"installing {', '.join(packages)}"):
        run("apt-get", "--quiet", "update")
        run("apt-get", "--quiet", "--yes", "--no-install-recommends", "install", *packages)


def build(settings: Settings, base: MachineBase, authorized_key: str) -> None:
    """Build the base: fill a disk, boot from it once, save the state. It appears only once it is whole."""
    unfinished = MachineBase(base.directory.with_name(base.directory.name + image.UNFINISHED))
    shutil.rmtree(unfinished.directory, ignore_errors=True)
    unfinished.directory.mkdir(parents=True)
    root = unfinished.directory / "root"
    machine = Machine(settings)
    with step("vm: making the disk"):
        containers = image.require_built(settings, CONTAINERS_PLATFORM)
        vm.fill_root(root, containers, settings, machine.address, authorized_key)
        for inside, outside in ((root / "vmlinuz", unfinished.kernel), (root / "initrd.img", unfinished.initrd)):
            shutil.copyfile(inside, outside)
        shutil.copyfile(root / "etc/ssh/ssh_host_ed25519_key.pub", unfinished.public_key)
        vm.make_disk(root, unfinished.disk)
        shutil.rmtree(root)
    machine.tell_known_hosts(unfinished.public_key.read_text(encoding="ascii"))
    with step("vm: booting it once and saving its state"):
        try:
            with hosts.locked(settings, "hosts"):
                machine.connect()
            machine.boot(unfinished)
            machine.await_login(timeout_s=BOOT_TIMEOUT_S)
            # What a first boot does in passing is over, and what it read is not carried along.
            run(*machine.ssh_command("systemctl is-system-running --wait && sync && sudo sysctl vm.drop_caches=3"))
            with machine.control() as control:
                control.save(unfinished.state)
        finally:
            machine.stop()
    unfinished.directory.rename(base.directory)


def setup(settings: Settings, _arguments: argparse.Namespace) -> None:
    """Install what this machine lacks, and build the base unless it is up to date."""
    if status := hosts.main(["setup", CONTAINERS_PLATFORM.name]):
        sys.exit(status)
    with hosts.locked(settings, "bases"), hosts.locked(settings, "vm"):
        install_programs()
        require_machine()
        key = ssh.ensure_key(own_settings(settings))
        base = base_of(settings)
        if base.directory.is_dir():
            print("vm: the base is up to date")
            return
        machine = Machine(settings)
        if machine.alive():
            raise HostsError("its base is out of date, but the virtual machine runs: take it down first")
        build(settings, base, key)
        for directory in base.directory.parent.glob("vm-*"):
            if directory != base.directory:
                shutil.rmtree(directory)


def up(settings: Settings, arguments: argparse.Namespace) -> None:
    """Raise the machine, or see that it is up."""
    start_s = time.monotonic()
    require_machine()
    with hosts.locked(settings, "vm"):
        machine = Machine(settings)
        ssh.ensure_key(machine.access)
        base = base_of(settings)
        if not base.directory.is_dir():
            raise HostsError(f"the virtual machine has no base, or its recipe changed: {SETUP}")
        if owner := os.environ.get("SUDO_UID"):
            # Whoever called sudo runs Ansible as themselves, and ssh takes no key that it cannot read.
            os.chown(machine.access.private_key, int(owner), -1)
        machine.tell_known_hosts(base.public_key.read_text(encoding="ascii"))
        outcome = "is up"
        if arguments.fresh or not machine.alive() or not machine.answers():
            machine.stop()
            with hosts.locked(settings, "hosts"):
                machine.connect()
            machine.resume(base)
            machine.await_login(timeout_s=RESUME_TIMEOUT_S)
            # The machine's time stood still since its state was saved, its hardware clock did not.
            run(*machine.ssh_command("sudo date --utc --set=@$(cat /sys/class/rtc/rtc0/since_epoch)"))
            outcome = "was raised"
        if arguments.ntp:
            with hosts.locked(settings, "hosts"):
                ntp_server.TimeSource(settings, str(settings.network[1])).start(0.0)
    print(f"vm {machine.address.ipv4}: {outcome}, login after {time.monotonic() - start_s:.1f} s")


def down(settings: Settings, _arguments: argparse.Namespace) -> None:
    """Take the machine down and throw its disk away; with the last host go the time sources and the bridge."""
    require_machine()
    with hosts.locked(settings, "vm"), hosts.locked(settings, "hosts"):
        Machine(settings).stop()
        hosts.leave_network(settings)


def show(settings: Settings, arguments: argparse.Namespace) -> None:
    """Say how the machine is reached."""
    machine = Machine(settings)
    facts = {
        "address": str(machine.address.ipv4),
        "address6": str(machine.address.ipv6),
        "private_key": str(machine.access.private_key),
        "known_hosts": str(machine.access.known_hosts),
        "running": machine.alive(),
    }
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return
    for key, fact in facts.items():
        print(f"{key:<12} {fact}")


def enter(settings: Settings, arguments: argparse.Namespace) -> None:
    """Log in to the machine as `deploy`, or run a command there."""
    sys.exit(subprocess.run(Machine(settings).ssh_command(*arguments.command), check=False).returncode)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="python3 -m tests.hosts.vm", description=__doc__)
    verbs = top.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("setup", help="install what is missing here, make the disk, boot it once, save its state")
    verb.set_defaults(run=setup)

    verb = verbs.add_parser("up", help="raise the machine from its saved state; one that answers is left alone")
    verb.add_argument("--fresh", action="store_true", help="throw away what it has on its disk")
    verb.add_argument("--ntp", action="store_true", help="serve this machine's time on the bridge's address")
    verb.set_defaults(run=up)

    verb = verbs.add_parser("down", help="take the machine down, and throw its disk away")
    verb.set_defaults(run=down)

    verb = verbs.add_parser("show", help="say how the machine is reached")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(run=show)

    verb = verbs.add_parser("ssh", help="log in to the machine, or run a command there")
    verb.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    verb.set_defaults(run=enter)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 1 it failed, 3 this machine cannot run the virtual one."""
    return hosts.run_verb(parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
