# SPDX-License-Identifier: Apache-2.0
"""Enclosure, charger and battery each hold an EVSE by their own cut-off, and by no other's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from agent.tests.orchestrator.conftest import Play, new_controller

from derms_agent.control import thermal
from derms_agent.control.thermal import SensorKind
from derms_agent.model import Rank, Value
from derms_agent.orchestrator.controller import Told

if TYPE_CHECKING:
    from derms_agent.orchestrator.site import Site

NAME = "charger-003"


@dataclass
class Cabinet(Play):
    """A depot in which a charger shows its enclosure's temperature as well as its board's."""

    enclosure_c: dict[str, float] = field(default_factory=dict)

    def shown(self, device_name: str) -> dict[str, Value]:
        found: Mapping[str, Value] = super().shown(device_name)
        celsius = self.enclosure_c.get(device_name)
        return dict(found) if celsius is None else {**found, "enclosure_temperature": celsius}

    def heat(self, kind: SensorKind, celsius: float) -> None:
        """Let a sensor show a temperature from now on, and control see it."""
        if kind is SensorKind.BATTERY:
            self.controller.tell(NAME, Told(battery=thermal.Temperature(celsius, self.now_s)))
        elif kind is SensorKind.CHARGER:
            self.boards_c[NAME] = celsius
        else:
            self.enclosure_c[NAME] = celsius
        self.step(2)

    def left_w(self) -> float:
        bound = self.controller.cooled(NAME)
        return float("inf") if bound is None else bound.high


@pytest.fixture
def one(site: Site) -> Cabinet:
    profile = site.profiles[NAME]
    point = replace(profile.points["temperature"], name="enclosure_temperature", address=4001)
    shows_both = replace(
        profile,
        points={**profile.points, "enclosure_temperature": point},
        poll=(*profile.poll, "enclosure_temperature"),
    )
    made = Cabinet(new_controller(replace(site, profiles={**site.profiles, NAME: shows_both})))
    made.step(3)
    made.vehicles([NAME])
    made.step(40)
    assert made.limit_a[NAME] == 16.0
    return made


@pytest.mark.parametrize("kind", list(SensorKind))
def test_at_its_own_cut_off_nothing_flows_and_just_below_little(one: Cabinet, kind: SensorKind) -> None:
    cut_off_c = thermal.DEFAULTS[kind].cut_off_c
    one.heat(kind, cut_off_c - 0.2)
    assert 0.0 <= one.left_w() <= 0.1 * 16.0 * one.controller.watts_per_a(NAME) + 1
    bound = one.controller.cooled(NAME)
    assert bound is not None
    assert bound.high_by is not None
    assert bound.high_by.rank is Rank.THERMAL_AND_SOC
    assert bound.high_by.source.startswith(f"{kind.value} of {NAME} ")
    one.heat(kind, cut_off_c)
    assert one.left_w() == 0.0
    assert one.limit_a[NAME] == 0.0


@pytest.mark.parametrize("kind", list(SensorKind))
def test_a_cut_off_that_is_declared_lower_holds_for_its_own_kind(one: Cabinet, kind: SensorKind) -> None:
    controller, which = one.controller, f"{kind.value}_sensor"
    sensor: thermal.Sensor = getattr(controller.policy, which)
    lower = replace(sensor, cut_off_c=sensor.cut_off_c - 3.0)
    one.heat(kind, lower.cut_off_c)
    assert one.left_w() > 0.0
    declared: dict[str, Any] = {which: lower}
    controller.policy = replace(controller.policy, **declared)
    one.heat(kind, lower.cut_off_c)
    assert one.left_w() == 0.0


def test_a_board_as_hot_as_no_cabinet_may_be_charges_on(one: Cabinet) -> None:
    one.heat(SensorKind.CHARGER, thermal.DEFAULTS[SensorKind.ENCLOSURE].cut_off_c + 1.0)
    assert one.limit_a[NAME] >= 12.0
