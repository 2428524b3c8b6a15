# SPDX-License-Identifier: Apache-2.0
"""Stationary storage beside chargers, second by second: it obeys, is drained no deeper, and gives no headroom."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
from agent.tests.orchestrator.conftest import CYCLE_AT_S, PERIOD_S, PROVEN_S, Play, new_controller
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent import depot as depots
from derms_agent import status
from derms_agent.control import demand, droop, guard
from derms_agent.control import ledger as book
from derms_agent.control.cycle import State
from derms_agent.control.guard import Purpose, Write
from derms_agent.model import DeviceKind, Evse, Proof, ProofKind, Rank, Value, Vehicle
from derms_agent.orchestrator import handover
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.batteries import Battery, Kind
from derms_agent.orchestrator.controller import Controller, Told
from derms_agent.orchestrator.report import FREE_S, Alarms, Running, explanation, report, troubles
from derms_agent.orchestrator.site import Site, armed, site_of
from derms_agent.profiles.profile import Refresh

DEPOT = """\
plugin: derms.edge.depot
depot: stored
site: {limit_kva: 100, soc_reserve_percent: 20}
gateways: {gateway-1: {}}
circuits:
  main: {voltage_v: 400, rating_a: 200, base_load_a: 30, allocator: gateway-1}
buses:
  bus-1: {gateway: gateway-1, transport: tcp, host: 192.0.2.1}
  bus-2: {gateway: gateway-1, transport: tcp, host: 192.0.2.2}
  store: {gateway: gateway-1, transport: tcp, host: 192.0.2.3}
  meter: {gateway: gateway-1, transport: tcp, host: 192.0.2.4}
devices:
  charger-[1:2]:
    bus: "bus-[1:2]"
    unit_id: 1
    profile: heidelberg_energy_control
    circuit: main
    settings: {failsafe_current: 6, failsafe_timeout: 15, standby: prevented}
    evses: {rating_a: 16}
  store:
    bus: store
    unit_id: 1
    profile: sunspec_der
    circuit: main
    settings: {failsafe_power: 0, failsafe_timeout: 60, failsafe_enabled: enabled}
    storage: {rating_a: 50, capacity_kwh: 100}
meters:
  grid: {bus: meter, unit_id: 1, profile: sunspec_meter, measures: circuit, circuit: main}
"""
EVENTS = ("ask", "forget", "soc", "base", "silent", "well", "free", "vehicles", "leave", "frequency")
RUNNING = Running(cycles=1, median_ms=1.0, p99_ms=1.0, last_ms=1.0, buses={}, unix_s=1.8e9)
SETTLED_S = 30
SITE_W = 100_000.0
RATED_W = 50 * 692.82


@dataclass
class Stored(Play):
    """The depot of this file. `told_w` is what the storage's point holds, `ends` what it does by itself otherwise."""

    soc_percent: float | None = 60.0
    setpoint_w: float = 0.0
    enabled: str = "disabled"
    mode: str = "w_max_pct"
    obeys: bool = True
    measured: bool = True
    takes: bool = True
    shows_w: float | None = None
    held: dict[str, Value] = field(default_factory=dict)

    def drawn_a(self, evse: Evse) -> float:
        if evse.name == "store":
            return self.storage_w() / self.controller.watts_per_a(evse.name)
        return super().drawn_a(evse)

    def storage_w(self) -> float:
        if self.shows_w is not None:
            return self.shows_w
        return self.setpoint_w if (self.enabled, self.mode) == ("enabled", "watts") and self.obeys else 0.0

    def shown(self, device_name: str) -> dict[str, Value]:
        if device_name != "store":
            return super().shown(device_name)
        found: dict[str, Value] = {**self.site.devices["store"].settings, **self.held}
        found |= {"state": "running", "active_power": self.storage_w(), "power_setpoint": self.setpoint_w}
        found |= {"power_setpoint_enabled": self.enabled, "power_setpoint_mode": self.mode}
        found |= {} if self.soc_percent is None else {"soc": self.soc_percent}
        return {name: value for name, value in found.items() if self.measured or name != "active_power"}

    def take_write(self, write: Write, at_s: float) -> None:
        evse = self.site.evses[self.site.network.place[write.evse]]
        if evse.name != "store" or evse.device in self.silent | self.deaf:
            super().take_write(write, at_s)
            return
        watts = write.amount.active_a * self.controller.watts_per_a(evse.name)
        if self.takes:
            self.setpoint_w, self.enabled, self.mode = watts, "enabled", "watts"
        self.writes.append((at_s, write.evse, write.amount.active_a))
        proof = Proof(evse=write.evse, kind=ProofKind.ACKNOWLEDGED, asked=watts, in_force=watts)
        self.controller.proved(write.evse, write.id, proof, at_s + PROVEN_S)

    def ask(self, high_kw: float, low_kw: float = -1e6, *, target: str = "store", rank: Rank = Rank.GRID) -> None:
        ask = Ask(id="asked", source="asked", rank=rank, target=target, low_w=1000 * low_kw, high_w=1000 * high_kw)
        self.controller.put(ask)

    def store_writes_w(self) -> list[float]:
        return [amperes * self.controller.watts_per_a("store") for _, name, amperes in self.writes if name == "store"]

    def seen(self) -> dict[str, Any]:
        outcome = self.cycle()
        found = report(self.controller, outcome, Alarms(), RUNNING, self.now_s + CYCLE_AT_S)
        return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def stored_site(**changes: str) -> Site:
    text = DEPOT
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    examined = depots.examine(text, "depot.yml")
    assert [str(one) for one in examined.problems] == []
    assert examined.depot is not None
    return site_of(examined.depot, "gateway-1", shed_s=2.0)


