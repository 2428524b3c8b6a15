# SPDX-License-Identifier: GPL-3.0-or-later
"""Rehearses a depot file before anyone touches hardware: `make rehearse DEPOT=inventories/mine/depot.yml`, as root.

For each gateway of the depot a test host is raised on this machine, and derms-twin plays the depot's devices to it, at
their own addresses, in a network namespace that only that host reaches. Against these the whole of site.yml runs: dry,
then to apply, then dry again. Beside it a day of the depot is played under virtual time, with the agent's own control
and a shed in the evening. What would change, and whether limits held, is printed and left in build/rehearsal-NAME.md.

Nothing real is asked for: SSH is pinned to the test hosts, over whatever the inventory says, and Ansible is asked
whether that holds before it may connect; test hosts reach nothing but this machine. Where this cannot be had, nothing
starts. Whatever was made is taken away again, also on failure and on ^C.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any

from derms_agent import depot as depots
from derms_agent.model import Depot, Transport
from derms_agent.profiles import Profile, load
from derms_agent.profiles.point import Table
from derms_agent.twin import day
from derms_agent.twin.namespace import NamespaceError, plan

from tests.hosts.__main__ import HOST_NAME
from tests.hosts.errors import HostsError
from tests.hosts.settings import Settings, settings_from
from tests.small_depot import Field, played

TREE = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PREFIX = "rehearse"
FACTORY = "arrivals: none\nbase_load_share: 0.0\nsettings: factory\n"
"""What the devices are to the run: as they left the factory, so that all that is declared for them shows as drift."""
_CANNOT = 3
_SHOWN_ROWS = 60


class CannotRehearse(Exception):
    """Nothing was started, or what was is gone again; the text says why."""


# --- isolation -----------------------------------------------------------------------------------------------------


def hosts_of(depot: Depot) -> dict[str, str]:
    """Return the name of the test host that stands for each gateway."""
    return {gateway: f"{PREFIX}-{number}" for number, gateway in enumerate(depot.gateways, start=1)}


def require_isolation(depot: Depot, settings: Settings) -> None:
    """Refuse a depot whose devices have addresses in the test hosts' own network, where they would not be alone.

    Any other network is refused by the twin, if a test host reaches it already. Raises `CannotRehearse`.
    """
    try:
        networks = plan(depot).devices
    except NamespaceError as error:
        if served(depot):
            raise CannotRehearse(str(error)) from None
        return
    for network in networks:
        own: IPv4Network | IPv6Network = settings.network if isinstance(network, IPv4Network) else settings.network6
        if network.overlaps(own):
            raise CannotRehearse(
                f"found devices in {network}, expected none in the test hosts' own network {own}: "
                "take another for these by DERMS_HOSTS_NET"
            )


def pins(settings: Settings, depot: Depot, blocks: Mapping[str, Sequence[str]], work: Path) -> dict[str, Any]:
    """Return the variables that go over all others: where SSH leads, and what of this machine stands for the site's.

    `blocks`: the management blocks that each gateway is declared with.
    """
    network = [str(settings.network), str(settings.network6)]
    return {
        "rehearsal_hosts": hosts_of(depot),
        "rehearsal_management_blocks": {name: [*found, *network] for name, found in blocks.items()},
        # Old names too: where both are set, Ansible prefers them.
        **dict.fromkeys(("ansible_host", "ansible_ssh_host"), "{{ rehearsal_hosts[inventory_hostname] }}"),
        **dict.fromkeys(("ansible_user", "ansible_ssh_user"), "deploy"),
        **dict.fromkeys(("ansible_port", "ansible_ssh_port"), 22),
        "ansible_ssh_private_key_file": str(settings.private_key),
        "ansible_ssh_common_args": f"-F {settings.ssh_config}",
        "ansible_ssh_args": "-o ControlMaster=auto -o ControlPersist=60s",
        "ansible_ssh_extra_args": "",
        "ansible_ssh_executable": "ssh",
        "ansible_control_path_dir": str(work / "cp"),
        "derms_management_blocks": "{{ rehearsal_management_blocks[inventory_hostname] }}",
        "time_sync_sources": [{"address": str(settings.network[1]), "kind": "server"}],
        "fail2ban_manage_repository": False,
        "mqtt_broker_manage_repository": False,
        # What an operator provided has no business on a test host, and is not shown to the operator's VTN from there.
        "certificates_source": "ownca",
        "certificates_provided": [],
        **left_out(depot),
    }


_ROUTE = (
    "REHEARSAL {{ inventory_hostname }} {{ ansible_connection | default('ssh') }} {{ ansible_host }} "
    "{{ ansible_ssh_common_args }} END"
)


def require_pinned(inventory: Path, options: Sequence[str], hosts: Mapping[str, str], settings: Settings) -> None:
    """Refuse where Ansible, asked without connecting, would go elsewhere than to the test hosts.

    Raises `CannotRehearse`.
    """
    what = json.dumps({"msg": _ROUTE})
    answer = run(
        BIN / "ansible", "-i", inventory, *options, "derms_gateways", "-m", "ansible.builtin.debug", "-a", what
    )
    for gateway, host in hosts.items():
        wanted = f"REHEARSAL {gateway} ssh {host} -F {settings.ssh_config} END"
        if wanted not in answer:
            raise CannotRehearse(f"expected Ansible to go by ssh to {host} for {gateway}, found another way:\n{answer}")


# --- what is there -------------------------------------------------------------------------------------------------


def served(depot: Depot) -> list[str]:
    """Return the buses that the twin can play to a gateway: all but serial adapters."""
    return [bus.name for bus in depot.buses.values() if bus.transport is not Transport.SERIAL]


def serial(depot: Depot) -> list[str]:
    """Return the buses that it cannot."""
    return [bus.name for bus in depot.buses.values() if bus.transport is Transport.SERIAL]


def left_out(depot: Depot) -> dict[str, str]:
    """Return what keeps the run from the devices that nobody plays, where it has something to ask of them."""
    unplayed = {device.name for device in depot.devices.values() if device.bus in serial(depot)}
    if not any(depot.devices[name].settings for name in unplayed):
        return {}
    return {"derms_only": ",".join(name for name in depot.devices if name not in unplayed)}


def copy_inventory(depot_file: Path, to: Path) -> None:
    """Copy the one depot and the variables beside it; what the run makes, such as a CA, goes with the copy."""
    to.mkdir(parents=True)
    shutil.copy(depot_file, to)
    for name in ("group_vars", "host_vars"):
        if (depot_file.parent / name).is_dir():
            shutil.copytree(depot_file.parent / name, to / name)


def run(*command: str | Path) -> str:
    """Run a program to its end and return what it printed. Raises `CannotRehearse`."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=TREE,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotRehearse(f"{' '.join(map(str, command))}\n{done.stdout.strip()}")
    return done.stdout


