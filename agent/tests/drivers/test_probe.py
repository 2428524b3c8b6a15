# SPDX-License-Identifier: Apache-2.0
"""`derms-agent probe`, run as a person runs it, against the twin on loopback."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from derms_agent import __version__
from derms_agent import depot as depots
from derms_agent.cli import main
from derms_agent.drivers.factory import open_buses
from derms_agent.model import Depot
from derms_agent.probe import Answer, depot_targets, probe
from derms_agent.twin import Fault, FaultKind, Twin

DEPOT = """\
plugin: derms.edge.depot
depot: small
site: {limit_kva: 100, default_limit_kw: 40}
gateways: {gateway-1: {}}
circuits:
  main: {voltage_v: 400, rating_a: 250, rating_kva: 160, allocator: gateway-1}
buses:
  line: {gateway: gateway-1, transport: rtu_over_tcp, host: 127.0.0.1, port: 1502, baud_rate: 115200,
         timeout_s: 0.3, gateway_timeout_s: 0.1}
  icu: {gateway: gateway-1, transport: tcp, host: 127.0.0.1, port: 1503, timeout_s: 0.3}
devices:
  charger-[1:3]:
    bus: line
    unit_id: 1..3
    profile: heidelberg_energy_control
    circuit: main
    settings: {failsafe_current: 6, failsafe_timeout: 30}
    evses: {rating_a: 16}
  icu: {bus: icu, unit_id: 1, profile: sunspec_der, circuit: main}
"""


@contextmanager
def rehearsed(depot: Depot, *faults: tuple[str, Fault]) -> Iterator[dict[str, tuple[str, int]]]:
    """Serve a depot's devices from another thread, and give the address of each bus."""
    ready, stop = threading.Event(), asyncio.Event()
    found: dict[str, tuple[str, int]] = {}
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with Twin(depot, seed=1) as twin:
            found.update(await twin.serve(lambda _host, _port: ("127.0.0.1", 0)))
            for on, fault in faults:
                twin.fault(on, fault)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield found
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@contextmanager
def small(tmp_path: Path, *faults: tuple[str, Fault]) -> Iterator[Path]:
    """Serve the small depot, and give a file that declares it where it really is."""
    file = tmp_path / "depot.yml"
    file.write_text(DEPOT)
    with rehearsed(depots.load(file), *faults) as found:
        text = DEPOT.replace("1502", str(found["line"][1])).replace("1503", str(found["icu"][1]))
        file.write_text(text)
        yield file