SITE = stored_site()


def begun(site: Site = SITE, soc_percent: float | None = 60.0, **policy: Any) -> Stored:
    one = Stored(new_controller(site, **policy), soc_percent=soc_percent)
    one.step(SETTLED_S)
    return one


def test_a_station_of_the_ledger_is_made_of_storage_with_its_watchdog_and_both_directions() -> None:
    station = SITE.stations["store"]
    assert (station.rating_a, station.lowest_a) == (50.0, -50.0)
    assert station.fallback == book.NOTHING
    assert station.after_boot == book.Span(-50.0, 50.0)
    assert (station.watchdog_s, station.refresh_s, station.refreshed_by) == (60.0, 15.0, Refresh.WRITE)
    device, known = (
        SITE.devices["store"],
        {"failsafe_power": 0.0, "failsafe_timeout": 60, "failsafe_enabled": "enabled"},
    )
    assert armed(SITE, device, known, 7.0) == (book.Armed("store", 60.0, book.NOTHING, 7.0),)
    everything = book.Span(-50.0, 50.0)
    for change in ({"failsafe_timeout": 0}, {"failsafe_enabled": "disabled"}, {"failsafe_power": -40_000.0}):
        (found,) = armed(SITE, device, {**known, **change}, 7.0)
        assert found.fallback == everything, change


def test_it_charges_from_what_vehicles_leave() -> None:
    one = begun()
    assert one.storage_w() == pytest.approx(RATED_W, abs=100)
    one.vehicles()
    one.step(60)
    assert one.drawn_w() == pytest.approx(RATED_W + 2 * 16 * 692.82, abs=200)


def test_vehicles_have_before_it_what_the_site_leaves() -> None:
    one = begun(limit_va=50_000.0)  # 20 A of base load are 13.9 kW of it
    one.vehicles()
    one.step(60)
    assert all(one.limit_a[f"charger-{number}"] == pytest.approx(16.0) for number in (1, 2))
    assert 0 < one.storage_w() < 50_000 - 13_856 - 2 * 16 * 692.82 + 100


def test_it_gives_what_the_grid_or_the_operator_asks_and_no_more_than_it_may() -> None:
    one = begun()
    one.ask(-10.0)
    one.step(SETTLED_S)
    assert one.storage_w() == pytest.approx(-10_000, abs=100)
    assert one.storage_w() >= -10_000
    one.ask(-90.0, rank=Rank.OPERATOR)
    one.step(SETTLED_S)
    assert one.storage_w() == pytest.approx(-RATED_W, abs=100)
    one.controller.forget("asked")
    one.step(5)
    assert one.storage_w() >= 0


