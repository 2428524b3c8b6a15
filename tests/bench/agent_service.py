# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent reaches in service: the real orchestrator, asked over its socket, with chargers that it writes to.

A shed's event: a tenth of the chargers, another tenth each time, fall silent 0.2 s before `limit.put`; it takes the
depot from 16 A an EVSE to 60 % of that; the event lasts until the last charger that is not silent has acknowledged its
first lower limit, and one that is not lowered ends the benchmark. Then the silent ones answer again and the limit is
removed: the depot goes back to 16 A (raises are not held back after an ask has ended) before the next event.
DERMS_BENCH_SHEDS makes it shorter.
"""

from __future__ import annotations

import compileall
import json
import math
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import derms_agent
from derms_agent.serial_line import write_s
from derms_agent.socket_client import Client

from tests import small_depot
from tests.bench import host
from tests.bench.agent_service_devices import FULL, LIMIT, address
from tests.bench.figures import Figure, median_and_spread

ROOT = Path(__file__).parents[2]
AGENT = Path(sys.executable).with_name("derms-agent")
PROFILE = "heidelberg_energy_control"
SETTINGS = {"failsafe_current": 6, "failsafe_timeout": 30, "standby": "prevented"}
WATTS = 16 * 3 * 230
SHARE = 0.6
SILENT_SHARE = 10  # one in so many
NOTICE_S = 0.2  # from falling silent to the event
EVENT_S, LONGEST_EVENT_S = 0.6, 5.0
SETTLED_S = 30.0
START_S = 60.0
EVENTS = int(os.environ.get("DERMS_BENCH_SHEDS", "500"))
LINES, UNITS, BAUD_RATE = 2, 12, 19_200
RESTARTS = 3
REBOOTS = 5
VEHICLES = 50
UPGRADES = 2
UPGRADE_S = 20.0  # as long without an upgrade, and with one a quarter in
STEADY_BEFORE_S = 10.0
LOOK_EVERY_S = 0.2
LEAST_STEP_A = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")
_STATUS_RSS = "VmRSS:"


@dataclass(slots=True)
class Chargers:
    """The chargers' process."""

    process: subprocess.Popen[str]
    port: int
    count: int

    def ask(self, what: str, **arguments: Any) -> Any:
        """Return its answer to a command."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"ask": what, **arguments}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def lowered(self, since_s: float) -> dict[int, float]:
        """Return when each charger first acknowledged a lower limit since a time."""
        found: dict[int, float] = {}
        for at_s, number, before, after in self.ask("written", since_s=since_s):
            if after < before:
                found.setdefault(number, at_s)
        return found

    def wait_until_lowered(
        self, living: set[int], since_s: float, longest_s: float = LONGEST_EVENT_S, least_s: float = EVENT_S
    ) -> dict[int, float]:
        """Return when each first acknowledged a lower limit, once all that are not silent did.

        :raises SystemExit: they do not in time
        """
        # Asking sooner would take time from what is measured.
        time.sleep(max(0.0, since_s + least_s - time.monotonic()))
        while living - set(lowered := self.lowered(since_s)):
            if time.monotonic() > since_s + longest_s:
                left = sorted(living - set(lowered))
                told = [one for one in self.ask("written", since_s=since_s - 10) if one[1] == left[0]]
                sys.exit(
                    f"agent.service: {len(left)} were not lowered in {longest_s:g} s from {since_s:.3f} s: "
                    f"{left[:9]}; the first was told {told}"
                )
            time.sleep(0.1)
        return lowered


@contextmanager
def chargers(places: int, units: int = 1, **arguments: Any) -> Iterator[Chargers]:
    """Play a depot's chargers."""
    command = [sys.executable, "-m", "tests.bench.agent_service_devices"]
    command.append(json.dumps({"places": places, "units": units, **arguments}))
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Chargers(process, int(process.stdout.readline()), places * units)
        finally:
            process.terminate()


