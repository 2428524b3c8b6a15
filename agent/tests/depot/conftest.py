# SPDX-License-Identifier: Apache-2.0
"""Profiles of devices that do not exist, so that the depot's checks are tested apart from what vendors build."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from derms_agent.profiles import Profile, parse

WALLBOX = """
name: wallbox
title: A wallbox whose watchdog any write of the limit feeds
kind: charger
source: none, it is made up
points:
  state: {table: input, address: 0, type: u16, states: {0: idle, 1: charging}}
  active_power: {table: input, address: 1, type: u16, unit: W}
  energy: {table: input, address: 2, type: u32, unit: Wh}
  voltages: {table: input, address: 4, type: string, length: 6}
  current_limit: {table: holding, address: 261, type: u16, scale: 0.1, unit: A, access: read_write, minimum: 6,
    maximum: 32, or_zero: true}
  failsafe_current: {table: holding, address: 262, type: u16, scale: 0.1, unit: A, access: read_write, minimum: 6,
    maximum: 16, or_zero: true, setting: true}
  failsafe_timeout: {table: holding, address: 257, type: u16, unit: s, access: read_write, minimum: 1, maximum: 600,
    setting: true}
  standby: {table: holding, address: 258, type: u16, access: read_write, states: {0: allowed, 4: prevented},
    setting: true}
  password: {table: holding, address: 300, type: string, length: 4, access: write, blind: true, setting: true,
    secret: true}
control: {point: current_limit, quantity: current, minimum: 6, step: 0.1}
fallback: {current: failsafe_current, timeout: failsafe_timeout, fixed_timeout_s: 30, refreshed_by: write,
  after_boot: fallback}
poll: [state, active_power, energy, voltages]
"""
CABINET = """
name: cabinet
title: A DC cabinet with two connectors and a fallback in W
kind: charger
source: none, it is made up
connectors: 2
points:
  active_power: {table: input, address: 104, stride: 100, type: u32, unit: W}
  power_limit: {table: holding, address: 100, stride: 100, type: u32, unit: W, access: read_write, minimum: 0}
  failsafe_power: {table: holding, address: 10, type: u32, unit: W, access: read_write, minimum: 0, setting: true}
control: {point: power_limit, quantity: power, minimum: 1000, step: 1}
fallback: {power: failsafe_power, fixed_timeout_s: 30, refreshed_by: request, after_boot: fallback}
poll: [active_power]
"""
METER = """
name: meter
title: A meter
kind: meter
source: none, it is made up
points:
  active_power: {table: input, address: 0, type: i32, unit: W}
poll: [active_power]
"""
ICU = """
name: icu
title: An inverter that speaks SunSpec
kind: inverter
protocol: sunspec
source: none, it is made up
models: [701, 704]
base_addresses: [40000]
sunspec_points:
  active_power: {model: 701, point: W, unit: W, sign: -1}
  generation_limit: {model: 704, point: WMaxLimPct, unit: percent, access: read_write, minimum: 0, maximum: 100,
    setting: true}
poll: [active_power]
"""


@pytest.fixture(scope="session")
def profiles() -> Mapping[str, Profile]:
    """Return a wallbox, a DC cabinet, a meter and an inverter."""
    parsed = [parse(text, "made-up.yml") for text in (WALLBOX, CABINET, METER, ICU)]
    return {profile.name: profile for profile in parsed}
