# SPDX-License-Identifier: Apache-2.0
"""What a service takes up of what its predecessor left."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from agent.tests.orchestrator.conftest import DEMO

from derms_agent import settings
from derms_agent.control import thermal
from derms_agent.document_store import Store, boot_id
from derms_agent.model import Rank
from derms_agent.orchestrator import handover, service
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.engine import boottime_s
from derms_agent.orchestrator.store import ASKS, CYCLES, LEDGER, LINKED_WITHIN_S, MEMORY, SESSIONS

VTN = "VTN_URL=https://vtn.example/OpenADR2/Simple/2.0b\n"


@pytest.mark.parametrize("same_boot", [True, False])
@pytest.mark.parametrize(("vtn", "lost"), [(VTN, True), ("", False)])
def test_a_grid_link_is_taken_up_only_where_there_is_a_vtn_still(
    tmp_path: Path, vtn: str, lost: bool, same_boot: bool
) -> None:
    conf, limits = tmp_path / "agent.conf", tmp_path / "limits.conf"
    conf.write_text(f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={tmp_path}\n{vtn}", encoding="utf-8")
    limits.write_text("DEFAULT_LIMIT_KW=20\n", encoding="utf-8")
    boot = boot_id() if same_boot else "another"
    Store(tmp_path).save(ASKS, {"boot_id": boot, "asks": [], "link_until_s": boottime_s() - 1.0})

    controller = service.assemble(settings.load(conf, limits), (conf, limits)).controller

    assert controller.link_lost(boottime_s()) is lost


@pytest.mark.parametrize("same_boot", [True, False])
@pytest.mark.parametrize(("vtn", "left"), [(VTN, {"openadr-0-0", "night"}), ("", {"night"})])
def test_what_a_vtn_has_asked_for_is_nothing_without_one(
    tmp_path: Path, vtn: str, left: set[str], same_boot: bool
) -> None:
    conf, limits = tmp_path / "agent.conf", tmp_path / "limits.conf"
    conf.write_text(f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={tmp_path}\n{vtn}", encoding="utf-8")
    limits.write_text("", encoding="utf-8")
    for_ever = {"source": "s", "rank": "grid", "target": "site", "high_w": 0.0, "start_unix_s": 1.0, "put_by": "g"}
    stored = [{**for_ever, "id": name} for name in ("openadr-0-0", "night")]
    boot = boot_id() if same_boot else "another"
    Store(tmp_path).save(ASKS, {"boot_id": boot, "asks": stored, "link_until_s": None})

    controller = service.assemble(settings.load(conf, limits), (conf, limits)).controller

    assert {*controller.asks} == left


def test_what_an_operator_asked_for_before_the_hosts_start_holds_in_its_time_though_the_clock_is_set_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, limits = tmp_path / "agent.conf", tmp_path / "limits.conf"
    conf.write_text(f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={tmp_path}\n", encoding="utf-8")
    limits.write_text("", encoding="utf-8")
    now_unix_s = 1_800_000_000.0
    times = {"start_unix_s": now_unix_s - 60.0, "end_unix_s": now_unix_s + 60.0}
    Store(tmp_path).save(ASKS, {"boot_id": "another", "asks": [{**ASK, **times, "id": "evening"}]})
    monkeypatch.setattr(time, "time", lambda: now_unix_s - 7200.0)
    controller = service.assemble(settings.load(conf, limits), (conf, limits)).controller
    now_s = boottime_s()

    def in_force(at_s: float, wall_unix_s: float) -> list[str]:
        controller.cycle(at_s, wall_unix_s - at_s)
        return [name for name, ask in controller.asks.items() if ask.in_force(at_s)]

    assert in_force(now_s, now_unix_s - 7200.0) == []
    assert in_force(now_s + 1.0, now_unix_s) == ["evening"]
    assert in_force(now_s + 62.0, now_unix_s + 61.0) == []
    assert not controller.asks


ASK = {"source": "s", "rank": "operator", "target": "site", "high_w": 9e3, "start_unix_s": 1.0, "put_by": "g"}


@pytest.mark.parametrize(
    ("broken", "boot"), [(5, None), ({"id": "no more"}, "another"), ({**ASK, "id": "rank", "rank": "king"}, None)]
)
def test_an_ask_that_cannot_be_used_takes_no_other_with_it_nor_the_link(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: object, boot: str | None
) -> None:
    conf, limits = tmp_path / "agent.conf", tmp_path / "limits.conf"
    conf.write_text(f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={tmp_path}\n{VTN}", encoding="utf-8")
    limits.write_text("DEFAULT_LIMIT_KW=20\n", encoding="utf-8")
    left = {
        "boot_id": boot or boot_id(),
        "asks": [{**ASK, "id": "night"}, broken, {**ASK, "id": "day"}],
        "link_until_s": boottime_s() - 1.0,
    }
    Store(tmp_path).save(ASKS, left)
    for _ in range(2):  # a service that ends before it stores anything finds the same
        caplog.clear()
        controller = service.assemble(settings.load(conf, limits), (conf, limits)).controller
        assert {*controller.asks} == {"night", "day"}
        assert controller.link_lost(boottime_s())
        assert "is lost: " in caplog.text
        assert json.loads((tmp_path / f"{ASKS}.unreadable").read_bytes()) == left


@pytest.mark.parametrize("until_s", ["soon", "nan"])
def test_a_link_that_cannot_be_used_takes_no_ask_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, until_s: object
) -> None:
    conf, limits = tmp_path / "agent.conf", tmp_path / "limits.conf"
    conf.write_text(f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={tmp_path}\n{VTN}", encoding="utf-8")
    limits.write_text("DEFAULT_LIMIT_KW=20\n", encoding="utf-8")
    Store(tmp_path).save(ASKS, {"boot_id": boot_id(), "asks": [{**ASK, "id": "night"}], "link_until_s": until_s})

    controller = service.assemble(settings.load(conf, limits), (conf, limits)).controller

    assert {*controller.asks} == {"night"}
    assert not controller.link_lost(boottime_s())
    assert controller.link_lost(boottime_s() + LINKED_WITHIN_S)
    assert "until when the grid's link stands is lost" in caplog.text
    assert f"a copy is kept as {ASKS}.unreadable" in caplog.text


def test_what_temperatures_left_is_taken_up_after_a_start_of_the_host(tmp_path: Path) -> None:
    conf, limits = tmp_path / "agent.conf", tmp_path / "limits.conf"
    conf.write_text(f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={tmp_path}\n", encoding="utf-8")
    limits.write_text("", encoding="utf-8")
    learnt = replace(thermal.fresh(thermal.DEFAULTS[thermal.SensorKind.CHARGER]), last_share=0.25)
    heat = {"charger-001 charger": learnt, "charger-gone charger": learnt}
    Store(tmp_path).save(MEMORY, {"boot_id": "another", **handover.to_json(handover.Memory(heat=heat))})

    memory = service.assemble(settings.load(conf, limits), (conf, limits)).controller.memory()

    assert memory.heat == {"charger-001 charger": learnt}


@pytest.mark.parametrize("name", [SESSIONS, MEMORY, CYCLES])
def test_what_cannot_be_taken_up_is_put_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    conf, limits = tmp_path / "agent.conf", tmp_path / "limits.conf"
    conf.write_text(f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={tmp_path}\n", encoding="utf-8")
    limits.write_text("", encoding="utf-8")
    (tmp_path / name).write_text('["nothing of ours"]', encoding="utf-8")

    service.assemble(settings.load(conf, limits), (conf, limits))

    assert (tmp_path / f"{name}.unreadable").read_text(encoding="utf-8") == '["nothing of ours"]'
    assert f"kept as {name}.unreadable" in caplog.text


def test_a_step_of_the_clock_that_moved_an_ask_is_stored_with_the_minute_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, limits = tmp_path / "agent.conf", tmp_path / "limits.conf"
    conf.write_text(f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={tmp_path}\n", encoding="utf-8")
    limits.write_text("", encoding="utf-8")
    one = service.assemble(settings.load(conf, limits), (conf, limits))
    saved: list[int] = []
    save = one.asks_store.save

    def counted(document: Mapping[str, Any], *, whole: bool = False) -> None:
        saved.append(len(document["asks"]))
        save(document, whole=whole)

    monkeypatch.setattr(one.asks_store, "save", counted)
    ask = Ask(id="lunch", source="root", rank=Rank.OPERATOR, high_w=30_000.0, end_unix_s=time.time() + 3600.0)
    one.controller.put(replace(ask, end_s=boottime_s() + 3600.0))
    anyio.run(one.save_asks)
    anyio.run(one.save_what_moves)
    assert saved == [1]
    moved = replace(one.controller.asks["lunch"], end_unix_s=2_000_000_000.0)
    one.controller.asks["lunch"] = moved
    anyio.run(one.save_what_moves)
    anyio.run(one.save_what_moves)
    assert saved == [1, 1]
    heir = service.assemble(settings.load(conf, limits), (conf, limits))
    assert heir.controller.asks["lunch"].end_unix_s == moved.end_unix_s


@pytest.mark.parametrize("left", ["nothing", "no link", "rubbish"])
@pytest.mark.parametrize(("vtn", "lost"), [(VTN, True), ("", False)])
def test_a_vtn_that_was_never_reached_is_waited_for_a_while_alone(
    tmp_path: Path, vtn: str, lost: bool, left: str
) -> None:
    conf, limits = tmp_path / "agent.conf", tmp_path / "limits.conf"
    conf.write_text(f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={tmp_path}\n{vtn}", encoding="utf-8")
    limits.write_text("DEFAULT_LIMIT_KW=20\n", encoding="utf-8")
    if left == "no link":
        Store(tmp_path).save(ASKS, {"boot_id": boot_id(), "asks": [], "link_until_s": None})
    elif left == "rubbish":
        Store(tmp_path).save(ASKS, {"boot_id": boot_id(), "asks": [], "link_until_s": "soon"})

    first = service.assemble(settings.load(conf, limits), (conf, limits))
    now_s = boottime_s()
    assert not first.controller.link_lost(now_s + LINKED_WITHIN_S - 60)
    assert first.controller.link_lost(now_s + LINKED_WITHIN_S) is lost
    # A service that starts again and again does not begin to wait anew.
    anyio.run(partial(first.save_asks, whole=True))
    second = service.assemble(settings.load(conf, limits), (conf, limits))
    assert second.controller.link_until_s == first.controller.link_until_s


@pytest.mark.parametrize(("valid_for_s", "lost"), [(None, False), (0.0, False), (60.0, True)])
def test_a_start_of_the_host_waits_anew_for_a_vtn_that_was_never_reached_and_for_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, valid_for_s: float | None, lost: bool
) -> None:
    conf, limits = tmp_path / "agent.conf", tmp_path / "limits.conf"
    conf.write_text(f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={tmp_path}\n{VTN}", encoding="utf-8")
    limits.write_text("DEFAULT_LIMIT_KW=20\n", encoding="utf-8")
    first = service.assemble(settings.load(conf, limits), (conf, limits))
    if valid_for_s is not None:
        anyio.run(first.verbs().changing["grid.link"], {"valid_for_s": valid_for_s}, "derms-grid")
    anyio.run(partial(first.save_asks, whole=True))

    for boot in ("second", "third"):
        monkeypatch.setattr(service, "boot_id", lambda boot=boot: boot)
        heir = service.assemble(settings.load(conf, limits), (conf, limits))
        assert heir.controller.link_lost(boottime_s()) is lost
        assert heir.controller.link_lost(boottime_s() + LINKED_WITHIN_S)
        anyio.run(partial(heir.save_asks, whole=True))


@pytest.mark.parametrize(
    ("key", "damage"),
    [
        ("measured", "[1]"),
        ("measured_reactive", "{}"),
        ("heard_s", "1e999"),
        ("heard_s", "1" * 400),
        ("refreshed_s", '"soon"'),
        ("watchdog_s", "true"),
        ("since_s", "{}"),
    ],
)
def test_a_ledger_with_a_damaged_value_is_lost_and_the_service_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, damage: str
) -> None:
    """It may be a newer release's, after a roll-back: what ends one start ends each."""
    conf, limits = tmp_path / "agent.conf", tmp_path / "limits.conf"
    conf.write_text(f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={tmp_path}\n", encoding="utf-8")
    limits.write_text("", encoding="utf-8")
    first = service.assemble(settings.load(conf, limits), (conf, limits))
    anyio.run(first.engine.save_ledger)
    stored = json.loads((tmp_path / LEDGER).read_text(encoding="utf-8"))
    entry = stored["entries"]["charger-001"]
    (entry["claims"][0] if key == "since_s" else entry)[key] = "HERE"
    (tmp_path / LEDGER).write_text(json.dumps(stored).replace('"HERE"', damage), encoding="utf-8")

    second = service.assemble(settings.load(conf, limits), (conf, limits))

    second.controller.cycle(boottime_s())
    assert "The ledger is lost" in caplog.text
    assert (tmp_path / f"{LEDGER}.unreadable").exists()


@pytest.mark.parametrize("damage", ["1" * 400, "NaN", "Infinity"])
@pytest.mark.parametrize("key", ["energy_need_wh", "departure_unix_s"])
def test_sessions_with_a_number_that_is_none_are_lost_and_the_service_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, damage: str
) -> None:
    conf, limits = tmp_path / "agent.conf", tmp_path / "limits.conf"
    conf.write_text(f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={tmp_path}\n", encoding="utf-8")
    limits.write_text("", encoding="utf-8")
    kept = {
        "started_unix_s": 1.0,
        "departure_unix_s": None,
        "energy_need_wh": None,
        "delivered_wh": 0.0,
        "vehicle": None,
    }
    text = json.dumps({"sessions": {"charger-001": {**kept, key: "HERE"}}}).replace('"HERE"', damage)
    (tmp_path / SESSIONS).write_text(text, encoding="utf-8")

    again = service.assemble(settings.load(conf, limits), (conf, limits))

    anyio.run(again.save_sessions)
    assert "What was known of sessions is lost" in caplog.text
