# SPDX-License-Identifier: Apache-2.0
"""Stationary storage where what is known of it is not so: settings, what flows, what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest
from agent.tests.orchestrator.conftest import new_controller
from agent.tests.orchestrator.test_storage import SETTLED_S, SITE, Stored, begun, stored_site

from derms_agent.control import ledger as book
from derms_agent.model import Quality, Rank, Reading, Value
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.site import armed

VOLTS = 230.94


def flows_w(one: Stored) -> float:
    return VOLTS * sum(one.flows_a()).real


class Unread(Stored):
    """Its settings cannot be read: what model 704 has of reverting is optional."""

    def shown(self, device_name: str) -> dict[str, Value]:
        found = super().shown(device_name)
        return {name: value for name, value in found.items() if device_name != "store" or "failsafe" not in name}


class Restarting(Stored):
    """Its settings are read only when `settings_s` says; all else in each second."""

    settings_s: float | None = None

    def take(self, device_name: str, values: Mapping[str, Value], at_s: float) -> None:
        if device_name != "store" or self.settings_s is None:
            super().take(device_name, values, at_s)
            return
        reading = Reading(
            device=device_name,
            values=values,
            read_at_s=at_s,
            quality=Quality.GOOD,
            asked_at_s=at_s,
            answered_at_s=at_s + 0.05,
            settings_asked_at_s=self.settings_s,
        )
        self.last[device_name] = reading
        self.controller.take(device_name, reading, at_s + 0.05)


def test_nothing_is_given_where_what_it_reverts_to_is_declared_but_never_read() -> None:
    one = Unread(new_controller(SITE))
    one.step(SETTLED_S)
    one.ask(-10.0)
    one.step(SETTLED_S)
    assert min(one.store_writes_w()) >= 0


@pytest.mark.parametrize("lost", ["failsafe_timeout", "failsafe_enabled", "failsafe_power"])
def test_what_a_watchdog_is_made_of_counts_only_where_it_was_read(lost: str) -> None:
    settings = SITE.devices["store"].settings
    (found,) = armed(SITE, SITE.devices["store"], {one: settings[one] for one in settings if one != lost}, 7.0)
    assert found == book.Armed("store", None, book.Span(-50.0, 50.0), 7.0)


def test_what_was_read_before_a_start_that_no_poll_missed_does_not_prove_a_watchdog() -> None:
    one = Restarting(new_controller(SITE))
    one.step(SETTLED_S)
    one.ask(-10.0)
    one.step(SETTLED_S)
    assert one.storage_w() < -9_000
    one.settings_s = one.now_s - 20
    one.enabled = "disabled"
    one.step(20)
    assert one.enabled == "enabled"
    assert one.storage_w() == 0.0
    assert one.controller.state.ledger.entries["store"].watchdog_s is None
    one.settings_s = one.now_s
    one.step(SETTLED_S)
    assert one.storage_w() < -9_000


def test_what_was_read_before_a_silence_that_may_hide_a_start_does_not_prove_a_watchdog() -> None:
    one = Restarting(new_controller(SITE))
    one.step(SETTLED_S)
    one.ask(-10.0)
    one.step(SETTLED_S)
    assert one.storage_w() < -9_000
    one.settings_s = one.now_s - 1
    one.silent = {"store"}
    one.step(6)
    one.silent.clear()
    one.step(20)
    assert one.enabled == "enabled"
    assert one.storage_w() == 0.0
    one.settings_s = one.now_s
    one.step(SETTLED_S)
    assert one.storage_w() < -9_000


def test_a_watchdog_that_is_quicker_than_declared_is_fed_as_often_as_it_wants() -> None:
    one = begun()
    one.ask(-10.0)
    one.step(SETTLED_S)
    one.held = {"failsafe_timeout": 10}
    one.step(5)
    one.writes.clear()
    one.step(60)
    at_s = [at_s for at_s, name, _ in one.writes if name == "store"]
    assert max(later - earlier for earlier, later in pairwise(at_s)) <= 10 / 3


def test_a_discharge_that_nobody_measures_is_no_headroom() -> None:
    one = begun(limit_va=30_000.0)
    one.vehicles()
    one.step(60)
    before_a = sum(one.limit_a[f"charger-{number}"] for number in (1, 2))
    one.ask(-10.0)
    one.step(60)
    one.measured = False
    for _ in range(60):
        one.step()
        assert sum(one.limit_a[f"charger-{number}"] for number in (1, 2)) <= before_a + 0.1
    one.soc_percent = 19.0
    for _ in range(10):
        one.step()
        assert flows_w(one) <= 30_000


def test_a_discharge_that_falls_silent_is_no_headroom() -> None:
    one = begun(limit_va=30_000.0)
    one.vehicles()
    one.step(60)
    before_a = sum(one.limit_a[f"charger-{number}"] for number in (1, 2))
    one.ask(-10.0)
    one.step(60)
    one.silent.add("store")
    for _ in range(40):
        one.step()
        assert one.controller.base["main"].high_w >= 3 * 20 * VOLTS - 1
        assert sum(one.limit_a[f"charger-{number}"] for number in (1, 2)) <= before_a + 0.1


def test_one_that_never_holds_what_it_is_told_is_made_room_for() -> None:
    one = begun()
    one.vehicles()
    one.step(60)
    one.takes = False
    one.enabled = "disabled"
    one.shows_w = 30_000.0
    one.step(30)
    assert "store" in one.controller.outcome.doubted  # type: ignore[union-attr]
    one.controller.put(Ask(id="event", source="event", rank=Rank.GRID, target="site", high_w=45_000.0))
    one.step(10)
    for _ in range(30):
        one.step()
        assert flows_w(one) <= 45_000
    one.takes, one.shows_w = True, None
    one.controller.forget("event")
    one.step(60)
    assert "store" not in one.controller.outcome.doubted  # type: ignore[union-attr]
    assert one.storage_w() > 10_000


def test_what_storage_feeds_in_leaves_room_for_what_is_generated_without_a_meter() -> None:
    one = begun()
    one.base_a = (-10.0,) * 3
    one.step(10)
    one.ask(-30.0)
    limit = Ask(id="export", source="export", rank=Rank.GRID, target="site", low_w=-20_000.0)
    one.controller.put(limit)
    one.step(10)
    for _ in range(60):
        one.step()
        assert flows_w(one) >= -20_000
    assert flows_w(one) < -19_000


def test_an_empty_battery_gives_nothing_at_once() -> None:
    one = begun()
    one.ask(-10.0)
    one.step(SETTLED_S)
    one.soc_percent = 0.0
    one.step(2)
    assert one.storage_w() == 0.0
    assert one.controller.sessions["store"].soc_percent == 0.0


def test_a_watchdog_that_takes_long_ends_a_discharge_above_the_reserve_as_well() -> None:
    watchdog_s = 900
    site = stored_site(**{"timeout: 60, failsafe_enabled": f"timeout: {watchdog_s}, failsafe_enabled"})
    one = begun(site, soc_percent=22.0)
    one.ask(-30.0)
    for _ in range(200):
        one.step()
        above_wh = ((one.soc_percent or 0.0) - 20.0) / 100 * 100_000
        assert -one.storage_w() * watchdog_s / 3600 <= above_wh
        one.soc_percent = (one.soc_percent or 0.0) + one.storage_w() / 3600 / 1000
    assert one.storage_w() < -3_000


def test_nothing_is_given_under_a_watchdog_that_nobody_feeds() -> None:
    """One that is not declared is not fed, though it may be read."""
    one = Stored(
        new_controller(stored_site(**{"failsafe_power: 0, failsafe_timeout: 60": "failsafe_power: 0"})),
        held={"failsafe_timeout": 60},
    )
    one.step(SETTLED_S)
    one.ask(-10.0)
    one.step(SETTLED_S)
    assert min(one.store_writes_w()) >= 0


def test_a_vehicle_for_which_a_least_is_asked_is_not_turned_round_by_noise() -> None:
    plain = stored_site(**{"    storage: {rating_a: 50, capacity_kwh: 100}\n": ""})
    one = Stored(new_controller(plain, limit_va=40_000.0))
    one.vehicles()
    one.step(60)
    one.controller.put(Ask(id="least", source="least", rank=Rank.OPERATOR, target="charger-1", low_w=9000.0))
    one.step(60)
    told_a = []
    for second in range(60):
        one.base_a = (38.0 if second % 2 else 20.0,) * 3
        one.step()
        told_a.append(one.limit_a["charger-1"])
    assert all(later <= earlier for earlier, later in pairwise(told_a))
