# SPDX-License-Identifier: GPL-3.0-or-later
"""What all services of a gateway take together, with 200 EVSEs that charge and whose departures are known.

The orchestrator with its planner, the grid gateway that polls a VTN every 10 s and reports to it, and the broker, by
which both publish under mutual TLS. Processor time is that of all their processes, those that have ended included;
memory is the proportional set size (proc(5), smaps_rollup): what processes share counts once.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

from agent.tests.conftest import Broker
from agent.tests.grid_gateway.conftest import Authority, free_port
from tests.bench.figures import Figure
from tests.bench.openadr import IDLE_POLL_S, Utility, registered

COUNT = 200
STEADY_S = 120.0
SETTLING_S = 20.0
STAY = timedelta(hours=3)
NEED_WH = 20_000.0
_TICKS = os.sysconf("SC_CLK_TCK")
_UTIME, _CSTIME = 11, 15  # of /proc/PID/stat, counted from the state on


def processes(first: int) -> list[int]:
    """Return a process and all that came from it and live."""
    found = [first]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text(encoding="ascii").split())
    return found


def cpu_s(first: int) -> float:
    """Return the processor time of a process and of all that came from it, in s."""
    ticks = 0
    for pid in processes(first):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += sum(map(int, fields[_UTIME:_CSTIME]))
    return ticks / _TICKS


def pss_mib(first: int) -> float:
    """Return the memory of a process and of all that came from it, in MiB."""
    kib = 0
    for pid in processes(first):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        kib += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


@contextmanager
def all_services() -> Iterator[tuple[Utility, dict[str, int]]]:
    """Raise them; give the depot, and each service's process.

    :raises SystemExit: there is no mosquitto
    """
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        print("mosquitto is not on this machine (Debian: mosquitto)")
        sys.exit(3)
    brokers: list[Broker] = []

    def brokered(directory: Path, authority: Authority) -> tuple[Mapping[str, str], Mapping[str, object]]:
        pki, credentials = authority.directory, directory / "credentials"
        for ending in ("crt", "key"):
            shutil.copy(pki / f"vtn.{ending}", pki / f"broker.{ending}")
        credentials.mkdir()
        for file, name in ((authority.path, "ca"), (pki / "ven.crt", "cert"), (pki / "ven.key", "key")):
            shutil.copy(file, credentials / name)
            shutil.copy(file, credentials / f"mqtt-{name}")
        (directory / "broker").mkdir()
        brokers.append(Broker(program, directory / "broker", pki, free_port()))
        brokers[0].start()
        return {"CREDENTIALS_DIRECTORY": str(credentials)}, {"MQTT_URL": brokers[0].url}

    try:
        with registered(IDLE_POLL_S, count=COUNT, brokered=brokered) as utility:
            running = {"orchestrator": utility.orchestrator.process, "grid gateway": utility.gateway.process}
            running["broker"] = brokers[0].process
            yield utility, {name: process.pid for name, process in running.items() if process is not None}
    finally:
        for broker in brokers:
            broker.kill()


def plan_for_all(utility: Utility) -> None:
    """Say of each vehicle when it leaves and what it needs, as a fleet's system does."""
    departure = (datetime.now(timezone.utc) + STAY).isoformat(timespec="seconds")
    with utility.orchestrator.client() as client:
        for number in range(COUNT):
            client.ask("session.put", evse=f"charger-{number:03d}", departure=departure, energy_need_wh=NEED_WH)


def in_words(parts: Mapping[str, float], form: str) -> str:
    """Return the share of each service in words."""
    return ", ".join(f"{name} {value:{form}}" for name, value in parts.items())


def steady() -> list[Figure]:
    """Measure them while 200 vehicles charge."""
    with all_services() as (utility, running):
        plan_for_all(utility)
        time.sleep(SETTLING_S)
        began_s, before = time.monotonic(), {name: cpu_s(pid) for name, pid in running.items()}
        time.sleep(STEADY_S)
        passed_s = time.monotonic() - began_s
        percent = {name: 100 * (cpu_s(pid) - before[name]) / passed_s for name, pid in running.items()}
        memory = {name: pss_mib(pid) for name, pid in running.items()}
        planners = len(processes(running["orchestrator"])) - 1
    cpu, mib = sum(percent.values()), sum(memory.values())
    words = f"{in_words(memory, '.0f')}; {planners} planner"
    return [
        Figure(
            "agent.service.steady_200.cpu",
            cpu,
            "% of a core",
            None,
            None,
            "≤ 15 %",
            cpu <= 15,
            in_words(percent, ".1f"),
        ),
        Figure("agent.service.steady_200.memory", mib, "MiB", None, None, "≤ 200 MiB", mib <= 200, words),
    ]


BENCHMARKS: dict[tuple[str, ...], Callable[[], list[Figure]]] = {
    ("agent.service.steady_200.cpu", "agent.service.steady_200.memory"): steady,
}