class Service:
    """One of the agent's real services, started from files as in service, and what it takes."""

    def __init__(
        self,
        directory: Path,
        name: str = "orchestrator",
        socket: str = "socket",
        program: Sequence[str | Path] = (AGENT,),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = directory
        self._name, self._program, self._environment = name, program, dict(environment or {})
        self._socket = directory / socket
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, release: Path | None = None) -> float:
        """Start it and wait until it is ready. Return how long that took, in s. A release is where its package lies.

        :raises SystemExit: it does not come up
        """
        began_s = time.monotonic()
        path = self._directory / f"{self._name}.notify"
        path.unlink(missing_ok=True)
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        told.bind(str(path))
        ready = threading.Event()
        threading.Thread(target=_listen, args=(told, ready), daemon=True).start()
        files = ("--agent-conf", self._directory / "agent.conf", "--limits-conf", self._directory / "limits.conf")
        environment = {**os.environ, "NOTIFY_SOCKET": str(path), **self._environment}
        if release is not None:
            environment["PYTHONPATH"] = str(release)
        with (self._directory / "journal").open("ab") as journal:
            self.process = subprocess.Popen(
                [*self._program, self._name, *files],
                env=environment,
                stdout=journal,
                stderr=journal,
            )
        if not ready.wait(START_S):
            sys.exit(f"the {self._name} is not ready:\n{(self._directory / 'journal').read_text()[-2000:]}")
        return time.monotonic() - began_s

    def stop(self) -> None:
        """End it as systemd does."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
            self.process = None

    def client(self) -> Client:
        """Return a connection to its socket."""
        return Client(self._socket)

    def cpu_s(self) -> float:
        """Return its processor time, user and system, in s."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def rss_mib(self) -> float:
        """Return the memory that it holds, in MiB."""
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(_STATUS_RSS)) / 1024


def _listen(told: socket.socket, ready: threading.Event) -> None:
    """Take what the service tells systemd, as long as it does: it waits where nobody takes it."""
    while message := told.recv(4096):
        if b"READY=1" in message:
            ready.set()


def depot_file(
    port: int,
    places: int,
    units: int,
    baud_rate: int | None,
    *,
    metered: bool = False,
    profile: str = PROFILE,
    settings: Mapping[str, Any] = SETTINGS,
) -> str:
    """Return the depot file of chargers at places; lines of `units` where a baud rate is given.

    Where it is metered, what else flows may be as much as a tenth of what the chargers take, and a meter shows it.
    """
    kva = round(places * units * WATTS / 1000 * 1.2) + 1
    buses, devices = [], []
    line = "tcp" if baud_rate is None else f"rtu_over_tcp, baud_rate: {baud_rate}, gateway_timeout_s: 0.3"
    for place in range(places):
        buses.append(f"  bus-{place}: {{gateway: gateway-1, transport: {line}, host: {address(place)}, port: {port}}}")
        for unit in range(1, units + 1):
            name = f"charger-{place * units + unit - 1:03d}"
            devices.append(f"  {name}: {{bus: bus-{place}, unit_id: {unit}, profile: {profile}, circuit: main}}")
    rating_a, base_load_a = round(kva * 1000 / 690) + 10, 0
    meters = []
    if metered:
        base_load_a = round(places * units * WATTS / 10 / 690)
        buses.append(f"  meter: {{gateway: gateway-1, transport: tcp, host: {address(places)}, port: {port}}}")
        meters = [
            "meters:",
            "  grid: {bus: meter, unit_id: 1, profile: sunspec_meter, measures: circuit, circuit: main}",
        ]
    return "\n".join(
        [
            "plugin: derms.edge.depot",
            "depot: bench",
            "region: north",
            f"site: {{limit_kva: {kva}}}",
            "gateways:",
            "  gateway-1: {}",
            "circuits:",
            f"  main: {{voltage_v: 400, rating_a: {rating_a}, rating_kva: {kva}, base_load_a: {base_load_a},",
            "         allocator: gateway-1}",
            "profile_defaults:",
            f"  {profile}:",
            f"    settings: {json.dumps(dict(settings))}",
            "    evses: {rating_a: 16}",
            "buses:",
            *buses,
            "devices:",
            *devices,
            *meters,
            "",
        ]
    )


