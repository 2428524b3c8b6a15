# SPDX-License-Identifier: Apache-2.0
"""A day of a depot under virtual time: drivers and control are the agent's own, and nothing believes what they say."""

from __future__ import annotations

import time
from dataclasses import replace

import anyio
import pytest

from derms_agent import depot as depots
from derms_agent.model import Depot
from derms_agent.orchestrator.controller import Controller
from derms_agent.orchestrator.site import Site, site_of
from derms_agent.twin import day, virtual_time

# A limit that binds: 28 kVA of the site go to the hall, whose base load takes 10 of them in the evening.
DEPOT = """\
plugin: derms.edge.depot
depot: small
region: north
site: {limit_kva: 38, default_limit_kw: 10}
gateways: {gateway-1: {}, gateway-2: {}}
circuits:
  hall: {voltage_v: 400, rating_a: 80, base_load_a: 15, allocator: gateway-1}
  yard: {voltage_v: 400, rating_a: 40, rating_kva: 20, base_load_a: 4, allocator: gateway-2}
buses:
  hall-[1:4]: {gateway: gateway-1, transport: tcp, host: "10.0.0.[11:14]"}
  meters: {gateway: gateway-1, transport: serial, path: /dev/derms/meters, baud_rate: 19200}
  yard: {gateway: gateway-2, transport: rtu_over_tcp, host: 10.0.0.20, baud_rate: 19200}
profile_defaults:
  keba_p30: {unit_id: 255, settings: {failsafe_current: 6, failsafe_timeout: 30, failsafe_persist: kept}}
devices:
  hall-[1:4]: {bus: "hall-[1:4]", profile: keba_p30, circuit: hall, evses: {rating_a: 16}}
  yard-1:
    bus: yard
    unit_id: 1
    profile: heidelberg_energy_control
    circuit: yard
    settings: {failsafe_current: 6, failsafe_timeout: 30, standby: prevented}
    evses: {rating_a: 16}
meters:
  hall: {bus: meters, unit_id: 1, profile: sunspec_meter, measures: circuit, circuit: hall}
"""
STORED = """\
plugin: derms.edge.depot
depot: stored
site: {limit_kva: 60}
gateways: {gateway-1: {}}
circuits: {main: {voltage_v: 400, rating_a: 80, base_load_a: 10, allocator: gateway-1}}
buses:
  store: {gateway: gateway-1, transport: tcp, host: 10.0.0.11}
  meter: {gateway: gateway-1, transport: tcp, host: 10.0.0.12}
devices:
  store:
    bus: store
    unit_id: 1
    profile: sunspec_der
    circuit: main
    settings: {failsafe_power: 0, failsafe_timeout: 60, failsafe_enabled: enabled}
    storage: {rating_a: 40, capacity_kwh: 50}
meters:
  grid: {bus: meter, unit_id: 1, profile: sunspec_meter, measures: circuit, circuit: main}
"""
BEGINS_S = 18 * day.HOUR_S
SHED = day.Shed(at_s=BEGINS_S + 150, for_s=100)
ENDS_S = BEGINS_S + 300


def played(depot: Depot, seed: int = 1) -> day.Course:
    return day.play(depot, seed, shed=SHED, begins_s=BEGINS_S, ends_s=ENDS_S)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Depot:
    path = tmp_path_factory.mktemp("depot") / "small.yml"
    path.write_text(DEPOT, encoding="utf-8")
    return depots.load(path)


@pytest.fixture(scope="module")
def course(small: Depot) -> day.Course:
    return played(small)


def test_limits_hold_where_they_bind(course: day.Course) -> None:
    rows = {(row.name, row.line): row for row in course.rows}
    assert course.held
    assert all(row.held for row in course.rows)
    assert max(row.highest / row.rating for row in rows.values()) > 0.9
    assert {name for name, _ in rows} == {"hall", "yard", "site"}
    assert rows["yard", None].rating == 20_000