def test_what_turns_round_goes_to_nothing_first_which_waits_for_no_disk() -> None:
    """A raise leaves only once a successor would know of it; where the disk is full, a charge would not end else."""
    one = begun()
    assert one.storage_w() > 10_000
    one.ask(-10.0)
    writes = [write for _ in range(5) for write in one.step().writes if write.evse == "store"]
    assert [(write.purpose, write.amount.active_a) for write in writes[:1]] == [(Purpose.LOWER, 0.0)]
    assert [write.purpose for write in writes if write.amount.active_a < 0] == [Purpose.RAISE]
    one.controller.forget("asked")
    writes = [write for _ in range(5) for write in one.step().writes if write.evse == "store"]
    assert [(write.purpose, write.amount.active_a) for write in writes[:1]] == [(Purpose.LOWER, 0.0)]


@pytest.mark.parametrize(("high_kw", "low_kw"), [(-10.0, -1e6), (10.0, 10.0)])
def test_what_the_ledger_counts_of_it_is_shown_with_its_sign(high_kw: float, low_kw: float) -> None:
    one = begun()
    one.ask(high_kw, low_kw)
    one.step(SETTLED_S)
    found = one.seen()
    shown = {evse["name"]: evse for evse in found["evses"]}
    assert shown["store"]["counted_a"] == pytest.approx(high_kw * 1000 / 692.82, abs=0.2)
    assert shown["charger-1"]["counted_a"] >= 0
    (row,) = (line for line in status.screen(found) if line.startswith("store "))
    assert f"{shown['store']['counted_a']:.1f} A" in row


def test_what_a_site_is_to_feed_in_is_asked_of_storage_with_the_base_load_on_top() -> None:
    one = begun()
    one.ask(-5.0, target="site")
    one.step(SETTLED_S)
    assert one.storage_w() == pytest.approx(-5_000 - 3 * 20 * 230.94, abs=200)
    honour = one.controller.honour(Ask(id="x", source="x", rank=Rank.GRID, high_w=-5_000.0), one.now_s)
    assert honour.can, honour
    beyond = one.controller.honour(Ask(id="x", source="x", rank=Rank.GRID, high_w=-40_000.0), one.now_s)
    assert not beyond.can
    assert "given back" in beyond.why


def test_discharge_makes_no_headroom_for_vehicles() -> None:
    one = begun(limit_va=30_000.0)
    one.vehicles()
    one.step(60)
    before_w = sum(one.limit_a[f"charger-{number}"] for number in (1, 2)) * 692.82
    one.ask(-20.0)
    one.step(60)
    assert one.storage_w() == pytest.approx(-20_000, abs=100)
    assert sum(one.limit_a[f"charger-{number}"] for number in (1, 2)) * 692.82 <= before_w + 1
    assert not one.controller.stays_over


@pytest.mark.parametrize(("soc_percent", "reserve_percent"), [(None, 20.0), (20.0, 20.0), (12.0, 20.0), (35.0, 40.0)])
def test_nothing_is_given_at_or_below_the_reserve_nor_where_the_charge_is_not_known(
    soc_percent: float | None, reserve_percent: float
) -> None:
    one = begun(soc_percent=soc_percent, soc_reserve_percent=reserve_percent)
    one.ask(-10.0)
    one.step(SETTLED_S)
    assert min(one.store_writes_w()) >= 0
    (found,) = (one for one in one.seen()["evses"] if one["name"] == "store")
    assert found["setpoint_a"] == 0


@pytest.mark.parametrize("target", ["store", "site"])
@pytest.mark.parametrize(
    ("soc_percent", "state"), [(60.0, "shedding"), (20.0, "resource_constraints"), (None, "resource_constraints")]
)
def test_a_depot_whose_storage_cannot_give_what_is_asked_without_harm_says_so(
    soc_percent: float | None, state: str, target: str
) -> None:
    one = begun(soc_percent=soc_percent)
    one.ask(-10.0, target=target)
    one.step(SETTLED_S)
    found = one.seen()
    assert found["state"] == state
    assert found["reason"].startswith("asked" if state == "shedding" else "the fleet can give 0.0 kW of ")
    one.controller.forget("asked")
    one.step()
    assert one.seen()["state"] != "resource_constraints"


def test_nothing_is_taken_where_it_is_full_or_its_charge_is_not_known() -> None:
    for soc_percent in (None, 100.0):
        assert max(begun(soc_percent=soc_percent).store_writes_w()) == 0.0


