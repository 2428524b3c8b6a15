# SPDX-License-Identifier: GPL-3.0-or-later
"""`python3 -m tests.hosts VERB`, as root: raise, list, enter and take down test hosts."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

from tests.hosts import host as hosts
from tests.hosts import image, network, ntp_server, ssh
from tests.hosts.addresses import AddressBook
from tests.hosts.errors import HostsError, MachineLacksError
from tests.hosts.host import Host, Options, Step, Wanted
from tests.hosts.programs import run, step
from tests.hosts.recipes import PLATFORMS
from tests.hosts.settings import Settings, settings_from

# What every verb but `setup` relies on; `setup` installs it.
PROGRAMS = {"systemd-nspawn": "systemd-container", "ip": "iproute2", "ssh": "openssh-client", "mount": "mount"}
FAKE_SYSCTL = "net.core.rmem_max,net.core.wmem_max"
HOST_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


@contextmanager
def locked(settings: Settings, what: str) -> Iterator[None]:
    """Let one invocation at a time at the bases, and one at the hosts; the others wait."""
    settings.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (settings.directory / f"{what}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another invocation that works on the {what}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def missing(programs: dict[str, str]) -> set[str]:
    """Return the Debian packages of those programs, and files by their full path, that this machine lacks."""
    return {package for name, package in programs.items() if not (shutil.which(name) or Path("/", name).is_file())}


def require_machine() -> None:
    """Refuse a machine that hosts cannot run on, in one line that says why."""
    if os.geteuid() != 0:
        raise MachineLacksError("test hosts need root: run this through sudo")
    if packages := missing(PROGRAMS):
        raise MachineLacksError(f"this machine lacks {', '.join(sorted(packages))}: run `python3 -m tests.hosts setup`")
    network.require_namespaces()


def setup(settings: Settings, arguments: argparse.Namespace) -> None:
    """Install what this machine lacks, and build the bases that are not up to date."""
    if os.geteuid() != 0:
        raise MachineLacksError("test hosts need root: run this through sudo")
    platforms = [PLATFORMS[name] for name in arguments.platforms or PLATFORMS]
    with locked(settings, "bases"):
        needed = dict(PROGRAMS)
        for platform in platforms:
            if not image.base_of(settings, platform).directory.is_dir():
                needed |= platform.programs
        if packages := sorted(missing(needed)):
            if shutil.which("apt-get") is None:
                raise MachineLacksError(f"this machine lacks {', '.join(packages)}, and apt-get to install them")
            with step(f"installing {', '.join(packages)}"):
                run("apt-get", "--quiet", "update")
                run("apt-get", "--quiet", "--yes", "--no-install-recommends", "install", *packages)
        require_machine()
        for platform in platforms:
            image.build(settings, platform)
            in_use = [
                Path(record.base) for name in hosts.existing(settings) if (record := Host(settings, name).record())
            ]
            image.remove_outdated(settings, platform, in_use)


def up(settings: Settings, arguments: argparse.Namespace) -> None:
    """Raise hosts, or see that they are up."""
    start_s = time.monotonic()
    require_machine()
    platform = PLATFORMS[arguments.platform]
    asked = list(dict.fromkeys(arguments.names))
    for name in asked:
        if not HOST_NAME.fullmatch(name):
            raise HostsError(f"{name!r} is no name for a host: lower-case letters, digits and hyphens")
    options = Options(udev=arguments.udev, fake_sysctl=tuple(arguments.fake_sysctl))
    hosts.make_room()

    with locked(settings, "hosts"), ThreadPoolExecutor(max_workers=len(asked)) as pool:
        base = image.require_built(settings, platform)
        network.bridge_up(settings)
        if arguments.ntp:
            ntp_server.TimeSource(settings, str(settings.network[1])).start(0.0)
        key = ssh.ensure_key(settings)
        book = AddressBook(settings)
        before = hosts.existing(settings)
        addresses = book.allot(asked, before)
        names = {name: book.address(name) for name in {*before, *asked}}
        wanted = Wanted(platform.name, str(base.directory), options, fresh=arguments.fresh)

        def raise_one(name: str) -> Step:
            return Host(settings, name).up(wanted, base, addresses[name], names, key)

        outcomes = list(pool.map(raise_one, asked))
        tell_known_hosts(settings, book)
        for name in before:
            if Host(settings, name).alive():
                Host(settings, name).learn(names)

    def await_login(name: str) -> float:
        Host(settings, name).await_login(addresses[name])
        return time.monotonic() - start_s

    # Others may raise theirs meanwhile.
    with ThreadPoolExecutor(max_workers=len(asked)) as pool:
        logins_s = list(pool.map(await_login, asked))
    for name, outcome, login_s in zip(asked, outcomes, logins_s, strict=True):
        print(f"{name} {addresses[name].ipv4} {platform.name}: {outcome.value}, login after {login_s:.1f} s")


def tell_known_hosts(settings: Settings, book: AddressBook) -> None:
    """Write down how all hosts that are up are reached, and their keys."""
    alive = [host for name in hosts.existing(settings) if (host := Host(settings, name)).root.is_mount()]
    ssh.write_known_hosts(settings, {host.name: (book.address(host.name), host.public_key()) for host in alive})
    ssh.write_config(settings, {host.name: book.address(host.name) for host in alive})


def down(settings: Settings, arguments: argparse.Namespace) -> None:
    """Take hosts down; with the last one go the time sources and the bridge."""
    require_machine()
    with locked(settings, "hosts"):
        names = hosts.existing(settings) if arguments.all else arguments.names
        if not names and not arguments.all:
            raise HostsError("name the hosts to take down, or --all of them")

        def take_down(name: str) -> None:
            if arguments.keep:
                Host(settings, name).power_off()
                Host(settings, name).stop()
            else:
                Host(settings, name).remove()

        with ThreadPoolExecutor(max_workers=len(names) or 1) as pool:
            list(pool.map(take_down, names))
        leave_network(settings)


def leave_network(settings: Settings) -> None:
    """Take the time sources and the bridge down if nothing is left on it."""
    if not network.bridge_in_use(settings):
        ntp_server.stop_all(settings)
        network.bridge_down(settings)


def show(settings: Settings, arguments: argparse.Namespace) -> None:
    """List the hosts."""
    book = AddressBook(settings)
    rows = []
    for name in hosts.existing(settings):
        host, address = Host(settings, name), book.address(name)
        record = host.record()
        rows.append(
            {
                "name": name,
                "address": str(address.ipv4),
                "address6": str(address.ipv6),
                "platform": record.platform if record else "",
                "running": host.alive(),
            }
        )
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        state = "up" if row["running"] else "down"
        print(f"{row['name']:<24} {row['address']:<16} {row['address6']:<24} {row['platform']:<12} {state}")


def enter(settings: Settings, arguments: argparse.Namespace) -> None:
    """Log in to a host as `deploy`, or run a command there."""
    require_machine()
    command = ssh.command(settings, AddressBook(settings).address(arguments.name), *arguments.command)
    os.execvp(command[0], command)  # noqa: S606 (a shell would take the command apart)


def destroy_bases(settings: Settings, _arguments: argparse.Namespace) -> None:
    """Remove every base; hosts must be down, for they stand on them."""
    require_machine()
    with locked(settings, "bases"), locked(settings, "hosts"):
        if left := hosts.existing(settings):
            raise HostsError(f"hosts stand on the bases: take {', '.join(left)} down first")
        if (settings.directory / "bases").exists():
            shutil.rmtree(settings.directory / "bases")


def ntp(settings: Settings, arguments: argparse.Namespace) -> None:
    """Serve this machine's time plus an offset on an address of the bridge."""
    require_machine()
    address = ip_address(arguments.address)
    if address not in (settings.network if address.version == 4 else settings.network6):
        raise HostsError(f"{address} is not in the hosts' network")
    source = ntp_server.TimeSource(settings, str(address))
    if not (arguments.background or arguments.stop):
        ntp_server.serve(str(address), arguments.offset_s)
    with locked(settings, "hosts"):
        if arguments.stop:
            source.stop()
        else:
            network.bridge_up(settings)
            source.start(arguments.offset_s)


