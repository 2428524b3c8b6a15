# SPDX-License-Identifier: Apache-2.0
"""Profiles converged into the twin's IEEE 1547 device: what is written, in which order, and what is said of faults."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from derms_agent.device_state.der.converge import Der, converge, converge_all, converge_in_turn
from derms_agent.device_state.der.results import DerResult
from derms_agent.device_state.results import Status
from derms_agent.drivers.errors import BusError, ConnectionLost, NoAnswer, NotAllowed, Unreachable
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.modbus import ModbusBus
from derms_agent.drivers.settings import Outcome, Registers
from derms_agent.drivers.unit import Unit
from derms_agent.grid_code import parse
from derms_agent.grid_code.functions import FUNCTIONS, ONE_AT_A_TIME
from derms_agent.grid_code.settings import Curve, Number, Switch, settings_of
from derms_agent.profiles.point import Table
from derms_agent.twin import Fault, FaultKind, Twin

if TYPE_CHECKING:
    from agent.tests.device_state.der.conftest import Asked, Bench, Kit

pytestmark = pytest.mark.anyio

# Something of every function, and every curve with other points than the twin's.
EVERYTHING: Mapping[str, Any] = {
    "limits": {"active_power_w": 40_000, "reactive_power_injected_var": 20_000},
    "low_voltage_trip": {"enabled": True, "must_trip": [[0, 0.16], [45, 0.16], [45, 10], [70, 10], [70, 1000]]},
    "high_voltage_trip": {
        "enabled": True,
        "must_trip": [[150, 0.16], [120, 0.16], [120, 2], [110, 2], [110, 1000]],
        "momentary_cessation": [[110, 0], [110, 13]],
    },
    "low_frequency_trip": {"enabled": True, "must_trip": [[46.5, 0.16], [47.5, 20]]},
    "high_frequency_trip": {"enabled": False, "must_trip": [[52, 0.16], [51.5, 200]]},
    "frequency_droop": {
        "enabled": True,
        "deadband_over_hz": 0.017,
        "deadband_under_hz": 0.017,
        "droop_over": 0.04,
        "droop_under": 0.04,
        "response_s": 0.5,
    },
    "volt_var": {
        "enabled": True,
        "dept_ref": "va_max_pct",
        "response_s": 10,
        "points": [[90, 25], [100, 0], [100, 0], [110, -25]],
    },
    "volt_watt": {"enabled": True, "response_s": 10, "points": [[106, 100], [110, 20]]},
    "watt_var": {"enabled": False, "points": [[-100, 44], [-50, 0], [-20, 0], [20, 0], [50, 0], [100, -44]]},
    "constant_power_factor": {"enabled": False, "power_factor": 0.95, "excitation": "under_excited"},
    "constant_reactive_power": {"mode": "var_max_pct", "reactive_power_percent": 10, "enabled": False},
    "active_power_limit": {"limit_percent": 80, "enabled": True},
    "enter_service": {"delay_s": 60, "voltage_low_percent": 90, "permitted": True},
}
CURVE_93 = {"volt_var": {"enabled": True, "points": [[93, 44], [98, 0], [102, 0], [107, -44]]}}
REQUEST = (705, "AdptCrvReq")


async def run(bench: Bench, kit: Kit, declared: Mapping[str, Any], *, check: bool = False) -> DerResult:
    return await converge(kit.name, bench.unit, parse(kit.name, declared), check=check, pace=kit.pace)


def statuses(result: DerResult) -> dict[str, str]:
    return {each.function: each.status.value for each in result.functions}


def allowed(declared: Mapping[str, Any], image: Any) -> set[tuple[int, str]]:
    """Return every point that a profile may have written, by the model definitions' names alone."""
    points: set[tuple[int, str]] = set()
    for name, own in declared.items():
        function = FUNCTIONS[name]
        if function.group is not None:
            own_sets = re.compile(rf"{function.group}\.([2-9])\.(?!ReadOnly).*")
            points |= {key for key in image.fields if key[0] == function.model and own_sets.fullmatch(key[1])}
            points.add((function.model, "AdptCtlReq" if function.group == "Ctl" else "AdptCrvReq"))
        for key in own:
            setting = settings_of(function)[key]
            if isinstance(setting, Switch) or (function.group is None and not isinstance(setting, Curve)):
                points.add((function.model, setting.path))
                group, dot, _ = setting.path.partition(".")
                if dot:
                    points |= {each for each in image.fields if each[1] in {f"{group}.PF", f"{group}.Ext"}}
    return points