def declared_blocks(inventory: Path, gateways: Sequence[str], options: Sequence[str]) -> dict[str, list[str]]:
    """Return the management blocks that each gateway is declared with."""
    found = {}
    for gateway in gateways:
        variables = json.loads(run(BIN / "ansible-inventory", "-i", inventory, "--host", gateway, *options))
        blocks = variables.get("derms_management_blocks", [])
        found[gateway] = [str(block) for block in blocks] if isinstance(blocks, list) else []
    return found


@contextmanager
def raised(hosts: Mapping[str, str], platform: str) -> Iterator[None]:
    """Raise the test hosts, and take them down whatever happens."""
    names = list(hosts.values())
    call = (sys.executable, "-B", "-m", "tests.hosts")
    run(*call, "setup", platform)
    try:
        run(*call, "up", *names, "--platform", platform, "--fresh", "--fake-sysctl", "--udev", "--ntp")
        yield
    finally:
        run(*call, "down", *names)


# --- the run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Writes:
    """How many writes reached devices: of what charging control writes on a running gateway, and of all else."""

    control: int = 0
    other: int = 0


@dataclass(frozen=True)
class Recap:
    """What a run of site.yml came to: `report` as docs/drift.md has it, and the writes that devices took in it."""

    title: str
    status: str
    report: Mapping[str, Any]
    writes: Writes