def key_list(text: str) -> list[str]:
    """Parse the sysctl keys that files shall stand in for."""
    keys = text.split(",")
    for key in keys:
        if not Path("/proc/sys", key.replace(".", "/")).is_file():
            raise argparse.ArgumentTypeError(f"{key!r} is no sysctl key of this machine")
    return keys


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="python3 -m tests.hosts", description=__doc__)
    verbs = top.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser(
        "setup", help="install what is missing here and build the platforms' bases (all, unless named)"
    )
    verb.add_argument("platforms", nargs="*", choices=[*PLATFORMS, []], metavar="PLATFORM", default=[])
    verb.set_defaults(run=setup)

    verb = verbs.add_parser("up", help="raise hosts; one that is up and answers is left alone")
    verb.add_argument("names", nargs="+", metavar="NAME")
    verb.add_argument("--platform", required=True, choices=PLATFORMS)
    verb.add_argument("--fresh", action="store_true", help="throw away what the hosts have on their disks")
    verb.add_argument("--ntp", action="store_true", help="serve this machine's time on the bridge's address")
    verb.add_argument("--udev", action="store_true", help="let systemd-udevd run")
    verb.add_argument(
        "--fake-sysctl",
        nargs="?",
        type=key_list,
        const=FAKE_SYSCTL.split(","),
        default=[],
        metavar="KEY,...",
        help=f"files stand in for keys that the kernel keeps for the whole machine ({FAKE_SYSCTL})",
    )
    verb.set_defaults(run=up)

    verb = verbs.add_parser("down", help="take hosts down, and throw their disks away")
    verb.add_argument("names", nargs="*", metavar="NAME")
    verb.add_argument("--all", action="store_true")
    verb.add_argument("--keep", action="store_true", help="power off in order, and keep the disks")
    verb.set_defaults(run=down)

    verb = verbs.add_parser("list", help="list the hosts")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(run=show)

    verb = verbs.add_parser("ssh", help="log in to a host, or run a command there")
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    verb.set_defaults(run=enter)

    verb = verbs.add_parser("ntp", help="serve this machine's time plus an offset over NTP, until ended")
    verb.add_argument("address", metavar="ADDRESS")
    verb.add_argument("--offset-s", type=float, default=0.0, metavar="SECONDS")
    where = verb.add_mutually_exclusive_group()
    where.add_argument(
        "--background", action="store_true", help="return once it answers; the address is put on the bridge"
    )
    where.add_argument("--stop", action="store_true", help="end the one in the background")
    verb.set_defaults(run=ntp)

    verb = verbs.add_parser("destroy-bases", help="remove every base and its package repository")
    verb.set_defaults(run=destroy_bases)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 1 it failed, 3 this machine cannot run test hosts."""
    return run_verb(parser().parse_args(argv))


def run_verb(arguments: argparse.Namespace) -> int:
    """Run the verb that a command line chose, and return the exit status."""
    try:
        arguments.run(settings_from(os.environ), arguments)
    except HostsError as error:
        print(f"hosts: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