async def test_a_whole_profile_is_brought_in_and_then_nothing_is_left_to_do(bench: Bench, kit: Kit) -> None:
    foreseen = await run(bench, kit, EVERYTHING, check=True)
    assert not bench.twin.writes
    assert (foreseen.status, foreseen.changed) == (Status.CHANGED, True)
    done = await run(bench, kit, EVERYTHING)
    assert (done.status, done.changed, done.detail) == (Status.CHANGED, True, "")
    assert statuses(done) == statuses(foreseen) == dict.fromkeys(EVERYTHING, "changed")
    assert [each.after for each in done.functions] == [each.after for each in foreseen.functions]
    predicted = [replace(each, outcome=Outcome.CHANGED) for each in foreseen.settings if each.before != each.wanted]
    assert [each for each in done.settings if each.outcome is not Outcome.OK] == predicted
    assert {key for key in bench.written() if key not in allowed(EVERYTHING, bench.image)} == set()
    assert bench.bus.priorities == {Priority.CONFIGURATION}
    for again in (True, False):
        count = len(bench.twin.writes)
        result = await run(bench, kit, EVERYTHING, check=again)
        assert (result.status, result.changed, set(statuses(result).values())) == (Status.OK, False, {"ok"})
        assert len(bench.twin.writes) == count


async def test_what_the_device_holds_afterwards_by_its_own_registers(bench: Bench, kit: Kit) -> None:
    await run(bench, kit, EVERYTHING)
    image = bench.image

    def points(model: int, at: str, x: str, y: str) -> list[list[float]]:
        count = image.raw(model, f"{at}.ActPt")
        return [[image.get(model, f"{at}.Pt.{n}.{name}") for name in (x, y)] for n in range(1, count + 1)]

    assert points(705, "Crv.1", "V", "Var") == EVERYTHING["volt_var"]["points"]
    assert points(712, "Crv.1", "W", "Var") == EVERYTHING["watt_var"]["points"]
    for model, name, x in ((707, "low_voltage_trip", "V"), (710, "high_frequency_trip", "Hz")):
        expected = [pytest.approx(pair) for pair in EVERYTHING[name]["must_trip"]]
        assert points(model, "Crv.1.MustTrip", x, "Tms") == expected
    assert points(708, "Crv.1.MomCess", "V", "Tms") == [[110, 0], [110, 13]]
    assert [image.get(711, f"Ctl.1.{name}") for name in ("DbOf", "KUf", "RspTms")] == pytest.approx([0.017, 0.04, 0.5])
    assert image.raw(705, "Crv.1.DeptRef") == 3
    assert [image.raw(model, "Ena") for model in (705, 706, 707, 710, 711, 712)] == [1, 1, 1, 0, 1, 0]
    assert [image.get(702, name) for name in ("WMax", "VarMaxInj")] == [40_000, 20_000]
    assert [image.get(703, name) for name in ("ESDlyTms", "ESVLo")] == [60, 90]
    assert (image.get(704, "PFWInj.PF"), image.raw(704, "PFWInj.Ext")) == (pytest.approx(0.95), 1)


