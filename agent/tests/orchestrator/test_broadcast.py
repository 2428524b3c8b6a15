# SPDX-License-Identifier: Apache-2.0
"""Requests over MQTT are answered whatever they bring, and nothing that goes wrong there ends control."""

from __future__ import annotations

import errno
import gc
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from agent.tests.orchestrator.conftest import DEMO

from derms_agent import settings
from derms_agent.document_store import Latest, Store
from derms_agent.mqtt import Kind, Outbox, Publisher, Request, Topic, anew
from derms_agent.orchestrator import service
from derms_agent.orchestrator.broadcast import _OF_EVSE, _STATE_OF_EVSE, CLIENT_ID, Broadcast, Verb
from derms_agent.orchestrator.controller import Controller
from derms_agent.orchestrator.engine import Engine
from derms_agent.orchestrator.store import ASKS, ASKS_JOURNAL
from derms_agent.settings import Broker
from derms_agent.socket_protocol import ProtocolError
from derms_agent.socket_server import Arguments

pytestmark = pytest.mark.anyio
URL = "mqtt://localhost:1"
"""Where no broker is: what would be sent waits."""


@asynccontextmanager
async def asked(directory: Path, verb: Verb) -> AsyncIterator[tuple[Publisher, Broadcast, Outbox]]:
    async with Outbox.open(directory / "outbox.sqlite") as outbox:
        publisher = Publisher(URL, None, CLIENT_ID, "small", outbox, takes_requests=True)
        yield publisher, Broadcast(publisher, "small", verb, verb), outbox


def assembled(directory: Path) -> service.Service:
    conf, limits = directory / "agent.conf", directory / "limits.conf"
    lines = f"GATEWAY=gateway-1\nDEPOT={DEMO}\nSTATE_DIRECTORY={directory}\nMQTT_URL={URL}\n"
    conf.write_text(lines, encoding="utf-8")
    limits.write_text("", encoding="utf-8")
    return service.assemble(settings.load(conf, limits), (conf, limits))