def test_a_discharge_ends_when_the_charge_comes_to_the_reserve_and_fades_before() -> None:
    one = begun(soc_percent=21.0)
    one.ask(-30.0)
    given: list[float] = []
    for _ in range(400):
        one.step()
        given.append(-one.storage_w())
        one.soc_percent = (one.soc_percent or 0.0) + one.storage_w() / 3600 / 1000
    assert one.soc_percent is not None
    assert one.soc_percent > 20.0
    assert max(given) > 15_000
    assert given[-1] < 2_000


def test_a_charge_that_is_too_old_ends_a_discharge() -> None:
    one = begun()
    one.ask(-10.0)
    one.step(SETTLED_S)
    assert one.storage_w() < -9_000
    one.soc_percent = None
    one.step(70)
    assert one.storage_w() == 0.0


@pytest.mark.parametrize("asked_kw", [-10.0, 30.0])
def test_nothing_flows_either_way_where_it_is_too_hot(asked_kw: float) -> None:
    one = begun()
    one.ask(asked_kw)
    one.held = {"temperature": 40.0}
    one.step(SETTLED_S)
    assert abs(one.storage_w()) > 9_000
    one.held = {"temperature": 71.0}
    one.step(5)
    assert one.storage_w() == 0.0


def test_one_that_shows_that_it_gives_back_more_than_it_acknowledged_is_not_believed() -> None:
    one = begun()
    one.ask(-10.0)
    one.step(SETTLED_S)
    one.takes = False
    one.ask(-5.0)
    one.step(5)
    assert "store" in one.controller._contradicted
    entry = one.controller.state.ledger.entries["store"]
    assert entry.span.low * one.controller.watts_per_a("store") <= -10_000
    one.takes = True
    one.step(5)
    assert one.storage_w() == pytest.approx(-5_000, abs=100)
    assert "store" not in one.controller._contradicted


def test_one_that_cannot_be_relied_on_ends_its_discharge_at_the_reserve_as_well() -> None:
    one = begun()
    one.ask(-10.0)
    one.step(SETTLED_S)
    one.measured = False
    one.step(10)
    assert "store" in one.controller.outcome.doubted  # type: ignore[union-attr]
    assert one.storage_w() < -9_000
    one.soc_percent = 19.0
    one.step(5)
    assert one.storage_w() == 0.0


def test_one_whose_settings_were_read_before_the_first_cycle_is_known_to_be_armed() -> None:
    one = Stored(new_controller(SITE), enabled="enabled", mode="watts")
    for _ in range(2):
        one.read()
        one.now_s += PERIOD_S
    entry = one.cycle().state.ledger.entries["store"]
    assert (entry.watchdog_s, entry.fallback) == (60.0, book.NOTHING)


@pytest.mark.parametrize(
    "held", [{"failsafe_timeout": 0}, {"failsafe_enabled": "disabled"}, {"failsafe_power": -5_000.0}]
)
def test_nothing_is_given_where_no_watchdog_would_end_it(held: dict[str, Value]) -> None:
    one = Stored(new_controller(SITE), held=held)
    one.ask(-10.0)
    one.step(SETTLED_S)
    assert min(one.store_writes_w()) >= 0


def test_its_watchdog_is_fed_in_time_by_the_same_setpoint_again() -> None:
    one = begun()
    one.ask(-10.0)
    one.step(120)
    at_s = [at_s for at_s, name, _ in one.writes if name == "store"]
    assert max(later - earlier for earlier, later in pairwise(at_s)) <= 15.0 + PERIOD_S


def test_a_silent_one_counts_with_all_that_it_can_after_a_start_and_nobody_gains_by_it() -> None:
    one = begun()
    one.ask(-10.0)
    one.step(SETTLED_S)
    one.silent.add("store")
    one.step(10)
    spans = book.advanced(one.controller.state.ledger.entries["store"], SITE.stations["store"], one.now_s)
    assert spans.span.high == 50.0
    assert spans.span.low == -50.0