def configured(directory: Path, depot: str, environment: Mapping[str, str] | None = None, **more: object) -> Service:
    """Return the service of a depot file, with all its files in one directory; `more` goes into agent.conf."""
    (directory / "state").mkdir()
    (directory / "depot.yml").write_text(depot, encoding="utf-8")
    (directory / "limits.conf").write_text("", encoding="utf-8")
    agent = {
        "GATEWAY": "gateway-1",
        "DEPOT": directory / "depot.yml",
        "CONTROL_PEERS": "root",
        "ENGINE_LOG": directory / "engine.log",
        "STATE_DIRECTORY": directory / "state",
        "SOCKET": directory / "socket",
        **more,
    }
    (directory / "agent.conf").write_text("".join(f"{k}={v}\n" for k, v in agent.items()), encoding="utf-8")
    return Service(directory, environment=environment)


@contextmanager
def in_service(places: int, units: int = 1, baud_rate: int | None = None) -> Iterator[tuple[Service, Chargers]]:
    """Raise a depot with its chargers at 16 A, under control."""
    with tempfile.TemporaryDirectory() as name, chargers(places, units, baud_rate=baud_rate) as depot:
        orchestrator = configured(Path(name), depot_file(depot.port, places, units, baud_rate))
        try:
            orchestrator.start()
            settle(orchestrator, depot)
            yield orchestrator, depot
        finally:
            orchestrator.stop()


def settle(orchestrator: Service, depot: Chargers) -> None:
    """Wait until every EVSE is under control at 16 A.

    :raises SystemExit: it does not come to that
    """
    with orchestrator.client() as client:
        wait_for_full(client, depot, START_S)
    time.sleep(2)  # what was written is read back


