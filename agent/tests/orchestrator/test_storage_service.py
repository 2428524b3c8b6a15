# SPDX-License-Identifier: Apache-2.0
"""The orchestrator as a program with storage that it may use and an inverter that it may not, over real sockets."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent.tests.orchestrator.test_service import TWIN, Field, Orchestrator, free_ports, within

RATING_A = 40.0
RATED_W = RATING_A * 692.82
TIMEOUT_S = 8
SITE_KVA = 60
WSET_WORDS = 2
"""A set-point is two words long, what puts it in force one."""
DEPOT = """\
plugin: derms.edge.depot
depot: stored
site: {{limit_kva: {site_kva}}}
gateways: {{gateway-1: {{}}}}
circuits:
  main: {{voltage_v: 400, rating_a: 200, base_load_a: 10, allocator: gateway-1}}
buses:
{buses}
devices:
  charger-1:
    bus: charger
    unit_id: 1
    profile: heidelberg_energy_control
    circuit: main
    settings: {{failsafe_current: 6, failsafe_timeout: 15, standby: prevented}}
    evses: {{rating_a: 16}}
  store:
    bus: store
    unit_id: 1
    profile: sunspec_der
    circuit: main
    settings: {{failsafe_power: 0, failsafe_timeout: {timeout_s}, failsafe_enabled: enabled}}
    storage: {{rating_a: {rating_a}, capacity_kwh: 50}}
  icu:
    bus: icu
    unit_id: 1
    profile: sunspec_der
    circuit: main
    settings: {{failsafe_power: 0, failsafe_timeout: 60, failsafe_enabled: enabled}}
    der_settings: {{constant_power_factor: {{enabled: false}}}}
meters:
  grid: {{bus: meter, unit_id: 1, profile: sunspec_meter, measures: circuit, circuit: main}}
"""
BUSES = ("charger", "store", "icu", "meter")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    directory = tmp_path_factory.mktemp("stored")
    lines = (
        f"  {name}: {{gateway: gateway-1, transport: tcp, host: 127.0.0.1, port: {port}}}"
        for name, port in zip(BUSES, free_ports(len(BUSES)), strict=True)
    )
    depot = directory / "depot.yml"
    text = DEPOT.format(buses="\n".join(lines), site_kva=SITE_KVA, timeout_s=TIMEOUT_S, rating_a=RATING_A)
    depot.write_text(text, encoding="utf-8")
    scenario = directory / "scenario.yml"
    scenario.write_text("arrivals: none\nbase_load_share: 0.0\n", encoding="utf-8")
    control, log = directory / "twin.sock", directory / "twin.log"
    command = [*TWIN, str(depot), "--control", str(control), "--scenario", str(scenario)]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        within(20, lambda: "\nready" in log.read_text(encoding="utf-8") or process.poll() is not None)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield Field(depot, control)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)


@pytest.fixture
def orchestrator(tmp_path: Path, played: Field) -> Iterator[Orchestrator]:
    played.send({"clear": "all"})
    played.send({"charge": "store", "soc_percent": 60})
    one = Orchestrator(tmp_path, played.depot)
    (tmp_path / "limits.conf").write_text(f"SITE_LIMIT_KVA={SITE_KVA}\n", encoding="utf-8")
    yield one
    if one.process is not None:
        one.process.kill()
        one.process.wait()


def storage_w(field: Field) -> float:
    return float(field.send({"status": True})["inverters"]["store"]["power_w"])


def shown(orchestrator: Orchestrator) -> dict[str, Any]:
    (found,) = (one for one in orchestrator.status()["evses"] if one["name"] == "store")
    return dict(found)


def writes(field: Field, since: int) -> list[dict[str, Any]]:
    """Return the writes that have arrived from a number on."""
    found: list[dict[str, Any]] = []
    while True:
        part = field.send({"writes": since})
        if not part["writes"]:
            return found
        found += part["writes"]
        since = part["next"]


def give(orchestrator: Orchestrator, field: Field, watts: float) -> None:
    def honoured() -> bool:
        answer = orchestrator.ask("limit.put", name="give", target="store", high_w=-watts, rank="operator")
        return bool(answer["can_honour"])

    within(20, honoured)  # once its settings are read
    within(20, lambda: abs(storage_w(field) + watts) < 150)


def test_it_takes_what_is_left_gives_what_is_asked_and_stands_still_at_its_reserve(
    orchestrator: Orchestrator, played: Field
) -> None:
    orchestrator.start()
    within(40, lambda: abs(storage_w(played) - RATED_W) < 200)
    assert shown(orchestrator)["kind"] == "storage"
    give(orchestrator, played, 12_000.0)
    assert storage_w(played) >= -12_000
    seen = shown(orchestrator)
    assert seen["setpoint_a"] == pytest.approx(-12_000 / 692.82, abs=0.2)
    assert seen["why"] == "gives back what a limit asks for"
    explained = orchestrator.ask("explain", evse="store")
    assert any(limit["source"].startswith("root: give") or "give" in limit["source"] for limit in explained["limits"])

    # Its time to revert is 8 s: it is told again before that, and never reverts.
    for _ in range(2 * TIMEOUT_S * 5):
        assert storage_w(played) < -11_500
        time.sleep(0.2)

    played.send({"charge": "store", "soc_percent": 19})
    within(10, lambda: storage_w(played) == 0.0)
    time.sleep(3)
    assert storage_w(played) >= 0.0
    orchestrator.ask("limit.remove", name="give")
    within(40, lambda: storage_w(played) > 1_000)


def test_killed_it_falls_back_to_nothing_by_its_own_watchdog_and_a_successor_takes_it_over(
    orchestrator: Orchestrator, played: Field
) -> None:
    orchestrator.start()
    within(40, lambda: storage_w(played) > 1_000)
    give(orchestrator, played, 10_000.0)
    began_s = time.monotonic()
    orchestrator.end(signal.SIGKILL)
    within(TIMEOUT_S + 4, lambda: storage_w(played) == 0.0)
    assert time.monotonic() - began_s <= TIMEOUT_S + 2
    orchestrator.start()
    within(30, lambda: abs(storage_w(played) + 10_000) < 150)
    orchestrator.end(signal.SIGTERM)
    since = played.send({"writes": 0})["next"]
    orchestrator.start()
    within(30, lambda: abs(storage_w(played) + 10_000) < 150)
    time.sleep(3)
    # However long that took, it was never told anything else.
    told = [one["words"] for one in writes(played, since) if one["bus"] == "store" and len(one["words"]) == WSET_WORDS]
    assert told
    assert all(words == [0, 10_000] for words in told), told


def test_one_that_no_storage_is_declared_of_is_never_written_to(orchestrator: Orchestrator, played: Field) -> None:
    since = played.send({"writes": 0})["next"]
    orchestrator.start()
    within(40, lambda: storage_w(played) > 1_000)
    give(orchestrator, played, 10_000.0)
    orchestrator.ask("limit.put", name="more", high_w=-20_000.0, rank="grid")
    time.sleep(5)
    written = writes(played, since)
    assert {one["bus"] for one in written} == {"charger", "store"}
    assert all(one["executed"] for one in written)