def test_one_that_shows_that_it_holds_no_setpoint_counts_at_its_rating_until_it_is_told_anew() -> None:
    one = begun()
    one.ask(-10.0)
    one.step(SETTLED_S)
    before = len(one.store_writes_w())
    one.enabled = "disabled"  # by whomever
    one.read()
    assert "store" in one.controller.free_s
    outcome = one.cycle()
    assert one.enabled == "enabled"
    assert len(one.store_writes_w()) == before + 1
    assert outcome.state.ledger.entries["store"].span == book.Span(-50.0, 50.0)
    one.now_s += PERIOD_S
    one.step(SETTLED_S)
    assert one.controller.free_s == {}
    assert one.storage_w() == pytest.approx(-10_000, abs=100)
    one.deaf.add("store")
    one.enabled = "disabled"
    outcome = one.step(round(FREE_S) + 3)
    assert ("store", "free") in {(about, kind) for about, kind, _ in troubles(one.controller, outcome, one.now_s)}


def test_one_that_never_holds_what_it_acknowledges_is_not_written_to_in_each_second() -> None:
    one = begun()
    one.ask(-10.0)
    one.step(SETTLED_S)
    one.takes = False
    one.enabled = "disabled"
    one.writes.clear()
    one.step(40)
    at_s = [at_s for at_s, name, _ in one.writes if name == "store"]
    assert min(later - earlier for earlier, later in pairwise(at_s)) >= guard.Rules().retry_s
    assert len(at_s) >= 40 / (2 * guard.Rules().retry_s)
    one.takes = True
    one.step(SETTLED_S)
    assert one.controller.free_s == {}
    assert one.storage_w() == pytest.approx(-10_000, abs=100)


def test_the_frequency_moves_it_both_ways() -> None:
    policy: dict[str, Any] = {"droop": droop.Settings(nominal_hz=50.0), "nominal_hz": 50.0}
    one = begun(soc_percent=100.0, **policy)
    assert one.storage_w() == 0.0
    one.frequency_hz = 49.5  # 0.464 Hz below the deadband: 18.6 % of rated
    one.step(60)
    assert one.storage_w() == pytest.approx(-0.1856 * RATED_W, rel=0.05)
    one.frequency_hz = 50.0
    one.step(400)
    one.soc_percent = 60.0
    one.ask(0.0, 0.0, rank=Rank.OPERATOR)
    one.step(60)
    assert one.storage_w() == 0.0
    one.frequency_hz = 50.5
    one.step(60)
    assert one.storage_w() == pytest.approx(0.1856 * RATED_W, rel=0.05)


def test_what_follows_the_frequency_by_itself_is_not_told_to_as_well() -> None:
    own = replace(SITE, droops=frozenset({"store"}))
    one = begun(own, droop=droop.Settings(nominal_hz=50.0), nominal_hz=50.0)
    one.ask(0.0, 0.0, rank=Rank.OPERATOR)
    one.step(SETTLED_S)
    one.frequency_hz = 50.5
    one.step(60)
    assert one.controller.memory().droop.output > 0.1
    assert one.storage_w() == 0.0


def test_a_ramp_slows_what_it_takes_and_the_end_of_what_it_gives() -> None:
    one = begun(ramp_w_per_s=500.0)
    one.ask(-10.0)
    one.step(SETTLED_S)
    assert one.storage_w() == pytest.approx(-10_000, abs=100)
    one.controller.forget("asked")
    before_w = one.storage_w()
    for _ in range(12):
        one.step()
        assert one.storage_w() - before_w <= 2 * 500 + 101
        before_w = one.storage_w()
    assert -9_000 < one.storage_w() < 2_000


def test_what_is_missing_under_the_demand_cap_is_given_back() -> None:
    cap = demand.Cap(cap_w=20_000.0)
    one = Stored(new_controller(SITE, demand_cap=cap), wall_ahead_s=0.0, base_a=(10.0,) * 3)
    one.step(1000)
    one.vehicles()
    one.step(60)
    one.base_a = (40.0,) * 3  # 27.7 kW by itself
    one.step(900)
    quarter = sum(one.imported_w[-900:]) / 900
    assert quarter <= 20_000
    assert one.storage_w() < -7_000
    bare = Stored(new_controller(SITE, demand_cap=cap), wall_ahead_s=0.0, base_a=(10.0,) * 3, soc_percent=20.0)
    bare.step(1000)
    bare.base_a = (40.0,) * 3
    bare.step(900)
    assert sum(bare.imported_w[-900:]) / 900 > 25_000  # so it is the storage that does it