def wait_for_full(client: Client, depot: Chargers, longest_s: float) -> None:
    """Wait until every charger holds 16 A, and control knows and wants no other.

    :raises SystemExit: it does not come to that
    """
    until_s = time.monotonic() + longest_s
    while True:
        others = [
            one
            for one in client.ask("status")["evses"]
            if not one["setpoint_a"] == one["wanted_a"] == FULL / 10 or one["why"] == ""
        ]
        held = depot.ask("held")
        if not others and held == [FULL] * depot.count:
            return
        if time.monotonic() > until_s:
            sys.exit(
                f"agent.service: not under control at {FULL / 10:g} A after {longest_s:g} s: "
                f"{held.count(FULL)} of {depot.count} hold it, control has {len(others)} others: {others[:1]}"
            )
        time.sleep(0.25)


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile, by rank."""
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


def in_words(values_s: Sequence[float]) -> str:
    """Return the median and the worst of some times, in ms."""
    return f"median {1000 * statistics.median(values_s):.1f}, worst {1000 * max(values_s):.1f} of {len(values_s)}"


@dataclass(slots=True)
class Events:
    """What became of events: from limit.put to the last decrease, and to its own answer, in s; CPU time each took."""

    last_s: list[float]
    answer_s: list[float]
    cpu_s: list[float]


def events(orchestrator: Service, depot: Chargers, times: int, silent_share: int | None) -> Events:
    """Shed and release, so many times.

    :raises SystemExit: a charger that was not silent was not lowered
    """
    found = Events([], [], [])
    draw = random.Random(9)  # noqa: S311 - no secret
    limit_w = SHARE * WATTS * depot.count
    with orchestrator.client() as client:
        for number in range(times):
            silent = [] if silent_share is None else list(range(number % silent_share, depot.count, silent_share))
            time.sleep(draw.random())  # whatever the polls and cycles are doing just then
            depot.ask("silence", chargers=silent)
            time.sleep(NOTICE_S if silent else 0.0)
            cpu_s = orchestrator.cpu_s()
            began_s = time.monotonic()
            client.ask("limit.put", name="bench", high_w=limit_w)
            found.answer_s.append(time.monotonic() - began_s)
            lowered = depot.wait_until_lowered(set(range(depot.count)) - set(silent), began_s)
            found.cpu_s.append(orchestrator.cpu_s() - cpu_s)
            found.last_s.append(max(lowered.values()) - began_s)
            depot.ask("silence", chargers=[])
            client.ask("limit.remove", name="bench")
            wait_for_full(client, depot, SETTLED_S)
    return found


def shed(count: int) -> list[Figure]:
    """Measure sheds of so many EVSEs on sockets of their own, a tenth of them newly silent."""
    with in_service(count) as (orchestrator, depot):
        found = events(orchestrator, depot, EVENTS, SILENT_SHARE)
    goal_ms = 100 if count <= 100 else 250
    last_ms, answer_ms = 1000 * p99(found.last_s), 1000 * p99(found.answer_s)
    load = f"load {os.getloadavg()[0]:.1f}"
    cpu = f"{1000 * statistics.median(found.cpu_s):.0f} ms CPU an event"
    return [
        Figure(
            f"agent.service.shed_{count}",
            last_ms,
            "ms",
            None,
            None,
            f"p99 ≤ {goal_ms} ms",
            last_ms <= goal_ms,
            f"{in_words(found.last_s)}; {cpu}; {load}",
        ),
        Figure(
            f"agent.service.limit_put_answer_{count}",
            answer_ms,
            "ms",
            None,
            None,
            "p99 ≤ 50 ms",
            answer_ms <= 50,
            in_words(found.answer_s),
        ),
    ]


def shed_serial() -> list[Figure]:
    """Measure sheds on lines of 12 units at 19,200 baud, against what the line takes for 12 writes."""
    with in_service(LINES, UNITS, BAUD_RATE) as (orchestrator, depot):
        found = events(orchestrator, depot, EVENTS, None)
    arithmetic_ms = 1000 * UNITS * write_s(BAUD_RATE, 1)
    last_ms = 1000 * p99(found.last_s)
    ratio = last_ms / arithmetic_ms
    spread = in_words(found.last_s)
    return [
        Figure("agent.service.shed_serial", last_ms, "ms", arithmetic_ms, ratio, "≤ 1.2 × line", ratio <= 1.2, spread)
    ]


def restart() -> list[Figure]:
    """Measure from SIGTERM until a new process is ready, and until a limit that is put then has lowered every EVSE.

    :raises SystemExit: a setpoint changed meanwhile
    """
    ready_s: list[float] = []
    lowered_s: list[float] = []
    with in_service(100) as (orchestrator, depot):
        for _ in range(RESTARTS):
            began_s = time.monotonic()
            orchestrator.stop()
            orchestrator.start()
            ready_s.append(time.monotonic() - began_s)
            changed = [one for one in depot.ask("written", since_s=began_s) if one[2] != one[3]]
            if changed:
                sys.exit(f"agent.service.restart: {len(changed)} setpoints changed: {changed[:3]}")
            with orchestrator.client() as client:
                client.ask("limit.put", name="bench", high_w=SHARE * WATTS * depot.count)
                lowered = depot.wait_until_lowered(set(range(depot.count)), began_s, SETTLED_S)
                lowered_s.append(max(lowered.values()) - began_s)
                client.ask("limit.remove", name="bench")
            settle(orchestrator, depot)
    ready, readies = median_and_spread(ready_s)
    last, lasts = median_and_spread(lowered_s)
    return [
        Figure("agent.service.restart.ready", ready, "s", None, None, "≤ 20 s", ready <= 20, readies),
        Figure("agent.service.restart.lowered", last, "s", None, None, "≤ 20 s", last <= 20, lasts),
    ]


@dataclass(slots=True)
class Stretch:
    """What became of a stretch of time: the mean power by the energy delivered, in kW, and whose limits fell."""

    power_kw: float
    lowered: dict[str, str]


def stretch(field: small_depot.Field, meanwhile: Callable[[], object]) -> Stretch:
    """Look at the chargers for a while in which something is done: what they deliver, and what they are limited to.

    A limit that falls is one that is below what it was in the beginning: told so, or in force, as a fallback is.
    """
    writes = field.send({"writes": 0})["next"]
    first = field.send({"status": True})
    lowest_a = {name: float(one["limit_a"]) for name, one in first["evses"].items()}
    found = Stretch(0.0, {})
    with ThreadPoolExecutor(1) as pool:
        done = None
        while True:
            last = field.send({"status": True})
            passed_s = last["at_s"] - first["at_s"]
            for name, one in last["evses"].items():
                if one["limit_a"] < lowest_a[name] - LEAST_STEP_A / 2:
                    found.lowered[name] = f"{name}: {lowest_a[name]:g} to {one['limit_a']:g} A after {passed_s:.1f} s"
            if done is None and passed_s >= UPGRADE_S / 4:
                done = pool.submit(meanwhile)
            if passed_s >= UPGRADE_S and done is not None and done.done():
                done.result()
                break
            time.sleep(LOOK_EVERY_S)
    for write in field.send({"writes": writes})["writes"]:
        name, told_a = f"charger-{int(write['bus'].removeprefix('bus-')):03d}", write["words"][0] / 10
        if write["address"] == LIMIT and told_a < lowest_a[name] - LEAST_STEP_A / 2:
            found.lowered[name] = f"{name}: told {told_a:g} A at {lowest_a[name]:g} A"
    energy_wh = [sum(one["energy_wh"] for one in looked["evses"].values()) for looked in (first, last)]
    found.power_kw = (energy_wh[1] - energy_wh[0]) * 3.6 / (last["at_s"] - first["at_s"])
    return found


def release(directory: Path, version: str) -> Path:
    """Return where a release of this tree's agent lies, compiled as the role's are, that goes by another version."""
    package = directory / version / "derms_agent"
    shutil.copytree(ROOT / "agent" / "src" / "derms_agent", package, ignore=shutil.ignore_patterns("__pycache__"))
    first = package / "__init__.py"
    text = first.read_text(encoding="utf-8")
    first.write_text(text.replace(f'"{derms_agent.__version__}"', f'"{version}"'), encoding="utf-8")
    compileall.compile_dir(package, quiet=1)
    return package.parent


def upgrade() -> list[Figure]:
    """Measure what 50 vehicles are charged while the next version takes over, against as long without, in turn.

    They share 60 % of what all could take, and every fifth takes less than its share, which the others have: whoever
    did not know that would lower them. The unit is restarted as the role does it: SIGTERM, then the other version.

    :raises SystemExit: they do not come to charge, or another version answers than was started
    """
    power_kw: dict[bool, list[float]] = {False: [], True: []}
    lowered: dict[bool, dict[str, str]] = {False: {}, True: {}}
    ready_s: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        orchestrator = configured(directory, depot_file(port, VEHICLES, 1, None, metered=True))
        releases = [(version, release(directory, version)) for version in ("0.1.0+one", "0.1.0+next")]

        def take_over(turn: int) -> None:
            version, place = releases[turn % 2]
            began_s = time.monotonic()
            orchestrator.stop()
            orchestrator.start(place)
            ready_s.append(time.monotonic() - began_s)
            with orchestrator.client() as client:
                if (answering := client.ask("version")["version"]) != version:
                    sys.exit(f"agent.service.upgrade: found version {answering}, expected {version}")

        with small_depot.played(directory / "depot.yml") as field:
            try:
                take_over(0)
                ready_s.clear()
                charge(orchestrator, field)
                for turn in range(UPGRADES):
                    for upgrading, meanwhile in ((False, tuple), (True, partial(take_over, turn + 1))):
                        found = stretch(field, meanwhile)
                        power_kw[upgrading].append(found.power_kw)
                        lowered[upgrading] |= found.lowered
            finally:
                orchestrator.stop()
    without_kw, kw = statistics.median(power_kw[False]), statistics.median(power_kw[True])
    ratio = kw / without_kw
    worst = min(a / b for a, b in zip(power_kw[True], power_kw[False], strict=True))
    words = f"worst {100 * worst:.2f} %; ready {median_and_spread(ready_s)[1]}"
    fell = "; ".join([*lowered[True].values()][:3])
    return [
        Figure("agent.service.upgrade.power", kw, "kW", without_kw, ratio, "≥ 0.995 ×", worst >= 0.995, words),
        Figure("agent.service.upgrade.lowered", len(lowered[True]), "EVSEs", None, None, "0", not lowered[True], fell),
    ]


def charge(orchestrator: Service, field: small_depot.Field) -> None:
    """Plug vehicles in, let them share less than they want, and wait until nothing moves any more.

    :raises SystemExit: it does not come to that
    """
    for number in range(VEHICLES):
        vehicle = {"soc_percent": 20, "capacity_kwh": 75, "power_kw": 5 if number % 5 == 0 else 11, "phases": 3}
        field.send({"plug_in": f"charger-{number:03d}", **vehicle, "lag_s": 1 + number % 7})

    def limits_a() -> dict[str, float]:
        evses = field.send({"status": True})["evses"]
        return {name: one["limit_a"] for name, one in evses.items() if one["current_a"] > 0}

    until_s = time.monotonic() + 2 * START_S
    limited_s = since_s = math.inf
    before: dict[str, float] = {}
    with orchestrator.client() as client:
        while time.monotonic() < since_s + STEADY_BEFORE_S:
            now = limits_a()
            if len(now) == VEHICLES and limited_s == math.inf:
                client.ask("limit.put", name="bench", high_w=SHARE * WATTS * VEHICLES)
                limited_s = time.monotonic()
            if now != before or time.monotonic() < limited_s + SETTLED_S:
                since_s, before = time.monotonic(), now
            if time.monotonic() > until_s:
                sys.exit(f"agent.service.upgrade: {len(now)} charge, and not steadily: {now}")
            time.sleep(0.5)


def reboot() -> list[Figure]:
    """Measure from when a gateway is started, its network there, until its charger acknowledges a limit.

    It was down for so long that the charger fell back. The whole site is converged on it: whatever else boots, boots.

    :raises TimeoutError: the charger does not fall back, or is not written to
    """
    name, options = "bench-reboot", ("--ntp", "--fake-sysctl")
    controlled_s: list[float] = []
    full_s: list[float] = []
    with host.raised([name], *options) as beside, ThreadPoolExecutor(1) as pool:
        inventory = beside.parent / "small"
        small_depot.declare(inventory, [name], host.ssh_config())
        with small_depot.charging(inventory, name) as charger:
            host.play(inventory)
            for _ in range(REBOOTS):
                small_depot.within(START_S, lambda: charger.drawn_a > 0.9 * small_depot.FULL_A)
                host.hosts("down", name, "--keep")
                small_depot.within(START_S, lambda: charger.drawn_a < small_depot.FALLBACK_A + 0.5)
                _, since = charger.limits_since(0)
                began_s = time.monotonic()
                raising = pool.submit(host.hosts, "up", name, "--platform", "ubuntu2204", *options)
                small_depot.within(START_S, lambda since=since: bool(charger.limits_since(since)[0]), 0.05)  # type: ignore[misc]
                controlled_s.append(time.monotonic() - began_s)
                small_depot.within(START_S, lambda: charger.drawn_a > 0.9 * small_depot.FULL_A, 0.1)
                full_s.append(time.monotonic() - began_s)
                raising.result(START_S)
    value, spread = median_and_spread(controlled_s)
    spread = f"{spread}; full current again after {median_and_spread(full_s)[0]:.1f}"
    return [Figure("agent.service.reboot", value, "s", None, None, "≤ 20 s", value <= 20, spread)]


BENCHMARKS: dict[tuple[str, ...], Callable[[], list[Figure]]] = {
    ("agent.service.shed_100", "agent.service.limit_put_answer_100"): lambda: shed(100),
    ("agent.service.shed_500", "agent.service.limit_put_answer_500"): lambda: shed(500),
    ("agent.service.shed_serial",): shed_serial,
    ("agent.service.restart.ready", "agent.service.restart.lowered"): restart,
    ("agent.service.upgrade.power", "agent.service.upgrade.lowered"): upgrade,
    ("agent.service.reboot",): reboot,
}
