# SPDX-License-Identifier: Apache-2.0
"""After an outage vehicles start one by one; after anything else they do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from agent.tests.orchestrator.conftest import BEGAN_S, DEMO, SETTLED_S, Play

from derms_agent import settings
from derms_agent.control import ledger as book
from derms_agent.control.allocate import may_start_at_s
from derms_agent.control.cycle import State
from derms_agent.document_store import Store, boot_id
from derms_agent.orchestrator import handover, service
from derms_agent.orchestrator.controller import BOOTS_S, SPREAD_EACH_S, Controller, Policy
from derms_agent.orchestrator.store import ASKS, LEDGER, MEMORY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.tests.orchestrator.conftest import MakePlay

    from derms_agent.orchestrator.site import Site

DARK_S = 60
AMPLE_VA = 1e6
"""So that no limit keeps a vehicle from starting."""


def chargers(one: Play) -> list[str]:
    return [name for name, device in one.site.devices.items() if device.evses]


def drawing(one: Play) -> set[str]:
    return {evse.name for evse in one.site.evses if one.drawn_a(evse) > 0}


def restarted(one: Play, devices: Iterable[str], *, after_boot_a: float = 0.0) -> None:
    """Let devices start anew: each EVSE may take what it starts at."""
    chosen = set(devices)
    one.limit_a |= {evse.name: after_boot_a for evse in one.site.evses if evse.device in chosen}


def blackout(one: Play, devices: Iterable[str], *, seconds: int = DARK_S) -> None:
    """Take the power of some devices and the meter away; a gateway with a battery sees that they are silent."""
    chosen = {*devices, "grid"}
    one.silent = chosen
    restarted(one, chosen)
    one.step(seconds)
    one.silent = set()


def test_after_a_start_of_the_host_those_that_draw_go_on_and_the_others_start_one_by_one(play: MakePlay) -> None:
    one = play()
    one.vehicles()
    booted = {evse.name for evse in one.site.evses if evse.name.startswith("charger")}
    first = set(sorted(booted)[::2])
    one.limit_a = dict.fromkeys(first, 10.0)
    one.controller.energised_at_s = BEGAN_S

    one.step()
    waiting = set(one.controller.params.energised_at_s)
    assert waiting == {evse.name for evse in one.site.evses} - first
    for _ in range(SETTLED_S):
        one.step()
        assert drawing(one) >= first
    assert one.controller.params.spread_s > SETTLED_S
    assert len(waiting - drawing(one)) > 0.6 * len(waiting)


def test_a_gateway_that_stayed_up_sees_that_power_was_away(charging: Play) -> None:
    one = charging
    one.controller.policy = replace(one.controller.policy, limit_va=AMPLE_VA)
    one.step(SETTLED_S)
    blackout(one, chargers(one))
    spread_s = one.controller.params.spread_s
    assert spread_s == SPREAD_EACH_S * len(one.site.evses)
    started: list[int] = []
    for _ in range(int(spread_s) + SETTLED_S):
        one.step()
        started.append(len(drawing(one)))
    everybody = len(one.site.evses)
    at_once = max(after - before for before, after in zip(started, started[10:], strict=False))
    assert at_once <= everybody / 4
    assert started[-1] == everybody
    assert not one.controller.params.energised_at_s


def test_one_that_starts_slowly_waits_from_when_it_answers(charging: Play) -> None:
    one = charging
    slow = {"charger-001", "charger-002"}
    blackout(one, chargers(one))
    one.silent = slow
    one.step(30)
    answers_s = one.now_s
    one.silent = set()
    one.step()
    for name in slow:
        assert one.controller.params.energised_at_s[name] == pytest.approx(answers_s, abs=0.1)
    assert all(may_start_at_s(name, one.controller.params) >= answers_s for name in slow)


def test_one_that_first_answers_long_after_the_host_started_is_no_part_of_that(play: MakePlay) -> None:
    one = play()
    one.vehicles()
    one.controller.energised_at_s = BEGAN_S
    one.silent = {"charger-001"}
    one.step(int(BOOTS_S) + 5)
    one.silent = set()
    one.step()
    assert "charger-001" not in one.controller.params.energised_at_s


def test_a_part_whose_power_comes_back_later_starts_one_by_one_as_well(charging: Play) -> None:
    one = charging
    found = chargers(one)
    late = set(found[: len(found) // 2])
    blackout(one, found)
    one.silent = late
    one.step(int(BOOTS_S) + 60)
    one.silent = set()
    one.step()
    assert {evse.name for evse in one.site.evses if evse.device in late} <= one.controller.params.energised_at_s.keys()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.75])
def test_what_hangs_on_one_switch_is_no_outage(charging: Play, share: float) -> None:
    one = charging
    found = chargers(one)
    blackout(one, found[: int(share * len(found))])
    one.step(5)
    assert one.controller.energised_at_s is None
    assert not one.controller.params.energised_at_s


def test_a_charger_that_was_dead_before_does_not_hide_an_outage(charging: Play) -> None:
    one = charging
    found = chargers(one)
    dead = set(found[: len(found) // 3])
    one.silent = dead
    one.step(60)
    one.silent = {*found, "grid"}
    restarted(one, found)
    one.step(DARK_S)
    one.silent = dead
    one.step(2)
    here = {evse.name for evse in one.site.evses if evse.device not in dead}
    assert set(one.controller.params.energised_at_s) == here


def test_a_lost_link_to_all_chargers_that_charge_on_makes_nobody_wait(charging: Play) -> None:
    one = charging
    charged = drawing(one)
    one.silent = {*chargers(one), "grid"}
    one.step(8)
    one.silent = set()
    one.step(2)
    assert not charged & one.controller.params.energised_at_s.keys()


def test_a_switch_that_takes_all_chargers_down_to_their_fallback_of_0_is_no_outage(charging: Play) -> None:
    one = charging
    charged = drawing(one)
    one.silent = set(chargers(one))
    one.step(15)
    restarted(one, chargers(one))  # their watchdogs have run out
    one.step(DARK_S)
    one.silent = set()
    one.step(SETTLED_S)
    assert not one.controller.params.energised_at_s
    assert drawing(one) >= charged


@pytest.mark.parametrize("volts", [0.0, 0.5, None])
def test_a_meter_that_sees_no_sound_voltage_does_not_hide_an_outage(charging: Play, volts: float | None) -> None:
    one = charging
    one.voltage_share = volts
    one.silent = set(chargers(one))
    restarted(one, chargers(one))
    one.step(DARK_S)
    one.silent, one.voltage_share = set(), 1.0
    one.step(2)
    assert one.controller.params.energised_at_s.keys() == {evse.name for evse in one.site.evses}


def test_a_meter_that_is_back_before_the_chargers_does_not_hide_an_outage(charging: Play) -> None:
    one = charging
    one.silent = {*chargers(one), "grid"}
    restarted(one, chargers(one))
    one.step(3)
    one.silent = set(chargers(one))
    one.step(30)
    one.silent = set()
    one.step(2)
    assert one.controller.params.energised_at_s.keys() == {evse.name for evse in one.site.evses}


def test_after_a_pause_of_this_process_nobody_waits(charging: Play) -> None:
    one = charging
    one.now_s += 20
    one.cycle()  # before anything could be read
    restarted(one, chargers(one))
    one.step(2)
    assert not one.controller.params.energised_at_s


def test_links_that_come_and_go_put_a_start_off_no_further(charging: Play) -> None:
    one = charging
    blackout(one, chargers(one))
    one.step()
    starts_s = {name: may_start_at_s(name, one.controller.params) for name in one.controller.params.energised_at_s}
    blackout(one, chargers(one), seconds=8)
    one.step()
    later = {name for name, at_s in starts_s.items() if at_s > one.now_s}
    assert len(later) > len(starts_s) / 2
    assert {name: may_start_at_s(name, one.controller.params) for name in later} == {n: starts_s[n] for n in later}


def test_a_mere_restart_of_the_process_makes_nobody_wait(play: MakePlay) -> None:
    one = play()
    one.vehicles()
    one.step(2)
    assert not one.controller.params.energised_at_s


def test_a_new_process_lets_those_wait_that_its_predecessor_let_wait(charging: Play, play: MakePlay) -> None:
    one = charging
    blackout(one, chargers(one))
    one.step()
    document = json.loads(json.dumps(handover.to_json(one.controller.memory()), allow_nan=False))
    known = {name: one.controller.watts_per_a(name) for name in one.site.stations}
    heir = play()
    heir.controller.remember(handover.from_json(document, known))
    waiting = one.controller.params.energised_at_s
    assert waiting
    assert heir.controller.params.energised_at_s == waiting
    del document["energised_at_s"]  # as another release stored it
    assert handover.from_json(document, known).energised_at_s == {}


def test_depots_of_a_fleet_wait_for_different_times_and_a_small_one_not_for_long(site: Site, play: MakePlay) -> None:
    def starts_s(name: str, boot: str, evses: int) -> list[float]:
        depot = replace(site.depot, name=name)
        some = site.evses[:evses]
        state = State(play().controller.state.ledger)
        fields = replace(site, depot=depot, evses=some, stations={e.name: site.stations[e.name] for e in some})
        one = Controller(site=fields, policy=Policy(limit_va=AMPLE_VA), state=state, boot_id=boot)
        params = replace(one.params, energised_at_s={evse.name: 0.0 for evse in some})
        return [may_start_at_s(evse.name, params) for evse in some]

    north = starts_s("north", "boot-1", 10)
    assert north == starts_s("north", "boot-1", 10)
    for other in (starts_s("south", "boot-1", 10), starts_s("north", "boot-2", 10)):
        assert not set(north) & set(other)
    assert max(starts_s("north", "boot-1", 1)) <= SPREAD_EACH_S


@pytest.mark.parametrize(
    ("ledger", "memory", "up_s", "outage"),
    [
        ("this", None, 30.0, False),
        ("another", "this", 1e6, True),
        ("broken", "another", 1e6, True),
        ("broken", "this", 30.0, False),
        ("broken", None, 1e6, False),
        ("broken", None, 30.0, True),
        (None, "another", 1e6, True),
        (None, None, 30.0, False),
    ],
)
def test_a_start_of_the_host_is_seen_without_its_ledger_too(
    tmp_path: Path,
    play: MakePlay,
    monkeypatch: pytest.MonkeyPatch,
    *,
    ledger: str | None,
    memory: str | None,
    up_s: float,
    outage: bool,
) -> None:
    conf, limits = tmp_path / "agent.conf", tmp_path / "limits.conf"
    conf.write_text(f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={tmp_path}\n", encoding="utf-8")
    limits.write_text("", encoding="utf-8")
    monkeypatch.setattr(service, "boottime_s", lambda: up_s)
    boots = {"this": boot_id(), "another": "another"}
    store = Store(tmp_path)
    if ledger == "broken":
        (tmp_path / LEDGER).write_text("{", encoding="utf-8")
    elif ledger is not None:
        store.save(LEDGER, book.to_json(play().controller.state.ledger, boots[ledger], up_s))
    if memory is not None:
        store.save(MEMORY, {"boot_id": boots[memory], **handover.to_json(play().controller.memory())})
        store.save(ASKS, {"boot_id": "another", "asks": []})

    controller = service.assemble(settings.load(conf, limits), (conf, limits)).controller

    assert (controller.energised_at_s is not None) is outage