def test_a_successor_goes_on_where_its_predecessor_was() -> None:
    one = begun()
    one.ask(-10.0)
    one.step(SETTLED_S)
    stored = json.loads(json.dumps(book.to_json(one.controller.state.ledger, "boot", one.now_s)))
    memory = json.loads(json.dumps(handover.to_json(one.controller.memory())))
    ledger = book.from_json(stored, SITE.stations.values(), "boot", one.now_s + 2)
    after = Controller(site=SITE, policy=one.controller.policy, state=State(ledger))
    after.remember(handover.from_json(memory, {evse.name: after.watts_per_a(evse.name) for evse in SITE.evses}))
    after.asks = dict(one.controller.asks)
    one.controller, one.now_s = after, one.now_s + 2
    one.writes.clear()
    one.held = {}
    values = {name: value for name, value in one.shown("store").items() if not name.startswith("failsafe")}
    # Its settings are read a moment later.
    at: dict[str, Any] = {"read_at_s": one.now_s, "asked_at_s": one.now_s, "answered_at_s": one.now_s + 0.05}
    after.take("store", replace(one.last["store"], values=values, settings_asked_at_s=None, **at), one.now_s + 0.05)
    one.cycle()
    one.now_s += PERIOD_S
    one.step(SETTLED_S)
    assert one.store_writes_w() == pytest.approx([-10_000] * len(one.writes), abs=100)
    assert one.writes


def test_status_and_explain_show_it_with_its_setpoint_and_why() -> None:
    one = begun()
    one.ask(-10.0)
    one.step(SETTLED_S)
    found = one.seen()
    assert found["state"] == "shedding"
    (store,) = (one for one in found["evses"] if one["kind"] == "storage")
    assert store["name"] == "store"
    assert store["setpoint_a"] == pytest.approx(-10_000 / 692.82, abs=0.2)
    assert store["power_w"] == pytest.approx(-10_000, abs=100)
    assert store["vehicle"] is False
    assert store["why"] == "gives back what a limit asks for"
    assert store["limited_by"] == ["asked"]
    assert store["soc_percent"] == 60.0
    assert [one["kind"] for one in found["batteries"]] == ["storage"]
    outcome = one.cycle()
    explained = explanation(one.controller, outcome, "store", one.now_s)
    assert {"asked", "storage store"} <= {limit["source"] for limit in explained["limits"]}


def test_a_depot_in_which_only_the_storage_waits_for_room_is_not_limited() -> None:
    one = begun(limit_va=20_000.0)
    assert one.storage_w() < RATED_W / 2
    assert one.seen()["state"] == "normal"


def test_its_cycles_are_counted_under_its_name() -> None:
    one = begun()
    for percent in (90.0, 40.0, 90.0):
        one.soc_percent = percent
        one.step()
    assert {battery for battery, _ in one.controller.batteries.reports()} == {Battery(Kind.STORAGE, "store")}


