# SPDX-License-Identifier: GPL-3.0-or-later
"""How long device_settings takes for many devices and on a serial line, and what a shed notices of it.

The devices are agent_service's chargers with six more settings, which makes ten in two runs of registers: a profile
made for this, which a release of this tree's agent has beside the built-in ones. Ansible runs on that release, and the
module starts on the system's Python and asks the release's, as on a gateway. The connection is local: what a link takes
is not in these figures.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from derms_agent import depot as depots
from derms_agent import profiles
from derms_agent.depot.plain import depot_document
from derms_agent.profiles import Profile
from derms_agent.serial_line import read_s, write_s

from tests.bench.agent_service import (
    BAUD_RATE,
    UNITS,
    Chargers,
    Service,
    chargers,
    configured,
    depot_file,
    events,
    in_words,
    p99,
    release,
    settle,
)
from tests.bench.figures import Figure, median_and_spread

ROOT = Path(__file__).parents[2]
BIN = Path(sys.prefix) / "bin"
SYSTEM_PYTHON = "/usr/bin/python3"
PROFILE = "bench_charger"
DEVICES, LOOPED = 1000, 50
RUNS = 5
SERIAL_RUNS = 10
SHEDS, IN_TURN = 200, 10
SHED_PLACES = 100
DRIFTED = 7
# Holding registers by setting: four that the charger has, the rest added.
REGISTERS = {
    "failsafe_timeout": 257,
    "standby": 258,
    "remote_lock": 259,
    "lamp": 260,
    "failsafe_current": 262,
    "buzzer": 263,
    "phase_rotation": 264,
    "restart_delay": 265,
    "voltage_low": 266,
    "voltage_high": 267,
}
ADDED = {name: REGISTERS[name] for name in REGISTERS if REGISTERS[name] in {260, *range(263, 268)}}
HELD = dict.fromkeys(ADDED, 5)
SETTINGS: dict[str, Any] = {
    "failsafe_current": 6,
    "failsafe_timeout": 30,
    "standby": "prevented",
    "remote_lock": "unlocked",
    **HELD,
}
READ_HOLDING, READS, WRITE_ONE = 3, (3, 4), 6
LOOP_TASK, WHOLE_TASK = "Ask them one by one", "Ask them all"
PLAY = """\
- name: Dry run
  hosts: derms_gateways
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: {python}
    module_options: &options
      depot: "{{{{ derms_depot_document }}}}"
      gateway: "{{{{ inventory_hostname }}}}"
      agent_directory: {directory}
      socket: {directory}/socket
      state_directory: {directory}/state
  tasks:
    - name: {task}
      derms.edge.device_settings:
        <<: *options
{more}
"""


@dataclass(frozen=True)
class Gateway:
    """A gateway's files: the release in service, and what the agent would keep."""

    directory: Path
    release: Path
    port: int

    def depot(self, places: int, units: int = 1, baud_rate: int | None = None) -> str:
        """Return the depot file of chargers with ten settings."""
        return depot_file(self.port, places, units, baud_rate, profile=PROFILE, settings=SETTINGS)

    def declare(self, depot: str) -> Path:
        """Write an inventory of a depot."""
        path = self.directory / "inventory" / "depot.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(depot, encoding="utf-8")
        return path