def is_control(write: Mapping[str, Any], profiles: Mapping[tuple[str, int], Profile]) -> bool:
    """Whether a write that the twin recorded is of a limit, of its switch or of a heartbeat, and of nothing else."""
    profile = profiles.get((write["bus"], write["unit"]))
    if profile is None:
        return False
    beat = profile.fallback.heartbeat if profile.fallback else None
    control = {*profile.control_points, *([beat.point] if beat else ())}
    points = profile.points_at(Table(write["table"]), write["address"], len(write["words"]))
    return bool(points) and all(point.name in control for point in points)


@dataclass(frozen=True)
class Devices:
    """The depot's devices as twins, a field for each gateway; profiles by bus and unit."""

    fields: Sequence[Field]
    profiles: Mapping[tuple[str, int], Profile]

    def next_writes(self) -> list[int]:
        """Return the number that the next write will have, in each field."""
        return [max((page["next"] for page in _pages(field, 0)), default=0) for field in self.fields]

    def written(self, since: Sequence[int]) -> Writes:
        """Count what devices were written, in each field from the write of that number on."""
        counted = Counter(
            is_control(write, self.profiles)
            for field, number in zip(self.fields, since, strict=True)
            for page in _pages(field, number)
            for write in page["writes"]
        )
        return Writes(control=counted[True], other=counted[False])


def _pages(field: Field, since: int) -> Iterator[Mapping[str, Any]]:
    """Yield a twin's answers with all writes from that number on, as many as it holds at a time."""
    while (answer := field.send({"writes": since}))["writes"]:
        yield answer
        since = answer["next"]


def converge(title: str, inventory: Path, options: Sequence[str], work: Path, devices: Devices) -> Recap:
    """Run ./deploy and return what came of it."""
    say(title)
    path = work / "drift.json"
    path.unlink(missing_ok=True)
    before = devices.next_writes()
    subprocess.run(
        [str(TREE / "deploy"), "--no-progress", "-i", str(inventory), *options],
        cwd=TREE,
        env={**os.environ, "DERMS_DRIFT_JSON": str(path)},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    report: dict[str, Any] = {"status": "failed"}
    if path.exists():
        report = json.loads(path.read_text(encoding="utf-8"))
    return Recap(title, report["status"], report, devices.written(before))


def rehearse(given: argparse.Namespace, depot: Depot, settings: Settings) -> list[Recap]:
    """Raise, wire and converge the gateways; return what each run came to. Raises `CannotRehearse`."""
    hosts = hosts_of(depot)
    require_isolation(depot, settings)
    vault = ("--vault-password-file", str(given.vault_password_file)) if given.vault_password_file else ()
    with ExitStack() as stack:
        # Not in build/: the path of an SSH control socket has 108 characters at the most.
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="derms-rehearse-")))
        inventory = work / "inventory"
        copy_inventory(given.depot_file, inventory)
        blocks = declared_blocks(inventory, list(hosts), vault)
        pinned = work / "pins.json"
        pinned.write_text(json.dumps(pins(settings, depot, blocks, work)), encoding="utf-8")
        options = ("-e", f"@{pinned}", *vault)
        say(f"See that SSH leads to {', '.join(hosts.values())} and nowhere else")
        require_pinned(inventory, options, hosts, settings)
        say(f"Raise {', '.join(hosts.values())}: {given.platform}")
        stack.enter_context(raised(hosts, given.platform))
        fields = []
        for host in hosts.values() if served(depot) else ():
            ends = ("--namespace", host, "--gateway-namespace", f"{settings.bridge}.{host}")
            fields.append(stack.enter_context(played(given.depot_file, *ends, scenario=FACTORY)))
        profiles = {(device.bus, device.unit_id): load(device.profile) for device in depot.devices.values()}
        devices = Devices(fields, profiles)
        runs = {
            "Ask what would change: site.yml --check --diff": (*options, "--dry-run"),
            "Apply it: site.yml": options,
            "Ask again: site.yml --check --diff": (*options, "--dry-run"),
        }
        return [converge(title, inventory, words, work, devices) for title, words in runs.items()]


def say(words: str) -> None:
    """Tell what is being done."""
    print(f"\n[rehearse] {words}", flush=True)


def tell_hour(hour: int) -> None:
    """Tell how far the day is."""
    print(f"[rehearse] simulated {hour:02d}:00", flush=True)


