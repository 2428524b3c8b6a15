# SPDX-License-Identifier: Apache-2.0
"""What batteries have been through: counted from what sessions show, reported, and kept over restarts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from agent.tests.orchestrator.conftest import DEMO

from derms_agent import settings
from derms_agent.control import cycles
from derms_agent.orchestrator import batteries, service
from derms_agent.orchestrator.batteries import MOST, Batteries, Battery, Kind
from derms_agent.orchestrator.controller import Told
from derms_agent.orchestrator.report import Alarms, Running, report
from derms_agent.orchestrator.store import CYCLES

if TYPE_CHECKING:
    from agent.tests.orchestrator.conftest import MakePlay, Play

VAN = Battery(Kind.VEHICLE, "van-03")
RUNNING = Running(cycles=1, median_ms=1.0, p99_ms=1.0, last_ms=1.0, buses={}, unix_s=1.8e9)


def shows(one: Play, percent: float) -> None:
    one.now_s += 1
    one.take("fast-1", {**one.shown("fast-1"), "soc/1": percent}, one.now_s)


def tells(one: Play, evse: str, percent: float) -> None:
    one.now_s += 1
    one.controller.tell(evse, Told(soc_percent=percent, soc_read_at_s=one.now_s))


def counted(one: Play) -> dict[Battery, float]:
    return {battery: found.equivalent_full_cycles for battery, found in one.controller.batteries.reports()}


def test_what_a_charger_shows_is_counted_for_its_vehicle_and_else_for_the_evse(charging: Play) -> None:
    one = charging
    for percent in (0.0, 20.0, 50.0, 80.0):
        shows(one, percent)
    assert counted(one) == {Battery(Kind.EVSE, "fast-1/1"): pytest.approx(0.3)}
    one.controller.tell("fast-1/1", Told(vehicle="van-03"))
    for percent in (80.0, 30.0, 80.0):
        shows(one, percent)
    assert counted(one)[VAN] == pytest.approx(0.5)
    assert counted(one)[Battery(Kind.EVSE, "fast-1/1")] == pytest.approx(0.3)


def test_what_is_told_is_counted_where_the_charger_shows_nothing(charging: Play) -> None:
    one = charging
    one.controller.tell("charger-003", Told(vehicle="van-03"))
    for percent in (20.0, 60.0):
        tells(one, "charger-003", percent)
    one.controller.tell("charger-003", Told(energy_need_wh=1000.0))
    assert counted(one) == {VAN: pytest.approx(0.2)}
    shows(one, 50.0)
    tells(one, "fast-1/1", 54.0)  # which is the same charge by another instrument
    shows(one, 50.0)
    assert counted(one)[Battery(Kind.EVSE, "fast-1/1")] == 0.0


def test_stationary_storage_is_counted_by_its_device(play: MakePlay) -> None:
    one = play()
    for number, percent in enumerate((90.0, 40.0, 90.0)):
        one.take("grid", {"soc": percent}, one.now_s + number)
    assert counted(one) == {Battery(Kind.STORAGE, "grid"): pytest.approx(0.5)}


def test_the_report_has_each_batterys_cycles(charging: Play) -> None:
    one = charging
    one.controller.tell("fast-1/1", Told(vehicle="van-03"))
    for percent in (20.0, 80.0, 50.0, 80.0):
        shows(one, percent)
    found = report(one.controller, one.cycle(), Alarms(), RUNNING, one.now_s)["batteries"]
    assert json.loads(json.dumps(found)) == [
        {
            "kind": "vehicle",
            "name": "van-03",
            "equivalent_full_cycles": 0.6,
            "deepest_percent": 60.0,
            "mean_depth_percent": 40.0,
        }
    ]


def test_a_reading_counts_once_and_none_that_is_older_than_the_last() -> None:
    found = Batteries()
    for percent, at_s in ((20.0, 1.0), (80.0, 2.0), (20.0, 2.0), (20.0, 1.0), (float("nan"), 3.0)):
        found.read(VAN, percent, at_s)
    assert [one.equivalent_full_cycles for _, one in found.reports()] == [pytest.approx(0.3)]


def test_of_too_many_batteries_those_seen_longest_ago_are_forgotten() -> None:
    found = Batteries()
    for number in range(MOST + 5):
        found.read(VAN, 50.0, number + 0.5)
        found.read(Battery(Kind.VEHICLE, f"other-{number}"), 50.0, 1.0)
    assert len(found.counted) == len(list(found.reports())) == MOST
    assert VAN in found.counted
    assert Battery(Kind.VEHICLE, "other-0") not in found.counted


def test_counts_outlive_the_process_and_the_host(tmp_path: Path) -> None:
    conf, limits = tmp_path / "agent.conf", tmp_path / "limits.conf"
    conf.write_text(f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={tmp_path}\n", encoding="utf-8")
    limits.write_text("", encoding="utf-8")

    def assembled() -> service.Service:
        return service.assemble(settings.load(conf, limits), (conf, limits))

    one = assembled()
    for number, percent in enumerate((20.0, 80.0, 50.0, 90.0, 10.0)):
        one.controller.batteries.read(VAN, percent, number + 0.5)
    anyio.run(one.save_what_moves)
    written = (tmp_path / CYCLES).stat().st_mtime_ns
    anyio.run(one.save_what_moves)
    assert (tmp_path / CYCLES).stat().st_mtime_ns == written  # nothing has moved
    heir = assembled()
    assert heir.controller.batteries.counted == one.controller.batteries.counted
    heir.controller.batteries.read(VAN, 60.0, 0.1)  # by the clock of another start of the host
    (_, found), *_ = heir.controller.batteries.reports()
    assert found == cycles.report(cycles.count(one.controller.batteries.counted[VAN], 60.0))

    (tmp_path / CYCLES).write_text('{"batteries": [{"kind": "vehicle"}]}', encoding="utf-8")
    assert assembled().controller.batteries.counted == {}
    assert (tmp_path / f"{CYCLES}.unreadable").exists()


@pytest.mark.parametrize(
    "broken",
    [
        {"kind": "boat"},
        {"reversals": [1001]},
        {"reversals": ["1"]},
        {"full": [[10, -1]]},
        {"half": [[-1, 1]]},
        {"half": [[True, 1]]},
        {"half": [[1]]},
    ],
)
def test_what_is_no_count_is_not_taken_for_one(broken: dict[str, object]) -> None:
    whole = {"kind": "evse", "name": "e", "reversals": [10, 500], "full": [[10, 1]], "half": []}
    assert batteries.from_json({"batteries": [whole]})
    with pytest.raises((ValueError, TypeError, KeyError)):
        batteries.from_json({"batteries": [{**whole, **broken}]})