async def answer(directory: Path, verb: Verb, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request of the site is answered."""
    topic = Topic("small", "site", "small", Kind.REQUEST)
    whole = {"id": "1", "valid_for": 60, **body}
    async with asked(directory, verb) as (_, broadcast, outbox):
        await broadcast._answer(Request(topic, "1", 60.0, whole, anyio.current_time()))
        (message,) = (await outbox.take(10)).messages
    found: dict[str, Any] = json.loads(message.payload)
    return found


async def test_what_the_disk_does_not_take_is_refused_as_at_the_socket(tmp_path: Path) -> None:
    async def full(_found: Mapping[str, Any], _user: str) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    found = await answer(tmp_path, full, {"high_w": 1.0})
    assert (found["accepted"], found["code"]) == (False, "not stored")
    assert "No space left on device; it holds until this service ends" in found["reason"]


async def test_a_body_that_a_verb_cannot_work_with_is_refused(tmp_path: Path) -> None:
    async def odd(_found: Mapping[str, Any], _user: str) -> object:
        raise ValueError("Out of range float values are not JSON compliant")

    found = await answer(tmp_path, odd, {"high_w": 1.0})
    assert (found["accepted"], found["code"]) == (False, "failed")


async def test_a_name_as_long_as_a_payload_is_refused_in_an_answer_that_the_broker_takes(tmp_path: Path) -> None:
    async def strict(found: Mapping[str, Any], _user: str) -> object:
        arguments = Arguments({key: value for key, value in found.items() if key not in {"name", "rank"}})
        arguments.end()
        return {}

    found = await answer(tmp_path, strict, {"x" * 65_000: 1})
    assert (found["accepted"], found["code"]) == (False, "argument")


async def test_an_answer_that_the_broker_does_not_take_is_shortened_to_whether_it_was_accepted(tmp_path: Path) -> None:
    async def wordy(_found: Mapping[str, Any], _user: str) -> object:
        return {"why": "x" * 70_000}

    found = await answer(tmp_path, wordy, {"high_w": 1.0})
    assert found["accepted"] is True
    assert "no more can be said" in found["reason"]


async def test_storage_is_told_of_under_a_class_of_its_own_with_its_setpoint(tmp_path: Path) -> None:
    async def verb(_found: Mapping[str, Any], _user: str) -> object:
        return {}

    one: dict[str, Any] = {**dict.fromkeys((*_OF_EVSE, *_STATE_OF_EVSE)), "setpoint_a": -14.43}
    evses = [{**one, "name": "store", "kind": "storage"}, {**one, "name": "fast/1", "kind": "evse"}]
    report = {"at": "now", "site": {}, "state": "normal", "reason": "", "evses": evses}
    async with asked(tmp_path, verb) as (_, broadcast, outbox):
        await broadcast._tell(report)
        told = {message.topic: json.loads(message.payload) for message in (await outbox.take(20)).messages}
    for class_, name in (("storage", "store"), ("evse", "fast.1")):
        assert told[f"derms/v1/small/{class_}/{name}/telemetry"]["setpoint_a"] == -14.43


async def test_whatever_ends_telemetry_is_said_and_it_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    control = assembled(tmp_path)
    reports = 0

    def report(_self: object) -> Mapping[str, Any]:
        nonlocal reports
        reports += 1
        if reports <= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return {"at": "now", "site": {"power_w": float("nan")}, "state": "normal", "reason": "", "evses": []}

    monkeypatch.setattr(anew, "AGAIN_S", 0.01)
    monkeypatch.setattr(service.Service, "report", report)
    with anyio.fail_after(15):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service._broadcast, control)
            while "not published" not in caplog.text:  # a number that is none ends nothing
                await anyio.sleep(0.02)
            assert control.broadcast is not None
            tasks.cancel_scope.cancel()
    said = [one for one in caplog.records if "control goes on without telemetry" in one.getMessage()]
    assert len(said) == 1
    assert said[0].exc_info is not None
    assert "No space left on device" in str(said[0].exc_info[1])


@pytest.mark.parametrize(
    ("handed", "words"),
    [
        (None, "found no cert, key, ca"),
        ({}, "found no cert, key, ca"),
        (
            {"cert": "-----BEGIN CERTIFICATE-----", "key": "missing", "ca": "-----BEGIN CERTIFICATE-----"},
            "found no key",
        ),
    ],
)
async def test_a_certificate_that_is_missing_is_an_alarm_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handed: Mapping[str, str] | None, words: str
) -> None:
    """Where a file is not there, the unit hands over something that is none (its SetCredential=)."""
    control = assembled(tmp_path)
    agent = replace(control.configuration.agent, mqtt=Broker("localhost", 8883, tls=True))
    control.configuration = replace(control.configuration, agent=agent)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    if handed is not None:
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        for name, text in handed.items():
            (tmp_path / name).write_text(text, encoding="ascii")
    with anyio.fail_after(5):
        await service._broadcast(control)  # it ends, and is not begun again and again
    control.told(control.controller.cycle(control.engine.clock()))
    (alarm,) = [one for one in control.report()["alarms"] if one["about"] == "MQTT"]
    assert words in alarm["words"]
    assert alarm["words"].endswith("control goes on without telemetry")


@pytest.mark.parametrize(
    ("said", "lasts"),
    [
        ({}, {"duration_s": 60.0}),
        ({"duration_s": None}, {"duration_s": 60.0}),
        ({"duration_s": 7}, {"duration_s": 7}),
        ({"end": "2999-01-01T00:00:00Z"}, {"end": "2999-01-01T00:00:00Z"}),
    ],
)
async def test_a_limit_is_named_after_its_request_and_is_a_lease_where_it_has_no_end(
    tmp_path: Path, said: Mapping[str, Any], lasts: Mapping[str, Any]
) -> None:
    asked_for: list[Mapping[str, Any]] = []

    async def verb(found: Mapping[str, Any], user: str) -> object:
        asked_for.append({**found, "by": user})
        return {}

    assert (await answer(tmp_path, verb, {"high_w": 1.0, "name": "grid", "rank": "grid", **said}))["accepted"] is True
    given = {"name": "mqtt:1", "rank": "operator", "source": "mqtt: 1", "high_w": 1.0, "by": "mqtt"}
    assert asked_for == [{**given, **lasts}]


async def test_nobody_but_root_replaces_a_limit_that_another_has_put(tmp_path: Path) -> None:
    control = assembled(tmp_path)

    async def put(user: str, name: str, high_w: float) -> None:
        await control.limit_put({"name": name, "high_w": high_w, "duration_s": 60}, user)

    def held() -> dict[str, tuple[float, str]]:
        return {name: (ask.high_w, ask.put_by) for name, ask in control.controller.asks.items()}

    await put("derms-grid-gateway", "event", 40_000.0)
    await put("derms-grid-gateway", "event", 30_000.0)
    await put("mqtt", "mqtt:1", 20_000.0)
    await put("mqtt", "mqtt:1", 20_000.0)
    for user, name in (("operator", "event"), ("mqtt", "event"), ("operator", "mqtt:1"), ("mqtt", "mqtt:1")):
        with pytest.raises(ProtocolError, match=f"name: found '{name}', which .* has put, expected another") as refusal:
            await put(user, name, 90_000.0)
        assert refusal.value.code == "argument"  # the grid gateway goes on with the other bounds
    assert held() == {"event": (30_000.0, "derms-grid-gateway"), "mqtt:1": (20_000.0, "mqtt")}
    await put("root", "event", 10_000.0)
    assert held()["event"] == (10_000.0, "root")


async def test_nobody_but_root_takes_back_a_limit_that_another_has_put(tmp_path: Path) -> None:
    control = assembled(tmp_path)
    remove = control.verbs().changing["limit.remove"]
    for name in ("event", "second"):
        await control.limit_put({"name": name, "high_w": 40_000.0, "duration_s": 60}, "derms-grid-gateway")
    for user in ("operator", "mqtt"):
        expected = f"name: found 'event', which derms-grid-gateway has put, expected one of {user}'s own"
        with pytest.raises(ProtocolError, match=expected) as refusal:
            await remove({"name": "event"}, user)
        assert refusal.value.code == "argument"  # as for one that is not there: the grid gateway goes on
    assert set(control.controller.asks) == {"event", "second"}
    assert await remove({"name": "event"}, "derms-grid-gateway") == {"name": "event"}
    assert await remove({"name": "second"}, "root") == {"name": "second"}
    assert not control.controller.asks


async def test_the_grid_is_not_told_for_good_what_cannot_be_honoured_before_devices_were_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = assembled(tmp_path)
    began_s = control.opened_s = control.engine.began_s + 19.0  # others had the buses before
    low = {"high_w": 1_000.0, "duration_s": 60}

    async def can(name: str, after_s: float, **more: Any) -> object:
        control.engine.clock = lambda: began_s + after_s
        found = await control.limit_put({"name": name, **low, **more}, "derms-grid-gateway")
        assert isinstance(found, dict)
        return found["can_honour"]

    with pytest.raises(ProtocolError, match=r"stored and obeyed, .*\d+ EVSEs take no orders") as refusal:
        await can("event", 5.0, rank="grid")
    assert refusal.value.code == "not ready"
    stored, _ = Latest(Store(tmp_path), ASKS, ASKS_JOURNAL).load()
    assert [one["id"] for one in (stored or {})["asks"]] == ["event"]
    # Nobody has promised anything of the others; what can be honoured by the worst case can be.
    assert await can("night", 5.0) is False
    assert await can("mild", 5.0, rank="grid", high_w=1e8) is True
    monkeypatch.setattr(service.Service, "report", lambda _self: {})  # its first cycle is still to come
    status = control.verbs().looking["status"]
    assert await status({}, "operator") == {"informed": False}
    # One that is dead keeps nobody waiting for longer.
    assert await can("event", service.HEARD_WITHIN_S, rank="grid") is False
    assert await status({}, "operator") == {"informed": True}
    monkeypatch.setattr(Controller, "informed", lambda _self: True)
    assert await can("event", 5.0, rank="grid") is False
    assert await status({}, "operator") == {"informed": True}


async def test_the_time_for_devices_to_be_heard_begins_when_somebody_may_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = assembled(tmp_path)
    began_s = control.engine.began_s
    opened: list[float] = []

    async def first_cycle(engine: Engine) -> None:
        engine.first_cycle.set()
        engine.clock = lambda: began_s + 19.0

    async def serve_at(*_given: object) -> None:
        opened.append(control.opened_s)
        tasks.cancel_scope.cancel()

    monkeypatch.setattr(Engine, "run", first_cycle)
    monkeypatch.setattr(service, "serve_at", serve_at)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(service._run_with_buses, control)
    gc.unfreeze()
    gc.enable()
    assert opened == [began_s + 19.0]


async def test_a_limit_that_is_over_keeps_its_name_from_nobody(tmp_path: Path) -> None:
    control = assembled(tmp_path)
    began_s = control.engine.clock()
    await control.limit_put({"name": "evening", "high_w": 1.0, "duration_s": 60}, "operator")
    control.engine.clock = lambda: began_s + 61.0
    await control.limit_put({"name": "evening", "high_w": 2.0, "duration_s": 60}, "somebody")
    assert control.controller.asks["evening"].high_w == 2.0