# --- the report ----------------------------------------------------------------------------------------------------


def report(depot: Depot, recaps: Sequence[Recap], course: day.Course | None) -> str:
    """Return all of it, in plain text that is Markdown."""
    parts = [f"# Rehearsal of {depot.name}", "", verdict(recaps, course), ""]
    if recaps:
        parts += [*changes(recaps), *not_rehearsed(depot), ""]
    if course is not None:
        parts += day_lines(course)
    return "\n".join(parts) + "\n"


def passed(recaps: Sequence[Recap], course: day.Course | None) -> bool:
    """Whether all went well: nothing written by a dry run, applied, in sync after that, and a day within limits.

    (In the last dry run the agent is there: it sets limits and feeds watchdogs.)
    """
    runs = not recaps or (
        recaps[0].writes == Writes()
        and recaps[1].status in {"changed", "in_sync"}
        and recaps[2].status == "in_sync"
        and recaps[2].writes.other == 0
    )
    return runs and (course is None or course.held)


def verdict(recaps: Sequence[Recap], course: day.Course | None) -> str:
    """Return what it comes to, in one line."""
    words = []
    if recaps:
        words.append(f"site.yml: {recaps[1].status}, and then {recaps[2].status}.")
    if course is not None:
        words.append("All limits held, the shed was obeyed." if course.held else "Limits or the shed did NOT hold.")
    return f"**{'Passed' if passed(recaps, course) else 'Failed'}.** {' '.join(words)}"


def changes(recaps: Sequence[Recap]) -> Iterator[str]:
    """Yield what each run found, by gateway and role; what it found in devices, line by line."""
    yield "## What would change"
    for recap in recaps:
        yield from ("", f"### {recap.title}", "")
        yield (
            f"Status: {recap.status}. Writes that reached devices: {recap.writes.other}, "
            f"and {recap.writes.control} by charging control."
        )
        for host, rows in recap.report.get("hosts", {}).items():
            by_role = Counter(str(row["role"]).rpartition(".")[2] or "other" for row in rows)
            counted = ", ".join(f"{role} {count}" for role, count in by_role.items()) or "nothing"
            yield f"- {host}: {counted}"
            devices = [row for row in rows if row.get("device")]
            if devices:
                yield from ("", "  | device | what | is | should be |", "  | --- | --- | --- | --- |")
                for row in devices[:_SHOWN_ROWS]:
                    yield f"  | {row['device']} | {row['what']} | {row['is']} | {row['should_be']} |"
                if len(devices) > _SHOWN_ROWS:
                    yield f"  | … | {len(devices) - _SHOWN_ROWS} more | | |"
                yield ""
        yield from (f"- Not verified: {why}" for why in recap.report.get("not_verified", ()))


def not_rehearsed(depot: Depot) -> Iterator[str]:
    """Yield which buses nobody played."""
    found = serial(depot)
    if found:
        yield from ("", f"Not rehearsed over the wire, for they are serial adapters: {', '.join(found)}.")


def clock(seconds: float) -> str:
    """Return a time of the day."""
    minutes = round(seconds) // 60
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def day_lines(course: day.Course) -> Iterator[str]:
    """Yield what the day came to."""
    visits, satisfied = len(course.visits), sum(visit.satisfied for visit in course.visits)
    yield from (f"## One simulated day, {clock(course.begins_s)} to {clock(course.ends_s)}", "")
    yield f"- energy delivered: {course.energy_wh / 1000:.1f} kWh in {visits} sessions"
    yield f"- sessions that got {day.SATISFIED:.0%} of what charger, battery and time allowed: {satisfied} of {visits}"
    yield f"- writes of setpoints: {course.writes}, of which {course.proven} proven"
    yield from ("", "### Shed", "")
    for shed in course.sheds:
        before, after, target, least = (
            f"{watts / 1000:.1f} kW" for watts in (shed.before_w, shed.after_w, shed.target_w, shed.reachable_w)
        )
        reached = "never there" if shed.reached_s is None else f"there after {shed.reached_s:.0f} s"
        yield f"- {shed.gateway}: {before} before, {after} at its end; asked for {target}, {least} at the least"
        yield f"  - {reached}, above it again for {shed.over_s:.0f} s"
    if not course.sheds:
        yield "- none in this part of the day"
    yield from ("", "### Limits", "", "| what | rating | highest | at | longest above it | held |")
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in course.rows:
        unit, scale = ("A", 1.0) if row.line is not None else ("kVA", 1000.0)
        name = row.name if row.line is None else f"{row.name} {row.line.value}"
        yield (
            f"| {name} | {row.rating / scale:.0f} {unit} | {row.highest / scale:.1f} {unit} | {clock(row.at_s)} "
            f"| {row.over_s:.0f} s | {'yes' if row.held else 'NO'} |"
        )


