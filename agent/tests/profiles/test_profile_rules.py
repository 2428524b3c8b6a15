# SPDX-License-Identifier: Apache-2.0
"""Every rule that Profile's docstring states, and what a device may draw when nobody speaks to it."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from derms_agent.model import DeviceKind, Value
from derms_agent.profiles import load, load_all
from derms_agent.profiles.point import Access, Contradiction, Point, PointType, Table
from derms_agent.profiles.profile import (
    LEAST_POWER_FACTOR,
    AfterBoot,
    Control,
    Fallback,
    Heartbeat,
    Profile,
    Protocol,
    Quantity,
    Refresh,
    SunSpecPoint,
    Switch,
    Wire,
)


def point(name: str, address: int, **fields: Any) -> Point:
    defaults: dict[str, Any] = {"table": Table.HOLDING, "type": PointType.U16, "length": 1}
    return Point(**{**defaults, "name": name, "address": address, **fields})


POINTS = (
    point("active_power", 0, unit="W"),
    point("current_limit", 1, unit="A", access=Access.READ_WRITE),
    point("failsafe_current", 2, unit="A", access=Access.READ_WRITE, setting=True),
    point("failsafe_timeout", 3, unit="s", access=Access.READ_WRITE, setting=True),
    point("failsafe_power", 4, unit="W", access=Access.READ_WRITE, setting=True),
    point("heartbeat", 5, access=Access.WRITE, maximum=1),
    point("command", 6, access=Access.WRITE),
    point("enabled", 7, access=Access.READ_WRITE, states={0: "off", 1: "on"}),
)
FALLBACK = Fallback(
    refreshed_by=Refresh.WRITE, after_boot=AfterBoot.FALLBACK, current="failsafe_current", timeout="failsafe_timeout"
)
CONTROL = Control(point="current_limit", quantity=Quantity.CURRENT, minimum=6, step=1)
GOOD = Profile(
    name="good",
    title="A charger",
    kind=DeviceKind.CHARGER,
    protocol=Protocol.MODBUS,
    source="nowhere",
    points={one.name: one for one in POINTS},
    sunspec_points={},
    fallback=FALLBACK,
    control=CONTROL,
    never_write=(99,),
    poll=("active_power",),
)


def with_points(*points: Point, **fields: Any) -> dict[str, Any]:
    return {"points": {**GOOD.points, **{one.name: one for one in points}}, **fields}


def control(**fields: Any) -> dict[str, Any]:
    return {"control": replace(CONTROL, **fields)}


def fallback(**fields: Any) -> dict[str, Any]:
    return {"fallback": replace(FALLBACK, **fields)}


SUNSPEC = SunSpecPoint(name="active_power", model=203, point="W", unit="W")
METER: dict[str, Any] = {
    "kind": DeviceKind.METER,
    "protocol": Protocol.SUNSPEC,
    "points": {},
    "sunspec_points": {"active_power": SUNSPEC},
    "models": (203,),
    "base_addresses": (40000,),
    "fallback": None,
    "control": None,
    "never_write": (),
}

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no title": ({"title": ""}, "title"),
    "no source": ({"source": ""}, "source"),
    "no connectors": ({"connectors": 0}, "connectors"),
    "no points": ({"points": {}}, "points"),
    "models of a Modbus device": ({"models": (1,)}, "models"),
    "SunSpec points of a Modbus device": ({"sunspec_points": {"active_power": SUNSPEC}}, "sunspec_points"),
    "SunSpec without models": ({**METER, "models": ()}, "models"),
    "SunSpec without base addresses": ({**METER, "base_addresses": ()}, "base_addresses"),
    "base address beyond the table": ({**METER, "base_addresses": (65536,)}, "base_addresses.0"),
    "model that is not there": ({**METER, "models": (1,)}, "sunspec_points.active_power.model"),
    "alternative that is not there": (
        {**METER, "sunspec_points": {"active_power": replace(SUNSPEC, alternatives=(204,))}},
        "sunspec_points.active_power.model",
    ),
    "filed under another name": ({"points": {**GOOD.points, "other": POINTS[0]}}, "points.other.name"),
    "canonical name in another unit": (with_points(point("active_power", 0, unit="kW")), "points.active_power.unit"),
    "state without names": (with_points(point("state", 30)), "points.state.states"),
    "overlap": (with_points(point("other", 0, type=PointType.U32, length=2)), "points"),
    "same register twice": (with_points(point("other", 0)), "points"),
    "masks that overlap": (
        with_points(point("a", 30, type=PointType.BITS, mask=0x3), point("b", 30, type=PointType.BITS, mask=0x6)),
        "points",
    ),
    "connectors that overlap": (
        with_points(point("a", 100, stride=10), point("b", 110), connectors=2),
        "points",
    ),
    "stride for one connector": (with_points(point("a", 100, stride=10)), "points.a.stride"),
    "stride beyond the table": (with_points(point("a", 100, stride=40000), connectors=3), "points.a.stride"),
    "more than one read": (
        with_points(point("a", 100, type=PointType.U64, length=4), wire=Wire(max_read=2)),
        "points.a.length",
    ),
    "more than one write": (
        with_points(
            point("a", 100, type=PointType.U32, length=2, access=Access.READ_WRITE), wire=Wire(write_function=6)
        ),
        "points.a.length",
    ),
    "never written and writable": ({"never_write": (1,)}, "never_write.0"),
    "never written and writable at a connector": (
        with_points(point("a", 100, stride=10, access=Access.WRITE), connectors=3, never_write=(120,)),
        "never_write.0",
    ),
    "never written beyond the table": ({"never_write": (65536,)}, "never_write.0"),
    "poll of an unknown point": ({"poll": ("activ_power",)}, "poll.0"),
    "poll of what is only written": ({"poll": ("command",)}, "poll.0"),
    "poll of one point twice": ({"poll": ("active_power", "active_power")}, "poll.1"),
    "charger without a control": ({"control": None}, "control"),
    "charger without a fallback": ({"fallback": None}, "fallback"),
    "meter with a control": ({**METER, "control": CONTROL}, "control"),
    "meter with a fallback": ({**METER, "fallback": FALLBACK}, "fallback"),
    "control of an unknown point": (control(point="curent_limit"), "control.point"),
    "control of what is only read": (control(point="active_power"), "control.point"),
    "control of a setting": (control(point="failsafe_current"), "control.point"),
    "control in another quantity": (control(quantity=Quantity.POWER), "control.point"),
    "control finer than the point": (control(step=0.1), "control.step"),
    "minimum that the point refuses": (control(minimum=70000), "control.minimum"),
    "zero that the point refuses": (
        with_points(point("current_limit", 1, unit="A", access=Access.READ_WRITE, minimum=6)),
        "control.zero",
    ),
    "switch that is not there": (control(switch=Switch(point="enable", on="on", off="off")), "control.switch.point"),
    "switch that is only read": (control(switch=Switch(point="active_power", on=1, off=0)), "control.switch"),
    "switch that does not switch": (control(switch=Switch(point="enabled", on="on", off="on")), "control.switch"),
    "switch without such a state": (control(switch=Switch(point="enabled", on="yes", off="off")), "control.switch.on"),
    "in force by an unknown point": (control(in_force={"enable": "on"}), "control.in_force.enable"),
    "in force by what is only read": (control(in_force={"active_power": 1}), "control.in_force.active_power"),
    "in force by a setting": (control(in_force={"failsafe_current": 6}), "control.in_force.failsafe_current"),
    "in force by a value that the point refuses": (control(in_force={"enabled": "yes"}), "control.in_force.enabled"),
    "gives back what the point cannot hold": (control(gives_back=True), "control.gives_back"),
    "fallback in force by an unknown point": (fallback(in_force={"enable": "on"}), "fallback.in_force.enable"),
    "fallback in force by what is only written": (fallback(in_force={"command": 1}), "fallback.in_force.command"),
    "fallback in an unknown point": (fallback(current="failsafe_curent"), "fallback.current"),
    "fallback in another unit": (fallback(current="failsafe_timeout"), "fallback.current"),
    "time-out in another unit": (fallback(timeout="failsafe_current"), "fallback.timeout"),
    "time-out in what is only written": (
        with_points(point("t", 40, unit="s", access=Access.WRITE), fallback=replace(FALLBACK, timeout="t")),
        "fallback.timeout",
    ),
    "heartbeat to an unknown point": (
        fallback(refreshed_by=Refresh.HEARTBEAT, heartbeat=Heartbeat(point="hartbeat", value=1, every_s=1)),
        "fallback.heartbeat.point",
    ),
    "heartbeat to what is only read": (
        fallback(refreshed_by=Refresh.HEARTBEAT, heartbeat=Heartbeat(point="active_power", value=1, every_s=1)),
        "fallback.heartbeat.point",
    ),
    "heartbeat that the point refuses": (
        fallback(refreshed_by=Refresh.HEARTBEAT, heartbeat=Heartbeat(point="heartbeat", value=2, every_s=1)),
        "fallback.heartbeat.value",
    ),
}


@pytest.mark.parametrize(("fields", "at"), CASES.values(), ids=CASES.keys())
def test_a_contradiction_is_refused_and_names_its_field(fields: dict[str, Any], at: str) -> None:
    with pytest.raises(Contradiction) as refused:
        replace(GOOD, **fields)
    assert ".".join(str(step) for step in refused.value.path).startswith(at)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(Contradiction, match="did you mean failsafe_current") as refused:
        replace(GOOD, **fallback(current="failsafe_curent"))
    assert refused.value.nearest == "failsafe_current"


@pytest.mark.parametrize(
    ("make", "at"),
    [
        (lambda: replace(FALLBACK, power="failsafe_power"), "power"),
        (lambda: replace(FALLBACK, fixed=6.0), "fixed"),
        (lambda: replace(FALLBACK, current=None, fixed=-1.0), "fixed"),
        (lambda: replace(FALLBACK, current=None, off=0), "off"),
        (lambda: replace(FALLBACK, fixed_timeout_s=0.0), "fixed_timeout_s"),
        (lambda: replace(FALLBACK, refreshed_by=Refresh.NONE), "current"),
        (lambda: Fallback(refreshed_by=Refresh.NONE, after_boot=AfterBoot.FALLBACK), "after_boot"),
        (lambda: replace(FALLBACK, refreshed_by=Refresh.HEARTBEAT), "heartbeat"),
        (lambda: replace(FALLBACK, heartbeat=Heartbeat(point="heartbeat", value=1, every_s=1)), "heartbeat"),
        (
            lambda: Fallback(
                refreshed_by=Refresh.HEARTBEAT,
                after_boot=AfterBoot.RATING,
                fixed_timeout_s=10,
                heartbeat=Heartbeat(point="heartbeat", value=1, every_s=10),
            ),
            "heartbeat.every_s",
        ),
        (lambda: Heartbeat(point="heartbeat", value=1, every_s=0), "every_s"),
        (lambda: replace(CONTROL, minimum=-1), "minimum"),
        (lambda: replace(CONTROL, step=0), "step"),
        (lambda: replace(CONTROL, power_factor=0.9), "power_factor"),  # told A, it draws no more than these
        (lambda: replace(CONTROL, quantity=Quantity.POWER, power_factor=0), "power_factor"),
        (lambda: replace(CONTROL, quantity=Quantity.POWER, power_factor=1.01), "power_factor"),
        (lambda: Wire(max_read=126), "max_read"),
        (lambda: Wire(max_write=0), "max_write"),
        (lambda: Wire(max_gap=-1), "max_gap"),
        (lambda: Wire(write_function=3), "write_function"),
        (lambda: replace(SUNSPEC, sign=0), "sign"),
        (lambda: replace(SUNSPEC, model=65535), "model"),
        (lambda: replace(SUNSPEC, minimum=0), "minimum"),
        (lambda: replace(SUNSPEC, setting=True), "setting"),
        (lambda: replace(SUNSPEC, access=Access.READ_WRITE, minimum=2, maximum=1), "minimum"),
    ],
)
def test_a_part_that_contradicts_itself_is_refused(make: Any, at: str) -> None:
    with pytest.raises(Contradiction) as refused:
        make()
    assert ".".join(str(step) for step in refused.value.path) == at


def test_what_is_told_a_has_a_power_factor_of_1_and_what_is_told_w_the_one_that_is_stated() -> None:
    told_w = load("alpitronic_hyc")
    assert told_w.control is not None
    assert load("keba_p30").power_factor == 1.0
    assert told_w.power_factor == LEAST_POWER_FACTOR
    stated = replace(told_w, control=replace(told_w.control, power_factor=0.98))
    assert stated.power_factor == 0.98


def test_disjoint_bits_of_one_register_are_two_points() -> None:
    low, high = point("a", 30, type=PointType.BITS, mask=0x3), point("b", 30, type=PointType.BITS, mask=0xC)
    assert set(replace(GOOD, **with_points(low, high)).points) >= {"a", "b"}


ratings = st.floats(6, 500)
settings = st.fixed_dictionaries(
    {},
    optional={
        "failsafe_current": st.one_of(st.integers(0, 80), st.floats(0, 80), st.none(), st.just("6"), st.just(math.nan)),
        "failsafe_timeout": st.one_of(st.integers(0, 600), st.none()),
        "failsafe_power": st.integers(-50_000, 50_000),
    },
)
phases = st.sampled_from([1, 2, 3])


@example("sunspec_der", {"failsafe_power": 2401, "failsafe_timeout": 1}, 6.0, 1)
@given(st.sampled_from(sorted(load_all())), settings, ratings, phases)
def test_unattended_is_the_rating_unless_a_lower_fallback_is_known_and_never_below_it(
    name: str, known: dict[str, Any], rating_a: float, count: int
) -> None:
    profile = load(name)
    drawn = profile.unattended_a(known, rating_a, 400, count)
    assert math.isfinite(drawn)
    fallback = profile.fallback
    held = None if fallback is None else known.get(fallback.current or fallback.power or "")
    fallback_known = isinstance(held, int | float) and math.isfinite(held)
    if drawn != rating_a:
        assert fallback_known
        assert fallback is not None
        assert fallback.after_boot is not AfterBoot.RATING or drawn > rating_a
        assert profile.watchdog_s(known) is not None
    if profile.watchdog_s(known) is None:
        assert drawn == rating_a
    elif fallback_known and fallback is not None and fallback.current is not None:
        assert drawn >= held  # type: ignore[operator]


@given(st.integers(0, 80), st.integers(1, 600), ratings, st.sampled_from(list(AfterBoot)))
def test_both_the_silence_and_the_boot_count(current: int, timeout: int, rating_a: float, boot: AfterBoot) -> None:
    profile = replace(GOOD, **fallback(after_boot=boot))
    drawn = profile.unattended_a({"failsafe_current": current, "failsafe_timeout": timeout}, rating_a, 400, 3)
    after_boot = {AfterBoot.RATING: rating_a, AfterBoot.HELD: rating_a, AfterBoot.FALLBACK: current, AfterBoot.OFF: 0}
    assert drawn == max(current, after_boot[boot])


def test_a_fallback_counts_only_where_it_is_known_to_be_in_force() -> None:
    profile = load("sunspec_der")
    settings: dict[str, Value] = {"failsafe_power": 0, "failsafe_timeout": 60, "failsafe_enabled": "enabled"}
    assert profile.fallback_a(settings, 400.0, 3) == 0.0
    assert profile.fallback_a({**settings, "failsafe_power": -6928.2}, 400.0, 3) == pytest.approx(-10.0)
    unarmed: dict[str, Value] = {"failsafe_enabled": "disabled", "failsafe_timeout": 0}
    for name, held in unarmed.items():
        assert profile.fallback_a({**settings, name: held}, 400.0, 3) is None
    for name in settings:
        assert profile.fallback_a({key: value for key, value in settings.items() if key != name}, 400.0, 3) is None


def test_a_switch_stands_beside_nothing_else_that_puts_a_limit_in_force() -> None:
    switch = Switch(point="enabled", on="on", off="off")
    for more in ({"in_force": {"mode": 1}}, {"gives_back": True}):
        with pytest.raises(Contradiction):
            Control(point="p", quantity=Quantity.CURRENT, minimum=6, step=1, switch=switch, **more)


def test_a_watchdog_that_is_off_or_unknown_is_none() -> None:
    assert GOOD.watchdog_s({}) is None
    assert GOOD.watchdog_s({"failsafe_timeout": 0}) is None
    assert GOOD.watchdog_s({"failsafe_timeout": 30}) == 30
    assert GOOD.unattended_a({"failsafe_current": 6, "failsafe_timeout": 0}, 32, 400, 3) == 32
    fixed = replace(GOOD, **fallback(fixed_timeout_s=15.0))
    assert fixed.watchdog_s({}) == 15
    assert fixed.watchdog_s({"failsafe_timeout": 0}) is None
    assert replace(GOOD, fallback=Fallback(refreshed_by=Refresh.NONE, after_boot=AfterBoot.HELD)).watchdog_s({}) is None


def test_a_fallback_in_watts_is_shared_by_the_phases() -> None:
    in_watts = replace(GOOD, **fallback(current=None, power="failsafe_power", fixed_timeout_s=5.0))
    known = {"failsafe_power": 11040}
    assert in_watts.unattended_a(known, 32, 230, 1) == pytest.approx(48)
    assert in_watts.unattended_a(known, 32, 400, 3) == pytest.approx(15.934, abs=1e-3)
    assert in_watts.unattended_a(known, 32, 400, 2) == pytest.approx(23.902, abs=1e-3)
    assert in_watts.unattended_a({"failsafe_power": -1}, 32, 400, 3) == 32


def test_a_fixed_fallback_is_in_the_controls_quantity() -> None:
    fixed = replace(GOOD, **fallback(current=None, fixed=8.0, fixed_timeout_s=5.0))
    assert fixed.unattended_a({}, 32, 400, 3) == 8


@pytest.mark.parametrize("arguments", [(0, 400, 3), (32, 0, 3), (32, 400, 0), (32, 400, 4), (math.nan, 400, 3)])
def test_impossible_installations_are_refused(arguments: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        GOOD.unattended_a({}, *arguments)


def test_mennekes_is_counted_at_its_rating_when_its_fallback_is_switched_off() -> None:
    mennekes = load("mennekes_compact")
    assert mennekes.watchdog_s({"failsafe_current": 0}) is None
    assert mennekes.watchdog_s({"failsafe_current": 6}) == 10
    assert mennekes.unattended_a({"failsafe_current": 0}, 32, 400, 3) == 32


def test_alfen_falls_back_from_its_boot_on() -> None:
    alfen = load("alfen_ng9")
    assert alfen.unattended_a({"failsafe_current": 6}, 32, 400, 3) == 6
    assert alfen.unattended_a({}, 32, 400, 3) == 32
