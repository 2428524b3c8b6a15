# SPDX-License-Identifier: Apache-2.0
"""What the orchestrator says over MQTT, and what it takes from there. Nothing of the safety path passes through here.

| class/id | telemetry, every 5 s | state, on change | event | request |
| --- | --- | --- | --- | --- |
| site/DEPOT | power, limit, worst case, base load | operating state, and why | alarms, states, limits | as limit.put |
| evse/EVSE | power, currents, setpoint, energy, SoC | vehicle, setpoint, whether it follows | | as session.put |
| storage/DEVICE | the same | the same | | |
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import anyio

from derms_agent.mqtt import Publisher, Request, TlsFiles, side_by_side, unsendable_said
from derms_agent.one_line import one_line
from derms_agent.socket_protocol import ProtocolError
from derms_agent.socket_server import refused_where_it_fails

TELEMETRY_S = 5.0
SITE, EVSE = "site", "evse"
CLIENT_ID = "derms-orchestrator"
MQTT = "mqtt"
"""The user that all who ask over MQTT are: nothing tells the one from the other."""
NAMES = "mqtt:"
"""What the names of limits that are asked for over MQTT begin with: no other user's is meant by one."""
_OF_EVSE = ("power_w", "measured_a", "setpoint_a", "counted_a", "delivered_wh", "soc_percent")
_STATE_OF_EVSE = ("state", "vehicle", "setpoint_a", "following")
_MOST_EVENTS = 1000

logger = logging.getLogger("derms.orchestrator")

Verb: TypeAlias = "Callable[[Mapping[str, Any], str], Awaitable[object]]"


def tls_files(credentials: Path | None) -> TlsFiles:
    """Return the service's own certificate, key and authorities, as systemd hands them over (LoadCredential=).

    :raises ValueError: one of them is missing; for a file that was not there the unit hands over what is no PEM
    """
    files = {name: None if credentials is None else credentials / name for name in ("cert", "key", "ca")}
    missing = [name for name, path in files.items() if path is None or not _is_pem(path)]
    if missing or credentials is None:
        raise ValueError(f"found no {', '.join(missing)} in the service's credentials, expected cert, key and ca")
    return TlsFiles(credentials / "cert", credentials / "key", credentials / "ca")


def _is_pem(path: Path) -> bool:
    try:
        return b"-----BEGIN" in path.read_bytes()
    except OSError:
        return False


class Broadcast:
    """What goes out and comes in. `depot` is the site's id; `session_put` and `limit_put` are the socket's verbs."""

    def __init__(self, publisher: Publisher, depot: str, session_put: Verb, limit_put: Verb) -> None:
        self._publisher, self._depot = publisher, depot
        self._verbs: Mapping[str, Verb] = {EVSE: session_put, SITE: limit_put}
        self._shown: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._events, self._waiting = anyio.create_memory_object_stream[dict[str, Any]](_MOST_EVENTS)

    def happened(self, kind: str, at: str, **what: Any) -> None:
        """Publish an event of the site. Whatever happens here, the cycle goes on: beyond 1,000 that wait it is lost."""
        try:
            self._events.send_nowait({"kind": kind, "at": at, **what})
        except anyio.WouldBlock:
            return

    async def run(self, report: Callable[[], Mapping[str, Any]]) -> None:
        """Publish until cancelled."""
        await side_by_side(
            self._publisher.run, self._take_requests, self._send_events, partial(self._tell_regularly, report)
        )

    async def _tell_regularly(self, report: Callable[[], Mapping[str, Any]]) -> None:
        while True:
            await self._tell(report())
            await anyio.sleep(TELEMETRY_S)

    async def _tell(self, report: Mapping[str, Any]) -> None:
        at = {"at": report["at"]}
        await self._telemetry(SITE, self._depot, {**at, **report["site"]})
        await self._state(SITE, self._depot, {"state": report["state"], "reason": report["reason"]}, at)
        for evse in report["evses"]:
            class_, topic_id = evse["kind"], id_of(evse["name"])
            await self._telemetry(class_, topic_id, {**at, **{name: evse[name] for name in _OF_EVSE}})
            await self._state(class_, topic_id, {name: evse[name] for name in _STATE_OF_EVSE}, at)

    async def _telemetry(self, class_: str, topic_id: str, body: Mapping[str, Any]) -> None:
        with unsendable_said(logger):
            await self._publisher.telemetry(class_, topic_id, body)

    async def _state(self, class_: str, topic_id: str, body: Mapping[str, Any], at: Mapping[str, Any]) -> None:
        if self._shown.get((class_, topic_id)) != body:
            self._shown[class_, topic_id] = body
            with unsendable_said(logger):
                await self._publisher.state(class_, topic_id, {**at, **body})

    async def _send_events(self) -> None:
        async for event in self._waiting:
            with unsendable_said(logger):
                await self._publisher.event(SITE, self._depot, event)

    async def _take_requests(self) -> None:
        async for request in self._publisher.requests():
            await self._answer(request)

    async def _answer(self, request: Request) -> None:
        """Carry a request out as the socket would; whom the broker lets publish it is its ACL's affair."""
        verb = self._verbs.get(request.topic.class_)
        if request.expired(anyio.current_time()):
            await self._acknowledge(request, accepted=False, reason="it came too late")
            return
        if verb is None:
            known = ", ".join(self._verbs)
            await self._acknowledge(request, accepted=False, reason=f"expected a request of {known}")
            return
        asked = {key: value for key, value in request.body.items() if key not in {"id", "valid_for"}}
        if request.topic.class_ == EVSE:
            asked["evse"] = name_of(request.topic.id)
        else:
            asked = {"source": f"{MQTT}: {request.id}", **asked, "name": f"{NAMES}{request.id}", "rank": "operator"}
            if asked.get("end") is None and asked.get("duration_s") is None:
                # Nothing over MQTT takes a limit back, and whoever asked may be gone.
                asked["duration_s"] = request.valid_for_s
        try:
            with refused_where_it_fails(f"request of {request.topic.class_}"):
                result = await verb(asked, MQTT)
        except ProtocolError as problem:
            await self._acknowledge(request, accepted=False, code=problem.code, reason=str(problem))
        else:
            await self._acknowledge(request, accepted=True, result=result)

    async def _acknowledge(self, request: Request, *, accepted: bool, **more: object) -> None:
        """Answer a request; where the whole answer is more than the broker takes, whether it was accepted."""
        try:
            await self._publisher.acknowledge(request, accepted=accepted, **more)
        except (ValueError, TypeError) as problem:
            logger.warning("MQTT: the answer to %s cannot be sent: %s", one_line(request.id), problem)
            await self._publisher.acknowledge(request, accepted=accepted, reason=f"no more can be said: {problem}")


def id_of(evse: str) -> str:
    """Return what an EVSE is called in a topic: levels are parted by "/", so a connector's number follows a dot."""
    return evse.replace("/", ".")


def name_of(topic_id: str) -> str:
    """Return the EVSE that a topic names."""
    head, dot, connector = topic_id.rpartition(".")
    return f"{head}/{connector}" if dot and connector.isdigit() else topic_id