async def test_a_curve_goes_into_a_free_set_is_asked_for_once_and_enabled_last(bench: Bench, kit: Kit) -> None:
    result = await run(bench, kit, CURVE_93)
    assert result.status is Status.CHANGED
    written = bench.written()
    assert written == [(705, "Crv.2.Pt.1.V"), (705, "Crv.2.Pt.4.V"), REQUEST, (705, "Ena")]
    (function,) = result.functions
    assert function.before == {"points": [[92, 44], [98, 0], [102, 0], [108, -44]], "enabled": False}
    assert function.after == {"points": [[93, 44], [98, 0], [102, 0], [107, -44]], "enabled": True}
    (moved,) = (each for each in function.settings if each.name == "volt_var.points[1].V")
    assert (moved.before, moved.after, moved.outcome) == (92, 93, Outcome.CHANGED)
    at = bench.image.address(705, "Crv.1.Pt.1.V")
    assert moved.registers_before == Registers(Table.HOLDING, at, (920,))
    assert moved.registers_wanted == Registers(Table.HOLDING, at, (930,))
    assert moved.unit == "percent of nominal voltage"


async def test_a_point_moved_by_hand_is_found_exactly_and_repaired_exactly(bench: Bench, kit: Kit) -> None:
    declared = {key: value for key, value in EVERYTHING.items() if key != "enter_service"}
    await run(bench, kit, declared)
    bench.twin.writes.clear()
    bench.image.set(705, "Crv.1.Pt.2.V", 99.5)
    for check, outcome in ((True, Outcome.WOULD_CHANGE), (False, Outcome.CHANGED)):
        result = await run(bench, kit, declared, check=check)
        found = {each.name: each for each in result.settings if each.outcome is not Outcome.OK}
        assert list(found) == ["volt_var.points[2].V"]
        moved = found["volt_var.points[2].V"]
        assert (moved.before, moved.after, moved.outcome) == (99.5, 100, outcome)
    assert bench.written() == [REQUEST], "a stored set holds it still, and is adopted again"
    assert (await run(bench, kit, declared)).status is Status.OK


async def test_points_beyond_the_last_are_left_as_they_are(bench: Bench, kit: Kit) -> None:
    for index, volts in ((1, 120.0), (2, 130.0), (3, 130.0)):
        bench.image.set(705, f"Crv.{index}.Pt.5.V", volts)
    assert (await run(bench, kit, CURVE_93)).status is Status.CHANGED
    assert (705, "Crv.2.Pt.5.V") not in bench.written()


async def test_the_set_in_force_is_not_written_even_where_the_device_says_that_it_may_be(
    bench: Bench, kit: Kit
) -> None:
    bench.image.set_raw(705, "Crv.1.ReadOnly", 0)
    assert (await run(bench, kit, CURVE_93)).status is Status.CHANGED
    assert not [key for key in bench.written() if key[1].startswith("Crv.1.")]


async def test_what_was_not_asked_for_stays_in_force_though_the_set_had_something_else(bench: Bench, kit: Kit) -> None:
    for path, value in (("RspTms", 99.0), ("VRef", 97.0), ("ActPt", 2), ("Pri", 0)):
        for index in (2, 3):
            bench.image.set(705, f"Crv.{index}.{path}", value)
    result = await run(bench, kit, {"volt_var": {"dept_ref": "w_max_pct"}})
    assert result.status is Status.CHANGED
    image = bench.image
    assert [image.get(705, f"Crv.1.{name}") for name in ("RspTms", "VRef", "ActPt", "Pri")] == [5, 100, 4, 1]
    assert image.raw(705, "Crv.1.DeptRef") == 0
    assert bench.written()[-1] == REQUEST


