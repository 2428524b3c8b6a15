# SPDX-License-Identifier: Apache-2.0
"""A declared IEEE 1547 profile: what is taken, what is refused and how, and the defaults by category."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.device_state.capability import capability_of
from derms_agent.device_state.der.adoption import COMPLETED, FAILED, IN_PROGRESS, Shown, judge
from derms_agent.device_state.der.registers import ModelRegisters
from derms_agent.device_state.results import Status
from derms_agent.drivers.sunspec import FoundMap, FoundModel
from derms_agent.drivers.sunspec_model import definition
from derms_agent.grid_code import ProfileProblem, categories, parse
from derms_agent.grid_code.functions import FUNCTIONS, DerProfile
from derms_agent.grid_code.settings import DEADBAND, POWER, SHARE, TIME, VOLTAGE, Shape, Switch, settings_of
from derms_agent.profiles.point import OutOfRange

CATEGORY_B = [[92, 44], [98, 0], [102, 0], [108, -44]]


def test_a_profile_is_taken_as_it_is_said() -> None:
    profile = parse(
        "icu-1",
        {
            "volt_var": {"enabled": True, "dept_ref": "var_max_pct", "response_s": 5, "points": CATEGORY_B},
            "low_voltage_trip": {"must_trip": [[0, 2], [50, 2], [50, 21], [88, 21]], "may_trip": []},
            "enter_service": {"permitted": True},
        },
    )
    assert [name for name, _ in profile.functions()] == ["low_voltage_trip", "volt_var", "enter_service"]
    assert profile.volt_var is not None
    assert profile.volt_var.points == ((92, 44), (98, 0), (102, 0), (108, -44))
    assert profile.volt_var.priority is None
    assert profile.low_voltage_trip is not None
    assert profile.low_voltage_trip.may_trip == ()


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        (None, "icu-1: found nothing, expected a mapping with some of category, limits"),
        ({"volt_vra": {}}, "icu-1: found 'volt_vra', expected one of category, limits"),
        ({"volt_vra": {}}, "(did you mean volt_var?)"),
        ({"volt_var": {}}, "icu-1: volt_var: found nothing, expected at least one of dept_ref, priority"),
        ({"volt_var": {"point": []}}, "icu-1: volt_var: found 'point', expected one of dept_ref"),
        ({"volt_var": {"enabled": 1}}, "icu-1: volt_var.enabled: found 1, expected true or false"),
        ({"volt_var": {"dept_ref": "w"}}, "volt_var.dept_ref: found 'w', expected one of w_max_pct, var_max_pct"),
        ({"volt_var": {"response_s": "5"}}, "volt_var.response_s: found '5', expected a number from 0 to 86400 s"),
        ({"volt_var": {"response_s": True}}, "volt_var.response_s: found True, expected a number"),
        ({"volt_var": {"response_s": float("nan")}}, "volt_var.response_s: found nan, expected a number"),
        ({"volt_var": {"points": [[92, 44]]}}, "volt_var.points: found [[92, 44]], expected at least 2 points"),
        ({"volt_var": {"points": [[92, 44], [98]]}}, "volt_var.points[2]: found [98], expected [percent of nominal"),
        ({"volt_var": {"points": [[92, 144], [98, 0]]}}, "volt_var.points[1]: found 144, expected a number from -100"),
        ({"volt_var": {"points": "92"}}, "volt_var.points: found '92', expected a list of [percent of nominal"),
        ({"volt_var": {"points": [[98, 0], [92, 44]]}}, "expected points with the first number not falling"),
        ({"volt_var": {"points": [[92, 0], [98, 44]]}}, "expected points with the first number not falling"),
        ({"volt_var": {"points": [[92, 44], [92, 0]]}}, "expected points with the first number not falling"),
        ({"low_voltage_trip": {"must_trip": [[50, 21], [88, 2]]}}, "expected points with a time that is no longer"),
        ({"high_frequency_trip": {"must_trip": [[61, 1], [62, 9]]}}, "expected points with a time that is no longer"),
        ({"constant_power_factor": {"power_factor": 1.1}}, "power_factor: found 1.1, expected a number from 0 to 1"),
        (
            {"enter_service": {"voltage_low_percent": 106, "voltage_high_percent": 105}},
            "enter_service.voltage_low_percent: found 106, expected less than voltage_high_percent, which is 105",
        ),
        (
            {"volt_var": {"enabled": True}, "constant_power_factor": {"enabled": True}},
            "icu-1: volt_var.enabled: found True, expected false beside constant_power_factor: one of",
        ),
        ({"category": "B"}, "icu-1: category: found 'B', expected a mapping with some of normal, abnormal"),
        ({"category": {"normal": "C"}}, "icu-1: category.normal: found 'C', expected one of A, B"),
        ({"category": {"abnormal": "IV"}}, "icu-1: category.abnormal: found 'IV', expected one of I, II, III"),
    ],
)
def test_what_cannot_be_is_said_with_device_key_found_and_expected(declared: Any, problem: str) -> None:
    with pytest.raises(ProfileProblem) as caught:
        parse("icu-1", declared)
    assert problem in str(caught.value)


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(ProfileProblem) as caught:
        parse("icu-1", {"volt_var": {"enabled": 1, "priority": "none"}, "enter_service": {"delay_s": -1}})
    assert len(caught.value.mistakes) == 3


@pytest.mark.parametrize(
    ("normal", "abnormal"), list(product([None, *categories.NORMAL], [None, *categories.ABNORMAL]))
)
def test_every_category_is_a_profile_of_its_own(normal: str | None, abnormal: str | None) -> None:
    category = {kind: name for kind, name in (("normal", normal), ("abnormal", abnormal)) if name}
    profile = parse("icu-1", {"category": category})
    names = {name for name, _ in profile.functions()}
    assert names == set(categories.defaults(normal, abnormal))
    assert ("volt_var" in names, "low_voltage_trip" in names) == (normal is not None, abnormal is not None)


def test_every_default_says_which_public_source_has_the_same() -> None:
    for normal, abnormal in product(categories.NORMAL, categories.ABNORMAL):
        for name, default in categories.defaults(normal, abnormal).items():
            assert default.verified_by, name
            assert set(default.verified_by) <= categories.sources().keys(), name
            assert default.clause, name


def test_what_is_declared_goes_before_the_category_and_null_leaves_out() -> None:
    category = {"normal": "B", "abnormal": "III"}
    plain = parse("icu-1", {"category": category})
    off = {"constant_power_factor": {"enabled": False}}
    mine = parse(
        "icu-1", {"category": category, "volt_var": {"enabled": True}, "volt_watt": None, "enter_service": None, **off}
    )
    assert (plain.volt_var is not None, mine.volt_var is not None) == (True, True)
    assert plain.volt_var is not None
    assert mine.volt_var is not None
    assert (plain.volt_var.enabled, mine.volt_var.enabled) == (False, True)
    assert mine.volt_var.points == plain.volt_var.points == tuple(tuple(pair) for pair in CATEGORY_B)
    assert (mine.volt_watt, mine.enter_service) == (None, None)


def test_every_setting_is_a_point_that_its_model_lets_one_write() -> None:
    assert {each.name for each in DerProfile.__dataclass_fields__.values()} == set(FUNCTIONS)
    for name, function in FUNCTIONS.items():
        writable = set(_writable(definition(function.model), ""))
        for key, setting in settings_of(function).items():
            prefix = "" if function.group is None or isinstance(setting, Switch) else f"{function.group}."
            paths = [setting.path] if hasattr(setting, "path") else [setting.count, *setting.paths(1)]
            for path in paths:
                assert prefix + path.replace("[1]", "") in writable, f"{name}.{key}"


def _writable(group: Any, prefix: str) -> list[str]:
    own = [prefix + point["name"] for point in group.get("points", ()) if point.get("access") == "RW"]
    return own + [path for inner in group.get("groups", ()) for path in _writable(inner, f"{prefix}{inner['name']}.")]


numbers = st.floats(0, 150, allow_nan=False)


@given(st.lists(st.tuples(numbers, numbers), max_size=6))
def test_a_shape_does_not_depend_on_which_end_of_a_trip_curve_is_listed_first(
    points: list[tuple[float, float]],
) -> None:
    there, back = tuple(points), tuple(reversed(points))
    for shape in (Shape.LOW_TRIP, Shape.HIGH_TRIP):
        assert shape.fits(there) == shape.fits(back)
    mirrored = tuple((-x, y) for x, y in there)
    assert Shape.LOW_TRIP.fits(there) == Shape.HIGH_TRIP.fits(mirrored)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=6))
def test_a_control_curve_has_one_value_for_each_voltage_and_never_rises(points: list[tuple[float, float]]) -> None:
    fits = Shape.FALLING.fits(tuple(points))
    sorts = sorted(points, key=lambda point: (point[0], -point[1]))
    one_each = len({x for x, _ in points}) == len(set(points))
    assert fits == (
        sorts == points and sorted((y for _, y in points), reverse=True) == [y for _, y in points] and one_each
    )


def model_705(scale: int) -> ModelRegisters:
    """Return a volt-var model of one curve of two points, whose voltages have this scale."""
    words = [0xFFFF] * 30
    words[:2] = 705, 28
    words[5:7] = 2, 1
    words[12] = scale & 0xFFFF
    words[13] = words[14] = 0
    return ModelRegisters.of(FoundModel(705, 40100, 28, tuple(words)))


@given(st.floats(0, 200, allow_nan=False), st.integers(-2, 1))
def test_a_device_gets_the_nearest_of_its_steps_or_nothing(asked: float, scale: int) -> None:
    registers = model_705(scale)
    path = "Crv[1].Pt[1].V"
    step = Fraction(10) ** scale
    nearest = round(Fraction(repr(asked)) / step) * step
    try:
        words = registers.encoded("v", path, asked, VOLTAGE)
    except OutOfRange:
        assert abs(float(nearest) - asked) > VOLTAGE.tolerance
        return
    assert registers.shown(path, words) == pytest.approx(float(nearest))
    assert registers.encoded("v", path, float(nearest), VOLTAGE) == words


@given(st.floats(1, 60_000, allow_nan=False))
def test_a_limit_of_power_never_grows_by_rounding(asked: float) -> None:
    registers = model_705(0)
    try:
        words = registers.encoded("p", "Crv[1].Pt[1].V", asked, POWER)
    except OutOfRange:
        assert asked - int(asked) > POWER.tolerance * asked
        return
    held = registers.shown("Crv[1].Pt[1].V", words)
    assert isinstance(held, int)
    assert 0 <= asked - held < 1


def test_a_step_too_coarse_for_what_is_asked_is_refused_with_what_it_would_be() -> None:
    with pytest.raises(OutOfRange, match=r"v: found 91\.7, expected within 0\.25 of .* steps of 1 is 92 percent"):
        model_705(0).encoded("v", "Crv[1].Pt[1].V", 91.7, VOLTAGE)


def test_without_a_scale_nothing_is_encoded() -> None:
    with pytest.raises(OutOfRange, match="expected a device that tells V_SF"):
        model_705(-0x8000).encoded("v", "Crv[1].Pt[1].V", 100, VOLTAGE)


def test_tolerances_tell_a_default_from_its_neighbour() -> None:
    assert not DEADBAND.near(0.036, 0.04)
    assert not TIME.near(0.16, 0.2)
    assert SHARE.near(44, 44)


shown = st.none() | st.builds(Shown, st.booleans(), st.sampled_from([IN_PROGRESS, COMPLETED, FAILED, 0xFFFF, None]))
results = st.sampled_from([IN_PROGRESS, COMPLETED, FAILED, None])


@given(shown, results, st.booleans(), st.booleans())
def test_only_the_first_set_proves_an_adoption(
    found: Shown | None, before: int | None, doubt: bool, last: bool
) -> None:
    verdict = judge(found, before, doubtful=doubt, last=last)
    adopted = found is not None and found.adopted
    assert (verdict is not None and verdict.status is Status.CHANGED) == adopted
    if last:
        assert verdict is not None
    if doubt and not adopted and last:
        assert verdict is not None
        assert verdict.status is Status.INDETERMINATE


@pytest.mark.parametrize(
    ("result", "before", "last", "status"),
    [
        (COMPLETED, COMPLETED, False, None),
        (COMPLETED, COMPLETED, True, Status.VERIFY_FAILED),
        (IN_PROGRESS, COMPLETED, False, None),
        (IN_PROGRESS, IN_PROGRESS, True, Status.INDETERMINATE),
        (FAILED, COMPLETED, False, Status.VERIFY_FAILED),
        (FAILED, FAILED, False, None),
        (FAILED, FAILED, True, Status.VERIFY_FAILED),
    ],
)
def test_a_result_point_alone(result: int, before: int, last: bool, status: Status | None) -> None:
    verdict = judge(Shown(False, result), before, doubtful=False, last=last)
    assert (verdict and verdict.status) == status


def test_a_controller_that_cannot_do_the_standard_is_named() -> None:
    def found(*ids: int) -> FoundMap:
        return FoundMap(40000, tuple(FoundModel(each, 0, 0, ()) for each in ids))

    able = capability_of(found(1, *range(701, 714)))
    assert (able.ieee_1547_2018, able.detail, able.models) == (True, "", tuple(range(701, 713)))
    unable = capability_of(found(1, 101, *range(701, 711), 712))
    assert unable.missing == (711,)
    assert unable.detail == "cannot do IEEE 1547-2018: found no SunSpec model 711 (frequency droop)"


def test_the_documentations_profile_is_taken_and_every_setting_is_in_its_table() -> None:
    document = (Path(__file__).parents[4] / "docs" / "der-settings.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    profile = parse("icu-1", yaml.safe_load(text))
    assert profile.watt_var is None
    rows = re.findall(r"^\| (`\w+_?\w*`.*?) \| ([\d, ]+) \| (.*) \|$", document, re.MULTILINE)
    listed = {name: (models, settings) for names, models, settings in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(listed) == set(FUNCTIONS)
    for name, (models, settings) in listed.items():
        assert str(FUNCTIONS[name].model) in models
        if name not in {"low_frequency_trip", "high_frequency_trip"}:  # the same as the ones above them
            assert set(settings_of(FUNCTIONS[name])) <= set(re.findall(r"`(\w+)`", settings)), name
