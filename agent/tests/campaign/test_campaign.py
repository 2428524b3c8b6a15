# SPDX-License-Identifier: Apache-2.0
"""The campaign itself: an episode is its seed's, the judge sees, and the planted faults can be planted."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from derms_agent.control import demand, droop
from derms_agent.control.guard import Purpose, Write
from derms_agent.control.ledger import Amount, Span
from derms_agent.model import Connection, Phase, Rank, Reading
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.engine import SHED_S
from derms_agent.orchestrator.site import site_of
from derms_agent.orchestrator.store import Times
from derms_agent.profiles.profile import AfterBoot
from derms_agent.twin import Fault, FaultKind, Rehearsal, Scenario
from derms_agent.twin.actions import SetBaseLoad, SetFrequency
from derms_agent.twin.campaign import course, episode, mutants, scene
from derms_agent.twin.campaign.__main__ import Tally, regression_seeds
from derms_agent.twin.campaign.judge import STALE_S, Judge, Row, Violation, _flow, trips_after_s
from derms_agent.twin.campaign.link import Link, Odds
from derms_agent.twin.campaign.orchestrator import Disk, Orchestrator
from derms_agent.twin.physics import VehicleType
from derms_agent.twin.scenario import Arrivals

SOME_SEEDS = range(40)
NONE = (0.0, 0.0, 0.0)
WYE = Connection.WYE


def drawn(seed: int) -> scene.Scene:
    return scene.draw(Random(seed))  # noqa: S311


def played_by_the_orchestrator(seed: int) -> bool:
    return scene.draw(Random(f"derms campaign {seed}")).policy is not None  # noqa: S311


@pytest.mark.parametrize("orchestrated", [True, False])
def test_the_same_seed_gives_the_same_episode(orchestrated: bool) -> None:
    seed = next(seed for seed in range(7, 100) if played_by_the_orchestrator(seed) is orchestrated)
    assert episode.run(seed) == episode.run(seed)


def test_the_orchestrator_plays_more_than_half() -> None:
    assert sum(map(played_by_the_orchestrator, range(300))) > 150


def test_the_orchestrator_plays_most_depots_with_storage_and_has_it_give_back() -> None:
    stored = [one for one in map(drawn, range(200)) if one.storage]
    orchestrated = [one for one in stored if one.policy is not None]
    assert 0.7 * len(stored) < len(orchestrated) < len(stored)
    (storage,) = (evse for evse in orchestrated[0].depot.evses() if evse.stationary)
    assert (storage.name, storage.lowest_a, storage.power_factor) == (scene.STORAGE, -scene.storage_a(), 0.9)
    assert not any(evse.stationary for one in stored if one.policy is None for evse in one.depot.evses())
    played: list[str] = []
    seed = next(seed for seed in range(100) if stored_and_orchestrated(f"derms campaign {seed}"))
    assert "asked to give back" in episode.run(seed, played).kinds
    told_a = [float(line.split()[4]) for line in played if f" {scene.STORAGE} " in line and " A, " in line]
    assert min(told_a) < -1


def stored_and_orchestrated(chance: str | int) -> bool:
    one = scene.draw(Random(chance))  # noqa: S311
    return one.storage and one.policy is not None


def test_control_dies_with_raises_on_the_wire() -> None:
    played: list[str] = []
    episode.run(17, played)
    dies = next(at for at, line in enumerate(played) if "raising=True" in line)
    dies = next(at for at in range(dies, len(played)) if played[at].endswith("control dies"))
    written_s, died_s = (float(played[at].split()[0]) for at in (dies - 1, dies))
    assert "raise" in played[dies - 1]
    assert died_s - written_s == pytest.approx(0.1)


def test_a_depot_holds_what_it_may_draw_unattended_and_not_all_that_it_has() -> None:
    tight = 0
    for seed in SOME_SEEDS:
        depot = drawn(seed)
        for circuit in depot.depot.circuits.values():
            if any(other.connection is Connection.DELTA_WYE for other in depot.depot.circuits.values()):
                continue
            beneath = {circuit.name} | {c.name for c in depot.depot.circuits.values() if c.parent == circuit.name}
            for line, phase in enumerate(Phase):
                base_a = sum(depot.depot.circuits[name].base_load_a[line] for name in beneath)
                there = [e for e in depot.depot.evses() if e.circuit in beneath and phase in e.phases]
                alone_a = sum(
                    scene.unattended_a(evse, depot.depot.devices[evse.device], depot.profile(evse.device))
                    for evse in there
                )
                assert alone_a + base_a <= circuit.rating_a[line]
                tight += sum(evse.rating_a for evse in there) + base_a > circuit.rating_a[line]
    assert tight > len(SOME_SEEDS)


def test_every_kind_of_fault_comes_up() -> None:
    kinds = set()
    for seed in range(200):
        rng = Random(seed)  # noqa: S311
        kinds |= set(course.draw(rng, scene.draw(rng)).kinds)
    assert kinds >= {
        "silent",
        "slow",
        "exception",
        "disconnect",
        "reboot",
        "frozen duty",
        "sensor lost",
        "stale meter",
        "agent killed",
        "blackout",
        "gateway restarted, clock stepped",
        "limit moved",
        "base load stepped",
        "indeterminate writes",
        "meter lacks values",
        "generation moved",
        "event announced",
        "event cancelled",
        "asked to give back",
        "grid link lost",
        "frequency excursion",
        "limits.conf reloaded",
        "agent stopped and started",
    }


def test_a_breaker_carries_less_the_more_it_is() -> None:
    assert trips_after_s(1.05) == math.inf
    assert trips_after_s(1.13) == pytest.approx(3600)
    assert trips_after_s(2.55) == pytest.approx(1)
    found = [trips_after_s(1 + step / 20) for step in range(100)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(found))


def overloaded(seed: int, seconds: float, *, slow: bool | None = None) -> Judge:
    """Let a depot run that nobody controls, with as much base load as its circuits carry."""
    here = next(one for one in map(drawn, itertools.count(seed)) if slow is None or one.slow is slow)
    twin = Rehearsal(here.depot, scenario=Scenario(arrivals=Arrivals.NONE), profiles=here.profiles, step_s=0.1)
    judge = Judge(twin, here)
    for evse in here.depot.places():
        twin.plug_in(evse.name, VehicleType(name="car", capacity_wh=60_000, power_w=22_000), 0.2)
    root = next(circuit for circuit in here.depot.circuits.values() if circuit.parent is None)
    charged(judge, 30)
    step_base(judge, root.name, root.rating_a)
    charged(judge, seconds)
    return judge


def charged(judge: Judge, seconds: float) -> None:
    """Let time pass with all devices fed, and the meter of the root read."""
    for _ in range(round(seconds * 10)):
        judge.twin.advance(0.1)
        now_s = judge.twin.now_s
        judge.reached(dict.fromkeys(judge.scene.depot.devices, now_s), {})
        judge.showed_hertz(now_s)
        for circuit in judge.scene.depot.circuits:
            judge.sampled(circuit, now_s)
        judge.look()


def step_base(judge: Judge, circuit: str, amperes: tuple[float, float, float]) -> None:
    judge.base_stepped(circuit, amperes)
    judge.twin.do(SetBaseLoad(circuit, amperes))


def over(judge: Judge) -> list[Violation]:
    return [violation for violation in judge.violations if violation.rule == "above the limit"]


def test_what_stays_above_the_limit_is_a_violation() -> None:
    assert "above the limit" in {violation.rule for violation in overloaded(1, 60).violations}


@pytest.mark.parametrize(("slow", "window_s"), [(False, 6.0), (True, 12.0)])
def test_a_moment_above_it_is_not(slow: bool, window_s: float) -> None:
    judge = overloaded(1, window_s - 0.5, slow=slow)
    assert judge.worst.over_s > 0
    assert not over(judge)
    charged(judge, 1)
    assert over(judge)


def test_a_device_that_cannot_be_told_excuses_what_it_draws_itself_and_no_more() -> None:
    judge = overloaded(1, 0)
    for evse in judge.scene.depot.evses():
        judge.wrote([Write(1, evse.name, Amount(0.0), Purpose.LOWER)], dict.fromkeys(judge.scene.depot.circuits, NONE))
    mute = judge.scene.depot.evses()[0]
    judge.twin.fault(mute.device, Fault(kind=FaultKind.SILENT))
    charged(judge, 10)
    assert over(judge)


def test_control_that_is_dead_is_excused_until_all_have_fallen_back() -> None:
    judge = overloaded(1, 1)
    judge.died()
    charged(judge, 15)
    assert not over(judge)
    charged(judge, 90)
    assert over(judge)  # somebody still feeds them


def test_the_grid_asks_nothing_of_who_falls_back_once_control_is_dead() -> None:
    judge = uncontrolled(with_policy())
    assert any(judge.twin.outlet(evse.name).current_a > 5 for evse in judge.scene.depot.places())
    judge.limit_moved(100.0)
    judge.twin.advance(20)
    none = [
        Write(number, evse.name, Amount(0.0), Purpose.LOWER) for number, evse in enumerate(judge.scene.depot.evses())
    ]
    judge.wrote(none)
    judge.died()
    charged(judge, 60)
    assert not over(judge)


def test_nothing_is_left_to_lower_once_control_is_dead_and_the_base_load_alone_is_above_what_the_grid_asks_for() -> (
    None
):
    judge = uncontrolled(with_policy())
    root = next(circuit for circuit in judge.scene.depot.circuits.values() if circuit.parent is None)
    step_base(judge, root.name, (10.0, 10.0, 10.0))
    judge.limit_moved(100.0)
    judge.wrote([Write(1, evse.name, Amount(0.0), Purpose.LOWER) for evse in judge.scene.depot.evses()])
    judge.twin.advance(20)
    judge.died()
    charged(judge, 60)
    assert not over(judge)


def test_who_is_dead_already_does_not_die_anew() -> None:
    judge = uncontrolled(with_policy())
    judge.died()
    charged(judge, 1)
    judge.limit_moved(100.0)  # of which nobody hears
    charged(judge, 20)
    judge.died()
    charged(judge, 1)
    assert not over(judge)


def test_control_dies_while_all_that_is_left_is_given_away_and_cars_come_at_idle_evses() -> None:
    alone = [seed for seed in range(200) if scene.draw(Random(f"derms campaign {seed}")).left_alone]  # noqa: S311
    assert 20 <= len(alone) <= 60
    rng = Random(f"derms campaign {alone[0]}")  # noqa: S311
    here = scene.draw(rng)
    happenings = course.draw(rng, here).happenings
    (died_s, kill), *_ = [
        (at_s, what) for at_s, what in happenings if isinstance(what, course.Kill) and what.after_s > 60
    ]
    late = {what.evse for at_s, what in happenings if isinstance(what, course.Plug) and died_s < at_s < died_s + 6}
    assert isinstance(kill, course.Kill)
    assert late
    assert all(scene.fallbacks(here)[evse][1] > 1 for evse in late)
    assert max(watchdog_s for watchdog_s, _ in scene.fallbacks(here).values()) < kill.after_s


def starts_at_its_rating(here: scene.Scene, profile: str) -> bool:
    fallback = here.profiles[profile].fallback
    rated = fallback is not None and fallback.after_boot is AfterBoot.RATING
    return rated and here.depot.devices["evse-1"].profile == profile


def test_a_watchdog_has_one_second() -> None:
    here = next(one for one in map(drawn, SOME_SEEDS) if starts_at_its_rating(one, "heidelberg_energy_control"))
    twin = Rehearsal(here.depot, scenario=Scenario(arrivals=Arrivals.NONE), profiles=here.profiles, step_s=0.1)
    judge = Judge(twin, here)
    judge.reached({"evse-1": 0.0}, {})
    due = round(10 * float(here.depot.devices["evse-1"].settings["failsafe_timeout"])) + 10
    for step in range(due + 5):
        twin.chargers["evse-1"].requested(twin.now_s)  # as if it were fed after all
        twin.advance(0.1)
        judge.look()
        found = {violation.rule for violation in judge.violations if "evse-1" in violation.detail}
        assert found == {"watchdog"} if step > due + 2 else not found or step >= due - 2, step


def test_the_trip_curve_knows_no_excuse() -> None:
    here = drawn(3)
    twin = Rehearsal(here.depot, scenario=Scenario(arrivals=Arrivals.NONE), profiles=here.profiles, step_s=0.1)
    judge = Judge(twin, here)
    judge.died()
    judge.reached(dict.fromkeys(here.depot.devices, 1e9), {})
    root = next(circuit for circuit in here.depot.circuits.values() if circuit.parent is None)
    a, b, c = (2.6 * amperes for amperes in root.rating_a)
    twin.do(SetBaseLoad(root.name, (a, b, c)))
    twin.fault("evse-1", Fault(kind=FaultKind.SILENT))
    for _ in range(20):
        twin.advance(0.1)
        judge.look()
    assert [violation.rule for violation in judge.violations] == ["trip curve"]


def with_policy(**changes: object) -> scene.Scene:
    """Return a scene that the orchestrator plays, by another policy."""
    here = next(one for one in map(drawn, SOME_SEEDS) if one.policy is not None)
    assert here.policy is not None
    return replace(here, policy=replace(here.policy, **changes))  # type: ignore[arg-type]


def uncontrolled(here: scene.Scene) -> Judge:
    """Let a depot run that nobody controls: each charger falls back, and no further."""
    twin = Rehearsal(here.depot, scenario=Scenario(arrivals=Arrivals.NONE), profiles=here.profiles, step_s=0.1)
    judge = Judge(twin, here)
    for evse in here.depot.places():
        judge.plugged(evse.name)
        twin.plug_in(evse.name, VehicleType(name="car", capacity_wh=60_000, power_w=22_000), 0.2)
    charged(judge, 90)
    return judge


def found(judge: Judge, rule: str) -> bool:
    return any(violation.rule == rule for violation in judge.violations)


def test_who_is_wired_to_another_line_could_not_be_lowered_for_one_that_is_over() -> None:
    here = next(one for one in map(drawn, SOME_SEEDS) if all(c.connection is WYE for c in one.depot.circuits.values()))
    evse = next(one for one in here.depot.places() if len(one.phases) == 1)
    twin = Rehearsal(here.depot, scenario=Scenario(arrivals=Arrivals.NONE), profiles=here.profiles, step_s=0.1)
    judge = Judge(twin, here)
    twin.plug_in(evse.name, VehicleType(name="car", capacity_wh=60_000, power_w=22_000), 0.2)
    charged(judge, 5)
    assert twin.outlet(evse.name).current_a > 5
    left = [judge._is_left(Row(evse.circuit, line), twin.now_s) for line in range(3)]
    assert left == [phase in evse.phases for phase in Phase]


@pytest.mark.parametrize("ahead_s", [2.0, 5.0])
def test_what_was_drawn_before_an_excursion_is_what_a_reading_of_it_may_show(ahead_s: float) -> None:
    judge = with_storage(droop=droop.Settings(nominal_hz=scene.NOMINAL_HZ))
    judge.twin.do(SetFrequency(((30.0, scene.NOMINAL_HZ), (30.1, 48.7))))  # half of the rating, of 20 A
    for second in range(90):
        set_storage(judge, 13_000.0 if second < 30.0 - ahead_s else 0.0 if second < 60 else 5_000.0)
        charged(judge, 1)
    violated = any(one.rule == "droop" and scene.STORAGE in one.detail for one in judge.violations)
    assert violated is (ahead_s > STALE_S)


def test_control_that_starts_amid_an_excursion_knows_nothing_of_what_was_drawn_before() -> None:
    judge = with_storage(droop=droop.Settings(nominal_hz=scene.NOMINAL_HZ))
    judge.died()
    judge.twin.do(SetFrequency(((1.0, 48.7),)))
    for second in range(90):
        if second == 10:
            judge.started()
        set_storage(judge, 3_000.0 if second < 30 else 5_000.0)
        charged(judge, 1)
    assert not any(one.rule == "droop" and scene.STORAGE in one.detail for one in judge.violations)


@pytest.mark.parametrize(("cap_w", "spent"), [(1e6, False), (100.0, True)])
def test_who_draws_while_an_interval_is_spent_violates_its_cap(cap_w: float, spent: bool) -> None:
    cap = demand.Cap(cap_w=cap_w, window_s=scene.DEMAND_S)
    assert found(uncontrolled(with_policy(demand_cap=cap)), "demand") is spent


@pytest.mark.parametrize(("hertz", "low"), [(50.0, False), (48.5, True)])
def test_who_draws_as_before_while_the_frequency_is_low_violates_the_droop(hertz: float, low: bool) -> None:
    judge = uncontrolled(with_policy(droop=droop.Settings(nominal_hz=scene.NOMINAL_HZ)))
    judge.twin.do(SetFrequency(((1.0, hertz),)))
    charged(judge, 60)
    assert found(judge, "droop") is low


def test_a_meter_that_is_silent_lets_nobody_know_of_less_than_the_worst() -> None:
    here = next(one for one in map(drawn, SOME_SEEDS) if one.policy is not None and "feeder-a" in one.depot.circuits)
    twin = Rehearsal(here.depot, scenario=Scenario(arrivals=Arrivals.NONE), profiles=here.profiles, step_s=0.1)
    judge = Judge(twin, here)
    worst_a = {name: circuit.base_load_a for name, circuit in here.depot.circuits.items()}
    nobody = dict.fromkeys(worst_a, NONE)
    judge.sampled("main", 0.0)
    assert judge._shown_base("main", 1.0) == nobody
    assert judge._shown_base("feeder-a", 1.0) == {**nobody, "feeder-a": worst_a["feeder-a"]}
    judge.sampled("feeder-a", 60.0)
    assert judge._shown_base("main", 61.0) == {**worst_a, "feeder-a": NONE}


def test_a_successor_reads_back_what_was_asked_and_written() -> None:
    here = with_policy()
    assert here.policy is not None
    site = site_of(scene.declared(here), "gateway-1", shed_s=SHED_S, own_profiles=here.profiles)
    disk = Disk()

    def process(boot: str, at: Times) -> Orchestrator:
        assert here.policy is not None
        return Orchestrator(here, site, here.policy, disk, boot, at, Random(1))  # noqa: S311

    first = process("boot-1", Times(100.0, 1e9))
    first.put(Ask(id="event", source="event", rank=Rank.GRID, high_w=5e3, end_unix_s=1e9 + 60), Times(101.0, 1e9 + 1))
    for second in range(8):
        first.run(Times(104.0 + second, 1e9 + 4 + second))
    assert first.controller.state.ledger.next_write > 1
    second_boot = process("boot-2", Times(5.0, 1e9 + 20))
    assert second_boot.controller.asks["event"].end_s == pytest.approx(45.0)
    same_boot = process("boot-1", Times(120.0, 1e9 + 20))
    assert same_boot.controller.asks["event"].end_s == pytest.approx(160.0)
    assert same_boot.controller.state.ledger.next_write == first.controller.state.ledger.next_write


def with_storage(**changes: object) -> Judge:
    """Return the judge of a depot with storage that nobody controls."""
    here = drawn(next(seed for seed in itertools.count() if stored_and_orchestrated(seed)))
    assert here.policy is not None
    here = replace(here, policy=replace(here.policy, **changes))  # type: ignore[arg-type]
    twin = Rehearsal(here.depot, scenario=Scenario(arrivals=Arrivals.NONE), profiles=here.profiles, step_s=0.1)
    return Judge(twin, here)


def set_storage(judge: Judge, watts: float) -> None:
    """Have the storage take so many W, or below 0 give them, as if it had always been told that."""
    link = Link(judge.twin, judge.scene, Random(1), Odds())  # noqa: S311
    for step in link._storage_steps(watts / (3 * 400 / math.sqrt(3))):
        step()


def test_a_set_point_of_storage_is_its_power_and_then_what_makes_it_hold() -> None:
    judge = with_storage()
    set_storage(judge, -5_070.0)
    image = judge.twin.inverters[scene.STORAGE].image
    points = ("WSet", "WSetMod", "WSetEna")
    assert [write.address for write in judge.twin.writes] == [image.address(704, point) for point in points]
    judge.twin.advance(5)
    assert judge.twin.inverters[scene.STORAGE].state.power_w == pytest.approx(-5_000)  # in steps of 100 W, towards zero
    judge.twin.advance(20)
    assert judge.twin.inverters[scene.STORAGE].state.power_w == 0.0  # it reverts


def test_the_storages_driver_shows_what_control_looks_at() -> None:
    judge = with_storage()
    set_storage(judge, -5_000.0)
    judge.twin.advance(5)
    link = Link(judge.twin, judge.scene, Random(1), Odds())  # noqa: S311
    for _ in range(30):
        judge.twin.advance(0.1)
        link.step()
    shown = [news for news in link.news() if isinstance(news, Reading) and news.device == scene.STORAGE]
    expected = {"active_power": -5_000.0, "power_setpoint": -5_000.0, "power_setpoint_mode": "watts", "soc": 50.0}
    expected |= {"power_setpoint_enabled": "enabled", "failsafe_power": 0.0, "failsafe_timeout": 20.0}
    expected |= {"failsafe_enabled": "enabled"}
    assert {name: shown[-1].values[name] for name in expected} == pytest.approx(expected, abs=0.1)
    assert shown[-1].settings_asked_at_s is not None


@pytest.mark.parametrize(("storage_w", "more_a", "over"), [
    (0.0, 2.0, False), (0.0, 4.0, True), (-13_000.0, 2.0, False), (-13_000.0, 4.0, True), (5_000.0, 2.0, True),
])  # fmt: skip
def test_what_storage_gives_is_no_room_for_a_raise_and_what_it_takes_is_taken(
    storage_w: float, more_a: float, over: bool
) -> None:
    judge = with_storage()
    judge.wrote([Write(0, scene.STORAGE, Amount(0.0), Purpose.LOWER)])
    charged(judge, 5)
    could_a = {evse.name: judge._could(evse, judge.twin.now_s) for evse in judge.scene.depot.places()}
    raised = next(evse for evse in judge.scene.depot.places() if could_a[evse.name] + 5 < evse.rating_a)
    root = next(row for row in judge._rows if row.line is None)
    # What is left of what the site may, without the storage, is 3 A of this one.
    one_more = {**could_a, scene.STORAGE: 0.0, raised.name: could_a[raised.name] + 3.0}
    judge.site_moved(_flow(root, judge._flows(one_more, judge._shown_base(root.circuit, judge.twin.now_s))))
    set_storage(judge, storage_w)
    charged(judge, 5)
    judge.wrote([Write(1, raised.name, Amount(could_a[raised.name] + more_a), Purpose.RAISE)])
    assert raised_over_the_sites(judge) is over


def raised_over_the_sites(judge: Judge) -> bool:
    return any(one.rule == "raised while over" and "; site: " in one.detail for one in judge.violations)


def test_what_storage_gives_without_a_known_charge_is_a_violation_once_that_is_too_old() -> None:
    judge = with_storage()
    judge.twin.fault(scene.STORAGE, Fault(kind=FaultKind.SENSOR_LOST))
    for second in range(90):
        set_storage(judge, -5_000.0)
        charged(judge, 1)
        assert found(judge, "reserve") is (second >= 65), second


def test_storage_that_gives_at_the_reserve_violates_it() -> None:
    judge = with_storage()
    inverter = judge.twin.inverters[scene.STORAGE]
    inverter.state = inverter.state._replace(soc=0.2001)
    set_storage(judge, -5_000.0)
    charged(judge, 5)
    assert not found(judge, "reserve")
    inverter.state = inverter.state._replace(soc=0.2)
    charged(judge, 1)
    assert found(judge, "reserve")


def test_a_ledger_that_does_not_hold_what_storage_gives_is_wrong() -> None:
    judge = with_storage()
    set_storage(judge, -5_000.0)
    spans = dict.fromkeys((evse.name for evse in judge.scene.depot.evses()), (Span(-8.0, 40.0),) * 3)
    judge.accounts(spans)
    assert not found(judge, "ledger")
    judge.accounts({**spans, scene.STORAGE: (Span(0.0, 40.0),) * 3})
    assert found(judge, "ledger")


def test_storage_that_goes_on_without_a_request_violates_its_watchdog() -> None:
    judge = with_storage()
    judge.reached({scene.STORAGE: 0.0}, {})
    for second in range(30):
        set_storage(judge, -5_000.0)  # as if it were fed after all
        judge.twin.advance(1)
        judge.look()
        violated = [one for one in judge.violations if one.rule == "watchdog" and scene.STORAGE in one.detail]
        assert bool(violated) is (second >= 21), second


def test_storage_that_takes_while_it_is_hot_an_interval_is_spent_or_the_frequency_low_violates_that() -> None:
    judge = with_storage(
        demand_cap=demand.Cap(cap_w=100.0, window_s=scene.DEMAND_S), droop=droop.Settings(nominal_hz=scene.NOMINAL_HZ)
    )
    inverter = judge.twin.inverters[scene.STORAGE]
    judge.twin.do(SetFrequency(((30.0, scene.NOMINAL_HZ), (31.0, 48.5))))
    for _ in range(90):
        set_storage(judge, 10_000.0)
        charged(judge, 1)
        inverter.state = inverter.state._replace(temperature_c=46.0)
    assert {one.rule for one in judge.violations if scene.STORAGE in one.detail} >= {"cut-off", "demand", "droop"}


def test_what_was_counted_survives_the_disk() -> None:
    tally = Tally()
    tally.add(episode.run(1))
    assert Tally.from_json(tally.to_json()).lines() is not None
    assert list(Tally.from_json(tally.to_json()).lines()) == list(tally.lines())


def test_seeds_that_failed_are_numbers_with_a_word_for_people(tmp_path: Path) -> None:
    file = tmp_path / "seeds.txt"
    file.write_text("# none yet\n17  # above the limit at 3 s\n\n4\n", encoding="utf-8")
    assert regression_seeds(file) == (17, 4)
    assert all(seed >= 0 for seed in regression_seeds())


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_each_fault_can_be_planted(mutant: mutants.Mutant) -> None:
    planted = mutants.planted(mutant)
    compile(planted, mutant.file, "exec")
    assert mutant.new in planted


def test_a_fault_whose_text_is_gone_is_an_error() -> None:
    gone = mutants.Mutant("gone", "control/guard.py", "no such text in it", "anything")
    with pytest.raises(ValueError, match="found its text 0 times"):
        mutants.planted(gone)


def test_a_hunt_begins_with_the_seed_that_found_it_and_is_of_the_same_seeds() -> None:
    known = mutants.Mutant("known", "control/guard.py", "", "", found_by=3)
    assert mutants.seeds(known, 6, quick=False) == (3, 0, 1, 2, 4, 5)
    assert mutants.seeds(known, 6, quick=True) == (3,)
    assert all(mutant.found_by is not None and 0 <= mutant.found_by < 200 for mutant in mutants.MUTANTS)