async def test_what_is_turned_off_comes_first_and_permission_last(bench: Bench, kit: Kit) -> None:
    bench.image.set_raw(704, "PFWInjEna", 1)
    declared = {**CURVE_93, "constant_power_factor": {"enabled": False}, "enter_service": {"permitted": True}}
    bench.image.set_raw(703, "ES", 0)
    assert (await run(bench, kit, declared)).status is Status.CHANGED
    switches = [key for key in bench.written() if key[1].endswith("Ena") or key == (703, "ES")]
    assert switches == [(704, "PFWInjEna"), (705, "Ena"), (703, "ES")]
    assert bench.written()[-1] == (703, "ES")
    bench.twin.writes.clear()
    await run(bench, kit, {"volt_var": {"response_s": 9}, "enter_service": {"permitted": False}})
    assert bench.written()[0] == (703, "ES")


async def test_what_a_set_would_bring_along_is_to_be_declared(bench: Bench, kit: Kit) -> None:
    for index in (2, 3):
        bench.image.set_raw(705, f"Crv.{index}.VRefAutoTms", 300)
    result = await run(bench, kit, CURVE_93)
    assert result.status is Status.REFUSED
    assert "found VRefAutoTms in set 2, and no such value in force" in result.detail
    assert not bench.twin.writes
    bench.image.clear(705, "Crv.3.VRefAutoTms")
    assert (await run(bench, kit, CURVE_93)).status is Status.CHANGED
    assert (705, "Crv.3.Pt.1.V") in bench.written()
    declared = {"volt_var": {**CURVE_93["volt_var"], "autonomous_reference_s": 300}}
    assert (await run(bench, kit, declared)).status is Status.CHANGED
    assert bench.image.raw(705, "Crv.1.VRefAutoTms") == 300


async def test_only_the_switch_is_written_where_only_that_differs(bench: Bench, kit: Kit) -> None:
    result = await run(bench, kit, {"volt_var": {"enabled": True, "response_s": 5}})
    assert (result.status, bench.written()) == (Status.CHANGED, [(705, "Ena")])


async def test_a_power_factor_and_its_excitation_go_out_together(bench: Bench, kit: Kit) -> None:
    await run(bench, kit, {"constant_power_factor": {"power_factor": 0.9, "enabled": True}})
    assert [write.words for write in bench.twin.writes] == [(900, 0), (1,)]
    assert bench.written() == [(704, "PFWInj.PF"), (704, "PFWInj.Ext"), (704, "PFWInjEna")]


async def test_a_device_that_gives_few_registers_at_once_is_read_in_pieces(kit: Kit) -> None:
    bench = kit.bench(max_read=20)
    result = await run(bench, kit, CURVE_93)
    assert result.status is Status.CHANGED
    assert (await run(bench, kit, CURVE_93)).status is Status.OK


@pytest.mark.parametrize(
    ("kind", "status", "says"),
    [
        (FaultKind.ADOPTION_FAILED, Status.VERIFY_FAILED, "the device says FAILED"),
        (FaultKind.ADOPTION_STALE, Status.VERIFY_FAILED, "the device says COMPLETED; its first set is not what"),
        (FaultKind.ADOPTION_ENDLESS, Status.INDETERMINATE, "did not end in time"),
    ],
)
@pytest.mark.parametrize("name", ["volt_var", "frequency_droop", "low_voltage_trip"])
async def test_an_adoption_that_does_not_happen(
    *, bench: Bench, kit: Kit, kind: FaultKind, status: Status, says: str, name: str
) -> None:
    bench.twin.fault(kit.name, Fault(kind=kind))
    declared = {name: {**EVERYTHING[name], "enabled": True}, "enter_service": {"delay_s": 60}}
    result = await run(bench, kit, declared)
    assert (result.status, result.changed) == (status, False)
    assert says in result.detail
    assert statuses(result) == {name: status.value, "enter_service": "unknown"}
    requests = [key for key in bench.written() if key[1] in {"AdptCrvReq", "AdptCtlReq"}]
    assert len(requests) == 1
    assert not [key for key in bench.written() if key[1] == "Ena" or key[0] == 703], "nothing is enabled"
    bench.twin.clear()
    assert (await run(bench, kit, declared)).status is Status.CHANGED