@dataclass(frozen=True)
class Ran:
    """What a verb printed, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


Agent = Callable[..., Ran]


@pytest.fixture
def agent(capsys: pytest.CaptureFixture[str]) -> Agent:
    def run(*arguments: str | Path) -> Ran:
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Ran(status, printed.out, printed.err)

    return run


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_a_depot_that_is_alive(agent: Agent, tmp_path: Path) -> None:
    with small(tmp_path) as file:
        ran = agent("probe", file)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert lines[-1] == "4 of 4 alive"
    first = cells(lines[1])
    assert first[0] == "charger-1"
    assert first[2:4] == ["1", "input 5 × 1"]
    assert first[4] == "6"
    assert first[5] == "state: a known state"
    assert first[7] == "3 of 3"
    assert re.fullmatch(r"[\d.]+ / [\d.]+ / [\d.]+", first[8])
    icu = cells(lines[4])
    assert icu[:7] == ["icu", icu[1], "1", "holding 40000 × 2", "40001", "SunS", "SunS"]
    starts = [lines[0].index("expected")] + [line.index(cells(line)[5]) for line in lines[1:5]]
    assert len(set(starts)) == 1, "the columns are not aligned"


def test_a_dead_unit_is_told_and_its_neighbours_are_alive(agent: Agent, tmp_path: Path) -> None:
    with small(tmp_path, ("charger-2", Fault(kind=FaultKind.SILENT))) as file:
        ran = agent("probe", tmp_path, "--json")
    assert ran.returncode == 1
    answers: list[dict[str, Any]] = json.loads(ran.stdout)
    assert {one["name"]: one["alive"] for one in answers} == {
        "charger-1": True,
        "charger-2": False,
        "charger-3": True,
        "icu": True,
    }
    dead = answers[1]
    assert (dead["latencies_s"], dead["tries"]) == ([], 3)
    assert "no reply" in dead["found"]
    for one in answers:
        if one["alive"]:
            low, high = min(one["latencies_s"]), max(one["latencies_s"])
            assert 0 < low <= high < 0.3
    assert answers[3]["address_base"] == "zero"
    assert file.exists()


def test_one_device_of_a_depot(agent: Agent, tmp_path: Path) -> None:
    with small(tmp_path) as file:
        ran = agent("probe", file, "--device", "charger-3", "--tries", "1")
        assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, "1 of 1 alive")
        ran = agent("probe", file, "--device", "charger-33")
    assert ran.returncode == 2
    assert "did you mean charger-3" in ran.stderr


def test_the_manuals_check_of_one_endpoint(agent: Agent, tmp_path: Path) -> None:
    with small(tmp_path) as file:
        port = str(depots.load(file).buses["icu"].port)
        plain = agent("probe", "--host", "127.0.0.1", "--port", port)
        same = ("--host", "127.0.0.1", "--port", port, "--address", "40001", "--count", "10", "--expect", "SunS")
        one = agent("probe", *same, "--address-base", "one")
        modicon = agent("probe", *same, "--address-base", "modicon")
        words = agent("probe", *same[:-1], "0x53756e53", "--address-base", "one")
    for ran in (plain, one, words):
        assert ran.returncode == 0, ran.stdout
        assert "holding 40000 × 10" in ran.stdout
    assert "40001" in plain.stdout
    # Modicon's 40001 is the protocol's register 0, where this device has nothing.
    assert modicon.returncode == 1
    assert "holding 0 × 10" in modicon.stdout
    assert "exception 2" in modicon.stdout


def test_nothing_there(agent: Agent) -> None:
    ran = agent("probe", "--host", "127.0.0.1", "--port", "1", "--tries", "2")
    assert ran.returncode == 1
    assert "0 of 2" in ran.stdout
    assert "cannot connect" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected either a depot or --host"),
        (("--host", "192.0.2.1", "--address", "40001"), "modpoll -r 40001, where a SunSpec device answers SunS"),
        (("--host", "192.0.2.1", "--address-base", "one"), "expected both or none"),
        (("--host", "192.0.2.1", "--address", "0", "--address-base", "one"), "register -1"),
        (("--host", "192.0.2.1", "--unit", "256"), "expected 0 to 255"),
        (("--host", "192.0.2.1", "--count", "126"), "expected 0 to 255, 1 to 65535, 1 to 125"),
        (("--host", "192.0.2.1", "--tries", "0"), "at least 1"),
        (("--host", "192.0.2.1", "--device", "icu"), "with a depot only"),
        (("no-such-file.yml",), "expected a depot file or an inventory directory"),
        (("--host", "192.0.2.1", "--address", "65536", "--address-base", "one", "--count", "2"), "within 0 to 65535"),
    ],
)
def test_what_cannot_be_asked_says_what_can(agent: Agent, arguments: tuple[str, ...], message: str) -> None:
    ran = agent("probe", *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert message in ran.stderr


def test_a_directory_without_a_depot(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("all: {}\n")
    ran = agent("probe", tmp_path)
    assert ran.returncode == 2
    assert "found no depot file" in ran.stderr


def test_mistakes_in_a_depot_file_are_usage(agent: Agent, tmp_path: Path) -> None:
    file = tmp_path / "depot.yml"
    file.write_text(DEPOT.replace("profile: sunspec_der", "profile: sunspec_dre"))
    ran = agent("probe", file)
    assert ran.returncode == 2
    assert "sunspec_der" in ran.stderr


def test_version() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "derms_agent.cli", "--version"], check=True, capture_output=True, text=True
    )
    assert ran.stdout == f"derms-agent {__version__}\n"


def test_the_demo_depot_is_alive() -> None:
    depot = depots.load(Path(__file__).parents[3] / "inventories/demo/depot.yml")
    with rehearsed(depot) as found:
        assert set(found) == set(depot.buses)
        here = {name: replace(bus, host=found[name][0], port=found[name][1]) for name, bus in depot.buses.items()}
        answers = asyncio.run(probed(replace(depot, buses=here)))
    assert [one.name for one in answers if not one.alive] == []


async def probed(depot: Depot) -> tuple[Answer, ...]:
    targets = depot_targets(depot, ())
    buses = {f"{depot.name} {name}": bus for name, bus in open_buses(depot).items()}
    return await probe(buses, targets, tries=2)