@contextmanager
def gateway(port: int) -> Iterator[Gateway]:
    """Lay a release out as the role does, the profile with ten settings in it."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        code = release(directory, "0.1.0+bench")
        profiles = code / "derms_agent" / "profiles"
        text = (profiles / "heidelberg_energy_control.yml").read_text(encoding="utf-8")
        text = text.replace("name: heidelberg_energy_control", f"name: {PROFILE}")
        points = "".join(
            f"  {point}: {{table: holding, address: {address}, type: u16, access: read_write, setting: true}}\n"
            for point, address in ADDED.items()
        )
        (profiles / f"{PROFILE}.yml").write_text(text.replace("\npoints:\n", f"\npoints:\n{points}"), encoding="utf-8")
        venv.create(directory / "current", symlinks=True)
        (packages,) = (directory / "current" / "lib").glob("python3.*/site-packages")
        libraries = next(path for path in sys.path if path.endswith("site-packages"))
        (packages / "release.pth").write_text(f"{code}\n{libraries}\n", encoding="utf-8")
        yield Gateway(directory, code, port)


def play(place: Gateway, inventory: Path, task: str, *more: str) -> tuple[float, str]:
    """Make a dry run of one task of device_settings; return its wall time in s and what the run printed.

    :raises SystemExit: it failed, or said nothing of its time
    """
    playbook, config = place.directory / "play.yml", place.directory / "ansible.cfg"
    lines = "\n".join(more)
    playbook.write_text(
        PLAY.format(python=SYSTEM_PYTHON, directory=place.directory, task=task, more=lines), encoding="utf-8"
    )
    text = (ROOT / "ansible.cfg").read_text(encoding="utf-8")
    found = f"collections_path = {ROOT}/collections\ncallback_plugins = {ROOT}/tests/bench/callbacks\n"
    text = text.replace("collections_path = collections\n", found)
    config.write_text(text.replace("derms.edge.drift", "derms.edge.drift, task_times"), encoding="utf-8")
    python = place.directory / "current" / "bin" / "python"
    command = [str(python), str(BIN / "ansible-playbook"), "-i", str(inventory), str(playbook)]
    done = subprocess.run(
        [*command, "--check"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(config)},
        check=False,
        capture_output=True,
        text=True,
    )
    taken = re.search(rf"^task took ([\d.]+) s: {task}$", done.stdout, re.MULTILINE)
    if done.returncode or taken is None:
        print(done.stdout[-4000:], done.stderr[-2000:], file=sys.stderr)
        sys.exit("devices: the run that was to be measured failed")
    return float(taken[1]), done.stdout


def in_sync(printed: str) -> None:
    """Make sure that a run found all as declared.

    :raises SystemExit: it did not
    """
    if "No Changes Required" not in printed:
        print(printed[-4000:], file=sys.stderr)
        sys.exit("devices: the dry run that was to be measured was not in sync")


def dry_run_1000() -> list[Figure]:
    """Measure the task with no agent on the buses, and then a loop over the module on some of the devices.

    The loop's module gets a depot of those devices alone. Before, one device that is made to drift must be named.

    :raises SystemExit: it is not
    """
    holding = {REGISTERS[name]: word for name, word in HELD.items()}
    with chargers(DEVICES, holding=holding) as depot, gateway(depot.port) as place:
        (place.directory / "state").mkdir()
        whole = place.declare(place.depot(DEVICES))
        depot.ask("drift", charger=DRIFTED, address=REGISTERS["failsafe_current"], word=80)
        _, printed = play(place, whole, WHOLE_TASK)
        found = [line for line in printed.splitlines() if "8 A" in line]
        if not found or f"charger-{DRIFTED:03d}" not in printed:
            print(printed[-4000:], file=sys.stderr)
            sys.exit("devices: the dry run did not find what differs")
        depot.ask("drift", charger=DRIFTED, address=REGISTERS["failsafe_current"], word=60)
        taken_s: list[float] = []
        for _ in range(RUNS):
            one_s, printed = play(place, whole, WHOLE_TASK)
            in_sync(printed)
            taken_s.append(one_s)
        names = [f"charger-{number:03d}" for number in range(LOOPED)]
        some = place.declare(place.depot(LOOPED))
        loop = ('        only: ["{{ item }}"]', f"      loop: {json.dumps(names)}")
        looped_s, printed = play(place, some, LOOP_TASK, *loop)
        in_sync(printed)
    value, spread = median_and_spread(taken_s)
    return [
        Figure("devices.dry_run_1000", value, "s", looped_s, value / looped_s, "≤ 3 s", value <= 3, spread),
    ]


def least_line_s(units: int) -> float:
    """Return what a line takes for the fewest reads of ten settings of each unit: adjoining registers in one."""
    addresses = sorted(REGISTERS.values())
    runs = [list(run) for _, run in groupby(enumerate(addresses), lambda pair: pair[1] - pair[0])]
    return units * sum(read_s(BAUD_RATE, len(run)) for run in runs)


@contextmanager
def under_control(places: int, units: int = 1, baud_rate: int | None = None) -> Iterator[Run]:
    """Raise the real agent, its chargers at 16 A, and what asks their settings beside it."""
    holding = {REGISTERS[name]: word for name, word in HELD.items()}
    with (
        chargers(places, units, baud_rate=baud_rate, holding=holding, noted=baud_rate is not None) as depot,
        gateway(depot.port) as place,
    ):
        text = place.depot(places, units, baud_rate)
        orchestrator = configured(place.directory, text)
        try:
            orchestrator.start(place.release)
            settle(orchestrator, depot)
            inventory = place.declare(text)
            declared = depots.load(inventory, profiles_of(place))
            (place.directory / "document.json").write_text(json.dumps(depot_document(declared)), encoding="utf-8")
            yield Run(place, inventory, depot, orchestrator)
        finally:
            orchestrator.stop()


@dataclass(frozen=True)
class Run:
    """A depot under control."""

    place: Gateway
    inventory: Path
    depot: Chargers
    orchestrator: Service


@dataclass(frozen=True)
class Line:
    """What a line took from the first request of a dry run to its last answer, and by arithmetic, in s.

    `least_s`: the fewest requests that read the settings; `others_s`: what else was asked meanwhile.
    """

    taken_s: float
    least_s: float
    others_s: float


def carried(asked: Sequence[Sequence[float]], dry: DryRun) -> Line:
    """Return what a line carried while settings were read, from the devices' own record of requests."""
    meanwhile = [one for one in asked if dry.began_s <= one[0] < dry.ended_s]
    settings = set(REGISTERS.values())
    if len({(one[2], one[4]) for one in meanwhile if one[3] == READ_HOLDING and one[4] in settings}) < UNITS:
        sys.exit("devices: the line's record does not show that every unit was asked")
    line_s = sum(
        read_s(BAUD_RATE, int(one[5]))
        if one[3] in READS
        else write_s(BAUD_RATE, 1 if one[3] == WRITE_ONE else int(one[5]))
        for one in meanwhile
    )
    return Line(dry.ended_s - dry.began_s, least_line_s(UNITS), max(0.0, line_s - least_line_s(UNITS)))