async def test_a_failure_from_before_does_not_count_and_neither_does_an_idle_zero(bench: Bench, kit: Kit) -> None:
    for left in (2, 0):
        bench.image.set_raw(705, "AdptCrvRslt", left)
        points = [[90 + left, 44], [98, 0]]
        assert (await run(bench, kit, {"volt_var": {"points": points}})).status is Status.CHANGED


def lost(error: type[BusError], at: int, *, happened: bool) -> Any:
    """Return what fails the write with that number."""
    count = iter(range(10_000))

    def fault(asked: Asked) -> BusError | None:
        return error("lost", may_have_happened=happened) if asked.words and next(count) == at else None

    return fault


@pytest.mark.parametrize("at", range(4))
async def test_a_write_whose_answer_is_lost_is_read_back_and_never_sent_again(bench: Bench, kit: Kit, at: int) -> None:
    bench.bus.fault = lost(NoAnswer, at, happened=True)
    result = await run(bench, kit, CURVE_93)
    assert result.status is Status.CHANGED
    sent = [(write.address, write.words) for write in bench.twin.writes]
    assert len(sent) == len(set(sent)) == 4


@pytest.mark.parametrize(
    ("at", "says"),
    [(0, "nothing was adopted"), (1, "nothing was adopted"), (2, "nobody knows"), (3, "it is not switched")],
)
async def test_a_write_that_vanished_is_indeterminate_and_never_sent_again(
    bench: Bench, kit: Kit, at: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    write = bench.twin.write

    def vanishing(*arguments: Any, **options: Any) -> None:
        sent.append(arguments[3])
        if len(sent) - 1 != at:
            write(*arguments, **options)

    monkeypatch.setattr(bench.twin, "write", vanishing)
    bench.bus.fault = lost(ConnectionLost, at, happened=True)
    result = await run(bench, kit, CURVE_93)
    assert result.status is Status.INDETERMINATE
    assert says in result.detail
    assert len(sent) == len(set(sent)) == at + 1


@pytest.mark.parametrize(("error", "status"), [(Unreachable, Status.UNKNOWN), (NotAllowed, Status.REFUSED)])
async def test_a_write_that_did_not_leave_stops_the_device(
    bench: Bench, kit: Kit, error: type[BusError], status: Status
) -> None:
    bench.bus.fault = lost(error, 1, happened=False)
    result = await run(bench, kit, {**CURVE_93, "watt_var": {"points": [[20, 0], [100, -10]]}})
    assert statuses(result) == {"volt_var": status.value, "watt_var": "unknown"}
    assert not result.changed
    assert REQUEST not in bench.written()


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"volt_var": {"points": [[90 + n, 0] for n in range(7)]}}, "found 7, expected at most 6 points, which is NPt"),
        ({"volt_var": {"autonomous_reference_s": 300}}, "found no Crv[1].VRefAutoTms in model 705"),
        ({"limits": {"active_power_w": 60_000}}, "found 60000, expected at most 50000 W, which is WMaxRtg"),
        ({"volt_var": {"points": [[92.01, 44], [92.04, 0]]}}, "in the device's steps"),
        ({"limits": {"active_power_w": 3}}, "expected within 0.005 of what the device can hold"),
    ],
)
async def test_what_a_device_cannot_hold_is_refused_before_anything_is_written(
    bench: Bench, kit: Kit, declared: dict[str, Any], says: str
) -> None:
    result = await run(bench, kit, {"enter_service": {"delay_s": 60}, **declared})
    (name,) = declared
    assert result.status is Status.REFUSED
    assert says in result.detail
    assert statuses(result) == {name: "refused", "enter_service": "unknown"}
    assert result.detail.startswith(f"nothing was written: {name}.")
    assert not bench.twin.writes