def test_one_without_a_declaration_is_no_station_and_is_told_nothing() -> None:
    plain = stored_site(**{"    storage: {rating_a: 50, capacity_kwh: 100}\n": ""})
    assert "store" not in plain.stations
    assert {evse.name for evse in plain.evses} == {"charger-1", "charger-2"}
    one = Stored(new_controller(plain))
    one.step(SETTLED_S)
    assert one.store_writes_w() == []
    assert one.enabled == "disabled"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(EVENTS),
            st.floats(0.0, 1.0),
            st.integers(1, 20),
        ),
        max_size=12,
    )
)
def test_whatever_comes_it_gives_nothing_below_the_reserve_and_no_raise_leaves_while_a_row_is_over(
    course: list[tuple[str, float, int]],
) -> None:
    policy: dict[str, Any] = {"droop": droop.Settings(nominal_hz=50.0), "nominal_hz": 50.0, "limit_va": 45_000.0}
    one = begun(**policy)
    does: dict[str, Callable[[float], object]] = {
        "ask": lambda share: one.ask(60 * share - 45, target="store" if share < 0.6 else "site"),
        "forget": lambda _: one.controller.forget("asked"),
        "soc": lambda share: setattr(one, "soc_percent", None if share > 0.9 else 110 * share),
        "base": lambda share: setattr(one, "base_a", (60 * share,) * 3),
        "silent": lambda _: one.silent.add("store"),
        "well": lambda _: one.silent.clear(),
        "free": lambda _: setattr(one, "enabled", "disabled"),
        "vehicles": lambda _: one.vehicles(["charger-1", "charger-2"]),
        "leave": lambda _: one.vehicles([]),
        "frequency": lambda share: setattr(one, "frequency_hz", 49.5 + share),
    }
    for what, share, seconds in course:
        does[what](share)
        for _ in range(seconds):
            before = one.storage_w()
            written = len(one.writes)
            outcome = one.step()
            for _, name, amperes in one.writes[written:]:
                if name == "store" and amperes < 0:
                    known = one.controller.readings["store"]
                    assert known.soc_percent is None or known.soc_percent > 20.0
                    assert one.soc_percent is None or one.soc_percent > 20.0 or before <= 0
            assert not any(
                write.purpose.value == "raise" and write.amount.active_a > 0 for write in outcome.writes
            ) or not any(excess.side == "taken" for excess in outcome.admission.over)
            entries = outcome.state.ledger.entries
            for evse in one.site.evses:
                span = book.advanced(entries[evse.name], one.site.stations[evse.name], one.now_s).span
                if "store" not in one.silent and evse.name == "store" and one.enabled == "enabled":
                    drawn = one.drawn_a(evse)
                    assert span.low - 0.6 <= drawn <= span.high + 0.6


def test_a_vehicle_gives_back_where_it_is_known_to_and_above_the_reserve() -> None:
    """A charger that has the same set-point: no built-in profile is one's."""
    device = SITE.devices["store"]
    charger = replace(device, kind=DeviceKind.CHARGER, evses=(replace(device.evses[0], capacity_wh=None),))
    van = Vehicle(name="van", capacity_wh=60_000.0, power_w=30_000.0, give_back_w=5_000.0)
    depot = replace(SITE.depot, devices={**SITE.depot.devices, "store": charger}, vehicles={"van": van})
    one = begun(site_of(depot, "gateway-1", shed_s=2.0))
    one.ask(-10.0)
    one.step(SETTLED_S)
    assert one.storage_w() == 0.0  # nobody knows the vehicle
    one.controller.tell("store", Told(vehicle="van"))
    one.step(SETTLED_S)
    assert one.storage_w() == pytest.approx(-5_000, abs=100)
    one.soc_percent = 20.0
    one.step(5)
    assert one.storage_w() == 0.0


@dataclass
class Rectified(Play):
    """The demo depot, where the vehicle at a DC charger takes, or gives, `vehicle_w`; `kept` of it gets through."""

    vehicle_w: float = 0.0
    kept: float = 1.0

    def drawn_a(self, evse: Evse) -> float:
        supply_w = self.vehicle_w / self.kept if self.vehicle_w > 0 else self.vehicle_w * self.kept
        return supply_w / self.controller.watts_per_a(evse.name) if evse.name == "fast-1/1" else 0.0

    def shown(self, device_name: str) -> dict[str, Value]:
        found = super().shown(device_name)
        return found | ({"active_power/1": self.vehicle_w} if device_name == "fast-1" else {})


@pytest.mark.parametrize("kept", [0.9, 0.95, 1.0])
@pytest.mark.parametrize("vehicle_w", [20_000.0, -20_000.0])
def test_what_a_dc_charger_loses_either_way_is_not_missing_from_the_base_load(
    site: Site, vehicle_w: float, kept: float
) -> None:
    fast = site.devices["fast-1"]
    first = replace(fast.evses[0], give_back_a=fast.evses[0].rating_a)
    devices = {**site.depot.devices, "fast-1": replace(fast, evses=(first, *fast.evses[1:]))}
    two_way = site_of(replace(site.depot, devices=devices), "gateway-1", shed_s=2.0)
    one = Rectified(new_controller(two_way), base_a=(50.0,) * 3, vehicle_w=vehicle_w, kept=kept)
    one.step(20)
    base = one.controller.base["main"]
    assert base.measured
    assert min(base.high_a) >= 50.0 - 0.01
    assert max(base.high_a) <= 50.0 + 5.0