def serial_12() -> list[Figure]:
    """Measure a dry run of one line's units beside the agent that controls them, from the module's start of work on.

    What the agent's polls take of the line meanwhile counts in the first figure's arithmetic and not in the second's.
    """
    with under_control(1, UNITS, BAUD_RATE) as run:
        task_s, printed = play(run.place, run.inventory, WHOLE_TASK)
        in_sync(printed)
        lines: list[Line] = []
        for _ in range(SERIAL_RUNS):
            dry = dry_run(run)
            lines.append(carried(run.depot.ask("asked", since_s=dry.began_s), dry))
    taken_ms, spread = median_and_spread([1000 * line.taken_s for line in lines])
    least_ms = 1000 * least_line_s(UNITS)
    line_ms = statistics.median(1000 * (line.least_s + line.others_s) for line in lines)
    ratio = statistics.median(line.taken_s / (line.least_s + line.others_s) for line in lines)
    spread += f"; the whole task took {task_s:.1f} s"
    share = statistics.median(line.others_s / line.taken_s for line in lines)
    name, told = "devices.serial_12", f"the agent's own requests took {100 * share:.0f} % of the line"
    goal = "≤ 1.3 × line, the agent's requests included"
    return [
        Figure(name, taken_ms, "ms", line_ms, ratio, goal, ratio <= 1.3, spread),
        Figure(f"{name}.alone", taken_ms, "ms", least_ms, taken_ms / least_ms, "none: what is left to it", True, told),
    ]