async def test_sets_that_cannot_be_written_are_refused_only_where_one_is_needed(bench: Bench, kit: Kit) -> None:
    for index in (2, 3):
        bench.image.set_raw(705, f"Crv.{index}.ReadOnly", 1)
    result = await run(bench, kit, CURVE_93)
    assert result.status is Status.REFUSED
    assert "found 3 sets in model 705 and none to write" in result.detail
    assert (await run(bench, kit, {"volt_var": {"response_s": 5}})).status is Status.OK
    assert not bench.twin.writes


async def test_the_set_that_a_running_reversion_falls_back_to_is_left_alone(bench: Bench, kit: Kit) -> None:
    bench.image.set_raw(705, "RvrtTms", 600)
    bench.image.set_raw(705, "RvrtCrv", 2)
    await run(bench, kit, CURVE_93)
    assert (705, "Crv.3.Pt.1.V") in bench.written()
    assert not [key for key in bench.written() if key[1].startswith("Crv.2.")]


async def test_a_controller_without_a_model_is_named_and_left_alone(kit: Kit) -> None:
    bench = kit.bench([1, 701, 702, 703, 704])
    result = await run(bench, kit, CURVE_93)
    assert result.status is Status.REFUSED
    assert "volt_var: found no SunSpec model 705" in result.detail
    assert "cannot do IEEE 1547-2018" in result.detail
    assert result.capability is not None
    assert result.capability.missing == tuple(range(705, 713))
    assert not bench.twin.writes


async def test_who_does_not_answer_is_unreachable(bench: Bench, kit: Kit) -> None:
    bench.twin.fault(kit.name, Fault(kind=FaultKind.SILENT))
    result = await run(bench, kit, CURVE_93)
    assert (result.status, result.changed, result.functions) == (Status.UNREACHABLE, False, ())


async def test_what_is_no_sunspec_device_is_refused(bench: Bench, kit: Kit) -> None:
    bench.bus.fault = lambda _asked: None
    bench.image.base += 1
    result = await run(bench, kit, CURVE_93)
    assert result.status is Status.REFUSED
    assert "found no SunS" in result.detail


async def test_models_that_moved_since_they_were_found_are_not_written(bench: Bench, kit: Kit) -> None:
    discovered = bench.unit

    class Moved(Unit):
        async def read_all(self, *arguments: Any, **options: Any) -> dict[str, tuple[int, ...]]:
            words = await super().read_all(*arguments, **options)
            return {name: (705, 1) if name == "705.header" else found for name, found in words.items()}

    bench.unit = Moved(bench.bus, 1, discovered.profile, discovered.clock)
    result = await run(bench, kit, CURVE_93)
    assert result.status is Status.UNKNOWN
    assert "expected model 705 of" in result.detail
    assert not bench.twin.writes


async def test_a_curve_set_by_somebody_else_meanwhile_is_seen(bench: Bench, kit: Kit) -> None:
    """The plan is made anew from what the device holds just before it is written."""
    await run(bench, kit, CURVE_93, check=True)
    in_discovery, bench.bus.reads = bench.bus.reads, 0

    def meddle(asked: Asked) -> None:
        if not asked.words and bench.bus.reads == in_discovery + 1:
            bench.image.set(705, "Crv.1.RspTms", 7.0)

    bench.bus.fault = meddle
    result = await run(bench, kit, CURVE_93)
    assert result.status is Status.CHANGED
    assert bench.image.get(705, "Crv.1.RspTms") == 7


async def test_one_device_that_fails_does_not_stop_the_others(kit: Kit) -> None:
    good, bad = kit.bench(), kit.bench()
    bad.twin.fault(kit.name, Fault(kind=FaultKind.SILENT))
    profile = parse("both", CURVE_93)
    ders = [Der("a", "bus-1", bad.unit, profile), Der("b", "bus-1", good.unit, profile)]
    results = await converge_all(ders, check=False, pace=kit.pace)
    assert {name: result.status for name, result in results.items()} == {
        "a": Status.UNREACHABLE,
        "b": Status.CHANGED,
    }