def test_a_shed_brings_each_gateways_tree_down_within_seconds(course: day.Course) -> None:
    assert [shed.gateway for shed in course.sheds] == ["gateway-1", "gateway-2"]
    for shed in course.sheds:
        assert shed.reached_s is not None
        assert shed.reached_s <= day.FOLLOWED_S
        assert shed.over_s == 0
        assert shed.target_w == pytest.approx(shed.before_w / 2)
        assert shed.after_w <= max(shed.target_w, shed.reachable_w) + 200
    hall = course.sheds[0]
    assert hall.reachable_w < hall.target_w < hall.before_w
    assert hall.after_w <= hall.target_w


def test_a_day_is_the_same_each_time_and_another_with_another_seed(small: Depot, course: day.Course) -> None:
    assert played(small) == course
    assert played(small, seed=2) != course


def test_energy_is_that_of_the_visits(course: day.Course) -> None:
    assert course.energy_wh == pytest.approx(sum(visit.energy_wh for visit in course.visits))
    assert all(0 < visit.energy_wh <= visit.possible_wh * 1.001 for visit in course.visits)
    assert course.proven == course.writes > 0
    assert all(BEGINS_S < visit.arrived_s < visit.left_s <= ENDS_S for visit in course.visits)


def test_a_session_is_satisfied_by_nearly_all_that_it_could_get() -> None:
    visit = day.Visit(evse="hall-1", arrived_s=0, left_s=3600, energy_wh=9100, possible_wh=10_000)
    assert visit.satisfied
    assert not replace(visit, energy_wh=8900).satisfied


def test_control_that_believes_in_more_than_there_is_found_out(small: Depot, monkeypatch: pytest.MonkeyPatch) -> None:
    def believed(depot: Depot, gateway: str, *, shed_s: float) -> Site:
        circuits = {
            name: replace(circuit, rating_a=(500.0,) * 3, rating_kva=None) for name, circuit in depot.circuits.items()
        }
        loose = replace(depot, circuits=circuits, site=replace(depot.site, limit_va=1e6))
        return site_of(loose, gateway, shed_s=shed_s)

    monkeypatch.setattr(day, "site_of", believed)
    found = played(small)
    assert not found.held
    (site,) = [row for row in found.rows if not row.held]
    assert site.name == "site"
    assert site.over_s > day.FOLLOWED_S
    assert site.highest > site.rating


def test_a_shed_that_control_does_not_hear_is_found_out(small: Depot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Controller, "put", lambda _self, _ask: None)
    found = played(small)
    assert not found.held
    assert any(shed.reached_s is None for shed in found.sheds)


def test_hours_are_told_as_they_pass(small: Depot) -> None:
    hours: list[int] = []
    day.play(small, begins_s=6.99 * day.HOUR_S, ends_s=7.0 * day.HOUR_S, hour=hours.append)
    assert hours == [7]


def test_time_passes_only_where_everybody_waits() -> None:
    async def main() -> tuple[float, float]:
        began_s = anyio.current_time()
        with anyio.move_on_after(86_400):
            await anyio.sleep_forever()
        return began_s, anyio.current_time()

    real_s = time.monotonic()
    assert virtual_time.run(main) == (0.0, 86_400.0)
    assert time.monotonic() - real_s < 10


def test_a_wait_without_an_end_is_an_error() -> None:
    async def main() -> None:
        await anyio.Event().wait()

    with pytest.raises(virtual_time.Standstill):
        virtual_time.run(main)


def test_storage_that_control_may_use_has_its_part_in_a_day() -> None:
    examined = depots.examine(STORED, "stored.yml")
    assert examined.depot is not None, examined.problems
    shed = day.Shed(at_s=90, for_s=60)
    found = day.play(examined.depot, shed=shed, begins_s=0.0, ends_s=180.0)
    assert found.held, found
    assert found.proven > 0
    assert all(35 < row.highest <= 60 for row in found.rows if row.name == "main" and row.line is not None)
    assert all(one.reached_s is not None for one in found.sheds)