def shed_during_dry_run() -> list[Figure]:
    """Measure sheds while the whole depot's settings are read again and again, in turn with sheds without.

    What reads them is a process for each dry run, as the module is on a gateway; Ansible itself is elsewhere there.

    :raises SystemExit: a dry run failed, or none was made
    """
    last_s: dict[bool, list[float]] = {False: [], True: []}
    dry_s: list[float] = []
    with under_control(SHED_PLACES) as run:
        for turn in range(0, 2 * SHEDS, IN_TURN):
            beside = bool(turn // IN_TURN % 2)
            meanwhile: AbstractContextManager[list[DryRun]] = asking(run) if beside else nullcontext([])
            with meanwhile as asked:
                last_s[beside] += events(run.orchestrator, run.depot, IN_TURN, None).last_s
            dry_s += [one.ended_s - one.began_s for one in asked]
    without_ms, value_ms = (1000 * p99(last_s[beside]) for beside in (False, True))
    ratio = value_ms / without_ms
    rounds = f"{len(dry_s)} dry runs, median {statistics.median(dry_s):.2f} s"
    spread = f"{in_words(last_s[True])}; without: {in_words(last_s[False])}; {rounds}"
    goal = "p99 within 20 %"
    return [Figure("devices.shed_during_dry_run", value_ms, "ms", without_ms, ratio, goal, ratio <= 1.2, spread)]


# What the module does once it has started on the agent's Python, in a process of its own as the module is.
_DRY_RUN = """\
import gc, json, sys, time
from pathlib import Path
from derms_agent.device_state.__main__ import give_way
directory = Path(sys.argv[1])
paths = {"socket": directory / "socket", "state_directory": directory / "state"}
gc.disable()
give_way()
from derms_agent.device_state import run
document = json.loads((directory / "document.json").read_text(encoding="utf-8"))
began_s = time.monotonic()
found = run.settings(document, "gateway-1", check=True, deadline_s=120.0, **paths)
print(json.dumps([began_s, time.monotonic(), sorted({one["status"] for one in found})]))
"""


@dataclass(frozen=True)
class DryRun:
    """From when to when a dry run lasted, in s of the clock that all processes share."""

    began_s: float
    ended_s: float


def dry_run(run: Run) -> DryRun:
    """Make a dry run as the module does, with the processor left to the agent as it does that.

    :raises SystemExit: it failed or did not find all as declared
    """
    python = run.place.directory / "current" / "bin" / "python"
    command = [str(python), "-c", _DRY_RUN, str(run.place.directory)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"devices: the dry run failed: {done.stderr[-2000:]}")
    began_s, ended_s, statuses = json.loads(done.stdout)
    if statuses != ["ok"]:
        sys.exit(f"devices: the dry run found {statuses}, expected ok")
    return DryRun(began_s, ended_s)


@contextmanager
def asking(run: Run) -> Iterator[list[DryRun]]:
    """Make one dry run after the other meanwhile; yields those made."""
    over = threading.Event()
    made: list[DryRun] = []

    def again() -> None:
        while not over.is_set():
            made.append(dry_run(run))

    with ThreadPoolExecutor(1) as pool:
        loop = pool.submit(again)
        try:
            yield made
        finally:
            over.set()
            loop.result()


def profiles_of(place: Gateway) -> dict[str, Profile]:
    """Return the profiles that a release has."""
    path = place.release / "derms_agent" / "profiles" / f"{PROFILE}.yml"
    return {**profiles.load_all(), PROFILE: profiles.parse(path.read_text(encoding="utf-8"), path.name)}


BENCHMARKS: dict[tuple[str, ...], Callable[[], list[Figure]]] = {
    ("devices.dry_run_1000",): dry_run_1000,
    ("devices.serial_12", "devices.serial_12.alone"): serial_12,
    ("devices.shed_during_dry_run",): shed_during_dry_run,
}
