# SPDX-License-Identifier: Apache-2.0
"""The whole pipeline over a few EVSEs in simulated seconds: with simple sharing of the tests' own, and the real one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from derms_agent.control import allocate, limits, obedience, uptake
from derms_agent.control.cycle import Allocated, Bounds, Cycle, EvseImage, Inputs, Outcome, State
from derms_agent.control.guard import Write
from derms_agent.control.ledger import Acknowledged, Armed, Event, Lost, Refreshed, Span, Station, started
from derms_agent.control.network import Network
from derms_agent.control.worst_case import BaseLoad, Circuits
from derms_agent.model import Circuit, Connection, Evse, Limit, LimitQuantity, Phase, Quality, Rank, Session

THREE = tuple(Phase)
MAIN = Circuit(name="main", parent=None, connection=Connection.WYE, voltage_v=400.0, rating_a=(40.0,) * 3)
BASE = {"main": BaseLoad()}


def station(name: str) -> Station:
    nothing, all_of_it = Span(high=6.0), Span(high=32.0)
    return Station(
        name=name,
        circuit="main",
        phases=THREE,
        rating_a=32.0,
        after_boot=all_of_it,
        fallback=nothing,
        watchdog_s=30.0,
        settings_last=True,
    )


STATIONS = [station(name) for name in ("one", "two", "three")]


@dataclass(frozen=True)
class Share:
    current_a: float
    why: str = "an equal share"


def equally(names: Sequence[str], bounds: Bounds, _now_s: float) -> Mapping[str, Allocated]:
    """Share the least of the line limits out equally."""
    room = min(b.high for (target, q, _p), b in bounds.items() if target == "main" and q is LimitQuantity.CURRENT)
    return {name: Share(room / len(names)) for name in names}


def line_limit(high_a: float, source: str = "grid event", rank: Rank = Rank.GRID) -> Limit:
    return Limit(
        target="main",
        quantity=LimitQuantity.CURRENT,
        low=-high_a,
        high=high_a,
        source=source,
        rank=rank,
        phases=THREE,
    )


RATED = line_limit(40.0, "circuit main", Rank.PROTECTION)


@dataclass
class Depot:
    """EVSEs that follow 6 s after a write, unless frozen; silent ones answer nothing. `takes` bounds vehicles, in A.

    Writes to `late` ones take 2 s.
    """

    cycle: Cycle
    state: State
    now_s: float = 0.0
    told: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)
    underway: list[tuple[float, Write]] = field(default_factory=list)
    frozen: dict[str, float] = field(default_factory=dict)
    takes: dict[str, float] = field(default_factory=dict)
    limits: tuple[Limit, ...] = (RATED,)
    events: list[Event] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    idle: frozenset[str] = frozenset()

    def drawn_a(self, name: str) -> float:
        if name in self.frozen:
            return self.frozen[name]
        offered_a = next((a for at_s, a in reversed(self.told.get(name, [])) if self.now_s - at_s >= 6), 0.0)
        return min(offered_a, self.takes.get(name, math.inf))

    def run(self, seconds: int) -> Outcome:
        for _ in range(seconds):
            self.now_s += 1.0
            for _, write in [one for one in self.underway if one[0] <= self.now_s]:
                self.told[write.evse].append((self.now_s, write.amount.active_a))
                self.events.append(Acknowledged(write.evse, write.id, self.now_s))
            self.underway = [one for one in self.underway if one[0] > self.now_s]
            image = {
                one.name: EvseImage(
                    sent_s=self.now_s,
                    answered_s=self.now_s,
                    current_a=(self.drawn_a(one.name),) * 3,
                    limit_a=self.told[one.name][-1][1] if one.name in self.told else 0.0,
                )
                for one in STATIONS
                if one.name not in self.silent
            }
            fed = [Refreshed(name, self.now_s) for name in image]
            inputs = Inputs(
                now_s=self.now_s,
                image=image,
                limits=self.limits,
                events=(*self.events, *fed),
                base=BASE,
                idle=self.idle,
            )
            outcome = self.cycle.run(self.state, inputs)
            self.state, self.events = outcome.state, []
            for write in outcome.writes:
                if write.evse in self.late:
                    self.underway.append((self.now_s + 2.0, write))
                elif write.evse in self.silent:
                    self.events.append(Lost(write.evse, write.id, self.now_s + 0.9))
                else:
                    self.told.setdefault(write.evse, []).append((self.now_s, write.amount.active_a))
                    self.events.append(Acknowledged(write.evse, write.id, self.now_s + 0.1))
            self.outcomes.append(outcome)
        return self.outcomes[-1]

    def told_a(self) -> dict[str, float]:
        return {name: values[-1][1] for name, values in self.told.items()}


@pytest.fixture
def make_depot() -> Callable[..., Depot]:
    def make(share: Callable[..., Mapping[str, Allocated]] = equally) -> Depot:
        cycle = Cycle(circuits=Circuits({"main": MAIN}, STATIONS), combine=limits.combine, allocate=share)
        depot = Depot(cycle, State(started(STATIONS, 0.0)))
        depot.events = [Armed(one.name, 30.0, one.fallback, 0.0) for one in STATIONS]
        return depot

    return make


def test_shares_are_reached_and_say_whose_limit_holds(make_depot: Callable[..., Depot]) -> None:
    depot = make_depot()
    outcome = depot.run(60)
    assert depot.told_a() == {"one": 13.0, "two": 13.0, "three": 13.0}
    why = outcome.why["one"]
    assert why.told_a == 13.0
    assert [limit.source for limit in why.limits] == ["circuit main"]
    assert "equal share" in why.words
    assert not outcome.faults
    assert not outcome.fallback


def test_an_event_lowers_at_once_and_is_named_before_weaker_limits(make_depot: Callable[..., Depot]) -> None:
    depot = make_depot()
    depot.run(60)
    depot.limits = (RATED, line_limit(24.0))
    outcome = depot.run(1)
    assert depot.told_a() == {"one": 8.0, "two": 8.0, "three": 8.0}
    assert outcome.why["two"].limits[0].source == "grid event"
    assert outcome.held


def test_an_evse_that_does_not_follow_is_reported_and_the_others_make_room(make_depot: Callable[..., Depot]) -> None:
    depot = make_depot()
    depot.run(60)
    depot.frozen["one"] = 32.0
    depot.run(1)
    others = [depot.told_a()[name] for name in ("two", "three")]
    assert sum(others) + 32.0 > 40.0  # 13 s of trust that it will follow, for it may be slow
    outcome = depot.run(15)
    assert sum(depot.told_a()[name] for name in ("two", "three")) + 32.0 <= 40.0
    assert any("one: draws more than its limit" in fault for fault in outcome.faults)
    assert not outcome.state.obedience["one"].trusted
    assert obedience.Following.OVERDRAWING.value in outcome.why["one"].words


def test_a_slow_evse_that_got_its_setpoint_late_is_reported_and_takes_nothing_from_others(
    make_depot: Callable[..., Depot],
) -> None:
    depot = make_depot()
    depot.run(60)
    before = {name: depot.told_a()[name] for name in ("two", "three")}
    depot.limits, depot.frozen = (RATED, line_limit(24.0)), {"one": 13.0}
    depot.late = {"one"}
    reported = False
    for _ in range(15):
        outcome = depot.run(1)
        reported |= any("one: draws more than its limit" in fault for fault in outcome.faults)
        assert not outcome.state.ledger.entries["one"].distrusted
    assert reported
    assert {name: depot.told_a()[name] for name in before} == {"two": 8.0, "three": 8.0}
    depot.frozen = {}
    assert not depot.run(1).faults


def test_a_silent_evse_counts_at_its_rating_and_comes_back(make_depot: Callable[..., Depot]) -> None:
    depot = make_depot()
    depot.run(60)
    depot.silent.add("three")
    outcome = depot.run(10)
    assert outcome.fallback == ("three",)
    assert depot.told_a()["one"] + depot.told_a()["two"] + 32.0 <= 40.0
    depot.silent.clear()
    depot.run(60)
    assert depot.told_a() == {"one": 13.0, "two": 13.0, "three": 13.0}


def test_a_stale_reading_is_no_reading(make_depot: Callable[..., Depot]) -> None:
    depot = make_depot()
    depot.run(60)
    stale = {
        one.name: EvseImage(sent_s=61.0, answered_s=61.0, quality=Quality.STALE, current_a=(0.0,) * 3)
        for one in STATIONS
    }
    inputs = Inputs(now_s=70.0, image=stale, limits=(RATED,), base=BASE)
    outcome = depot.cycle.run(depot.state, inputs)
    assert set(outcome.fallback) == {"one", "two", "three"}
    assert not [write for write in outcome.writes if write.amount.active_a > 13.0]


def test_no_evse_gets_more_than_its_own_bounds_whatever_is_allocated(make_depot: Callable[..., Depot]) -> None:
    def greedy(names: Sequence[str], _bounds: Bounds, _now_s: float) -> Mapping[str, Allocated]:
        return {name: Share(99.0) for name in names}

    depot = make_depot(greedy)
    hot = Limit(
        target="one",
        quantity=LimitQuantity.CURRENT,
        low=0.0,
        high=7.0,
        source="battery of one",
        rank=Rank.THERMAL_AND_SOC,
    )
    depot.limits = (RATED, hot)
    outcome = depot.run(60)
    assert depot.told_a()["one"] == 7.0
    assert sum(depot.told_a().values()) <= 40.0
    assert [limit.source for limit in outcome.why["one"].limits] == ["circuit main", "battery of one"]


def test_room_for_the_fallbacks_of_idle_evses_is_not_shared_out(make_depot: Callable[..., Depot]) -> None:
    seen: list[float] = []

    def noting(_names: Sequence[str], bounds: Bounds, _now_s: float) -> Mapping[str, Allocated]:
        seen.append(min(bounds["main", LimitQuantity.CURRENT, phase].high for phase in THREE))
        return {"one": Share(seen[-1])}

    depot = make_depot(noting)
    depot.idle = frozenset({"two", "three"})
    depot.run(60)
    assert seen[-1] == 28.0
    assert depot.told_a()["one"] == 28.0
    assert not depot.outcomes[-1].admission.capped
    held = [limit.source for limit in depot.outcomes[-1].why["one"].limits]
    assert held == ["circuit main, less 12 that idle EVSEs fall back to"]
    # What the grid asks for is not asked of EVSEs that are left on their own.
    depot.limits = (RATED, line_limit(30.0))
    depot.run(5)
    assert seen[-1] == 28.0
    depot.limits = (RATED, line_limit(20.0))
    depot.run(5)
    assert seen[-1] == 20.0


def test_the_same_inputs_give_the_same_outcome(make_depot: Callable[..., Depot]) -> None:
    one, other = make_depot(), make_depot()
    assert one.run(20) == other.run(20)


@pytest.fixture
def make_real_depot(make_depot: Callable[..., Depot]) -> Callable[[], Depot]:
    def make() -> Depot:
        evses = {
            one.name: Evse(name=one.name, device=one.name, connector=1, circuit="main", phases=THREE, rating_a=32.0)
            for one in STATIONS
        }
        network = Network({"main": MAIN}, evses.values())
        watts_per_a = {name: float(network.watts_per_a[network.place[name]]) for name in evses}
        bound_a = dict.fromkeys(evses, math.inf)
        previous: dict[str, allocate.Allocation] = {}

        def shared(names: Sequence[str], bounds: Bounds, now_s: float) -> Mapping[str, Allocated]:
            for name, verdict in depot.state.obedience.items():
                offered_a = min((amount.active_a for _, amount in verdict.told), default=0.0)
                bound_a[name] = uptake.learnt_a(bound_a[name], offered_a, verdict.drawn_a)
            found = allocate.allocate(
                [evses[name] for name in names],
                {
                    name: Session(
                        evse=name, started_at_s=0.0, energy_need_wh=40_000.0, power_w=bound_a[name] * watts_per_a[name]
                    )
                    for name in names
                },
                bounds,
                network,
                now_s=now_s,
                previous=previous,
                plan=None,
                params=allocate.Params(),
            )
            previous.update(found)
            return found

        depot: Depot = make_depot(shared)
        return depot

    return make


def test_the_real_allocator_fits_in(make_real_depot: Callable[[], Depot]) -> None:
    depot = make_real_depot()
    depot.run(90)
    assert sum(depot.told_a().values()) >= 34.0
    assert sum(depot.told_a().values()) <= 40.0


def test_room_that_a_vehicle_does_not_take_goes_to_the_others_until_it_takes_more(
    make_real_depot: Callable[[], Depot],
) -> None:
    depot = make_real_depot()
    depot.takes["one"] = 3.0
    depot.run(400)
    told_a = depot.told_a()
    assert told_a["one"] == 6.0
    assert told_a["two"] + told_a["three"] >= 33.0
    del depot.takes["one"]
    depot.run(400)
    assert depot.told_a()["one"] >= 12.0
    assert sum(depot.told_a().values()) <= 40.0