@st.composite
def profiles(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a profile that can be parsed: some settings of some functions."""
    names = draw(st.lists(st.sampled_from(sorted(FUNCTIONS)), min_size=1, max_size=4, unique=True))
    declared: dict[str, Any] = {}
    for name in names:
        settings = settings_of(FUNCTIONS[name])
        keys = draw(st.lists(st.sampled_from(sorted(settings)), min_size=1, unique=True))
        declared[name] = {key: draw(_value(name, settings[key])) for key in keys}
    for name in [name for name in ONE_AT_A_TIME if name in declared][1:]:
        declared[name] |= {key: False for key in declared[name] if key.endswith("enabled")}
    service = declared.get("enter_service", {})
    for low, high in (("voltage_low_percent", "voltage_high_percent"), ("frequency_low_hz", "frequency_high_hz")):
        if low in service and high in service and service[low] >= service[high]:
            del service[low]
    return declared


def _value(name: str, setting: Any) -> st.SearchStrategy[Any]:
    if isinstance(setting, Number):
        low, high = max(setting.low, -1e5), min(setting.high, 6e4)
        return st.floats(low, high).map(lambda value: max(low, round(value, 1)))
    if not isinstance(setting, Curve):
        return (
            st.booleans()
            if isinstance(setting, Switch) or "enabled" in setting.names
            else st.sampled_from(setting.names)
        )
    xs, ys = (
        st.integers(int(axis.low), int(min(axis.high, 1000))).map(float) | st.floats(axis.low, min(axis.high, 1000))
        for axis in (setting.x, setting.y)
    )
    rising = name.startswith("low_")

    def curve(points: tuple[list[float], list[float]]) -> list[list[float]]:
        pairs = zip(sorted(points[0]), sorted(points[1], reverse=not rising), strict=False)
        return [list(pair) for pair in pairs]

    size = st.integers(2, 8)
    return size.flatmap(
        lambda n: st.tuples(
            st.lists(xs, min_size=n, max_size=n, unique=True), st.lists(ys, min_size=n, max_size=n)
        ).map(curve)
    )


@given(
    declared=profiles(),
    scales=st.dictionaries(
        st.sampled_from([(705, "V_SF"), (705, "DeptRef_SF"), (707, "Tms_SF"), (711, "Db_SF"), (703, "Hz_SF")]),
        st.sampled_from([-3, -2, -1, 0, 1, -0x8000, 20]),
    ),
    locked=st.sets(st.sampled_from([(705, 2), (705, 3), (707, 2), (711, 2), (711, 3)])),
    faults=st.dictionaries(
        st.integers(0, 12), st.sampled_from([(NoAnswer, True), (ConnectionLost, True), (Unreachable, False)])
    ),
    kind=st.sampled_from([None, FaultKind.ADOPTION_FAILED, FaultKind.ADOPTION_STALE, FaultKind.ADOPTION_ENDLESS]),
)
def test_whatever_happens_no_register_is_written_that_nobody_asked_for(
    *,
    kit: Kit,
    declared: dict[str, Any],
    scales: dict[tuple[int, str], int],
    locked: set[tuple[int, int]],
    faults: dict[int, tuple[type[BusError], bool]],
    kind: FaultKind | None,
) -> None:
    bench = kit.bench()
    bench.bus.takes_s = 0.2
    for (model, path), scale in scales.items():
        bench.image.set_raw(model, path, scale)
    for model, index in locked:
        bench.image.set_raw(model, f"{'Ctl' if model == 711 else 'Crv'}.{index}.ReadOnly", 1)
    if kind is not None:
        bench.twin.fault(kit.name, Fault(kind=kind))
    sent: list[Asked] = []

    def fault(asked: Asked) -> BusError | None:
        if asked.words:
            sent.append(asked)
        error = faults.get(len(sent) - 1) if asked.words else None
        return None if error is None else error[0]("drawn", may_have_happened=error[1])

    pace = replace(kit.pace, every_s=0.0001)
    foreseen = anyio.run(lambda: converge(kit.name, bench.unit, parse("x", declared), check=True, pace=pace))
    assert not bench.twin.writes
    bench.bus.fault = fault
    done = anyio.run(lambda: converge(kit.name, bench.unit, parse("x", declared), check=False, pace=pace))
    may = allowed(declared, bench.image)
    assert [key for key in bench.written() if key not in may] == []
    requests = [key for key in bench.written() if key[1].startswith("Adpt")]
    assert len(requests) == len(set(requests)), "a request is sent once"
    assert len(sent) == len(set(sent)), "nothing is sent twice"
    event(done.status.value)
    if foreseen.status in (Status.OK, Status.REFUSED):
        assert not bench.twin.writes
        assert done.status is foreseen.status
    if done.status is Status.CHANGED:
        assert [each.after for each in done.functions] == [each.after for each in foreseen.functions]
        bench.bus.fault = None
        again = anyio.run(lambda: converge(kit.name, bench.unit, parse("x", declared), check=False, pace=pace))
        assert again.status is Status.OK


async def test_over_a_real_connection_to_a_twin_in_real_time(kit: Kit) -> None:
    made, known = kit.depot()
    async with Twin(made, profiles=known) as twin:
        host, port = (await twin.serve(lambda _host, _port: ("127.0.0.1", 0)))["bus-1"]
        bus = ModbusBus(replace(made.buses["bus-1"], host=host, port=port))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bus.run)
            unit = Unit(bus, 1, known["sunspec_der"])
            profile = parse(kit.name, CURVE_93)
            first = await converge(kit.name, unit, profile, check=False)
            second = await converge(kit.name, unit, profile, check=False)
            tasks.cancel_scope.cancel()
        assert (first.status, second.status) == (Status.CHANGED, Status.OK)
        assert twin.inverters[kit.name].image.get(705, "Crv.1.Pt.1.V") == 93


async def test_limits_that_rise_come_after_those_that_fall_and_not_at_all_while_these_are_in_doubt(kit: Kit) -> None:
    order: list[str] = []

    def watched(name: str, watts: float) -> Der:
        unit = benches[name].unit
        return Der(name, f"bus of {name}", unit, parse(name, {"limits": {"active_power_w": watts}}))

    def noting(name: str) -> Callable[[Asked], None]:
        return lambda asked: order.append(name) if asked.words else None

    benches = {name: kit.bench() for name in ("rises", "falls", "stays")}
    before = await converge_in_turn([watched(name, 20_000) for name in benches], check=False, pace=kit.pace)
    assert {result.status for result in before.values()} == {Status.CHANGED}
    for name, bench in benches.items():
        bench.bus.fault = noting(name)
    wanted = {"rises": 30_000, "falls": 10_000, "stays": 20_000}
    ders = [watched(name, watts) for name, watts in wanted.items()]
    foreseen = await converge_in_turn(ders, check=True, pace=kit.pace)
    assert order == []
    done = await converge_in_turn(ders, check=False, pace=kit.pace)
    assert order == ["falls", "rises"]
    statuses = {"rises": Status.CHANGED, "falls": Status.CHANGED, "stays": Status.OK}
    assert {name: one.status for name, one in foreseen.items()} == statuses
    assert {name: one.status for name, one in done.items()} == statuses
    order.clear()
    benches["stays"].twin.fault(kit.name, Fault(kind=FaultKind.SILENT))
    doubtful = await converge_in_turn([watched("rises", 40_000), ders[2]], check=False, pace=kit.pace)
    assert (order, doubtful["rises"].status, doubtful["stays"].status) == ([], Status.REFUSED, Status.UNREACHABLE)
    assert doubtful["rises"].detail.endswith("limits are not raised while it is not known what stays hold")