# --- the command ---------------------------------------------------------------------------------------------------


def options_from(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="tools/rehearse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("depot_file", type=Path, metavar="DEPOT", help="the depot file")
    parser.add_argument("--platform", default="ubuntu2204", choices=("ubuntu2204", "rhel9"), help="the gateways'")
    parser.add_argument("--hours", type=float, default=24.0, help="how much of the day is played, about the shed")
    parser.add_argument("--seed", type=int, default=0, help="another course of arrivals and vehicles")
    parser.add_argument("--only", choices=("day", "run"), help="the day alone takes no root; the run alone no day")
    parser.add_argument("--vault-password-file", type=Path, metavar="FILE", help="as for ./deploy")
    return parser.parse_args(arguments)


def span(hours: float) -> tuple[float, float]:
    """Return which part of the day is played, in s: so many hours about the shed. Raises `CannotRehearse`."""
    shed = day.Shed()
    least_h = (shed.for_s + 600) / day.HOUR_S
    if not least_h <= hours <= day.DAY_S / day.HOUR_S:
        raise CannotRehearse(f"--hours: found {hours:g}, expected {least_h:.1f} to 24")
    length_s = hours * day.HOUR_S
    begins_s = min(max(0.0, shed.at_s + shed.for_s / 2 - length_s / 2), day.DAY_S - length_s)
    return begins_s, begins_s + length_s


def course_of(playing: AsyncResult[day.Course]) -> day.Course:
    """Return what the day came to, once it is over. Raises `CannotRehearse`."""
    try:
        return playing.get()
    except ValueError as error:
        raise CannotRehearse(f"the day cannot be played: {error}") from error


def interrupted(number: int, frame: object) -> None:
    """Let a signal end it as ^C does, so that all is taken away."""
    del number, frame
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Rehearse, and return 0 where all held, 1 where not, 3 where it could not be tried."""
    given = options_from(arguments)
    signal.signal(signal.SIGTERM, interrupted)
    try:
        depot = depots.load(given.depot_file)
        begins_s, ends_s = span(given.hours)
        settings = settings_from(os.environ)
        if given.only != "day" and os.geteuid() != 0:
            raise CannotRehearse("test hosts and network namespaces need root: run it with sudo (or with --only day)")
        if too_long := [name for name in hosts_of(depot).values() if not HOST_NAME.fullmatch(name)]:
            raise CannotRehearse(f"found {too_long[0]}, expected a name for a test host")
        with ExitStack() as stack:
            if given.only != "day":
                stack.enter_context(only_one(settings))
            playing = None
            if given.only != "run":
                pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(1))
                known = {"begins_s": begins_s, "ends_s": ends_s, "hour": tell_hour}
                playing = pool.apply_async(day.play, (depot, given.seed), known)
            recaps = [] if given.only == "day" else rehearse(given, depot, settings)
            course = None if playing is None else course_of(playing)
    except (CannotRehearse, HostsError, depots.DepotError, OSError) as error:
        print(f"rehearse: {error}", file=sys.stderr)
        return _CANNOT
    except KeyboardInterrupt:
        return 130
    text = report(depot, recaps, course)
    path = TREE / "build" / f"rehearsal-{depot.name}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"\n{text}\n{path} has it.")
    return 0 if passed(recaps, course) else 1


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Refuse a second rehearsal beside one that runs: their test hosts have the same names."""
    settings.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (settings.directory / f"{PREFIX}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotRehearse("another rehearsal runs on this machine") from None
        yield


if __name__ == "__main__":
    sys.exit(main())
