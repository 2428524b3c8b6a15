# SPDX-License-Identifier: Apache-2.0
"""`derms-twin vtn`: the depot file's utility, openleadr's VTN under mutual TLS 1.3.

It tells what happens on its standard output, a line each. What may be asked at its control socket, one JSON object a
line (an answer has `ok: true`, or `ok: false` and `problems`):

    {"event": "SIMPLE", "level": 1, "for_s": 20}     an event for every VEN that has registered, from now on
    {"cancel": "shed-20261126-101500"}               the end of one, before its time
    {"status": true}                                 who has registered, how events were answered, what was reported

A process can have one VTN, for openleadr keeps its state in its classes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler
from openleadr import OpenADRServer, utils

from derms_agent.twin import control
from derms_agent.twin.choice import CannotStart, find_depot

_HTTPS_PORT = 443
_LONGEST_EVENT_S = 86400.0
_STOPS_WITHIN_S = 10.0
_MOST_SAMPLES = 20_000
_LEVELS = range(1, 4)
"""Of SIMPLE, OpenADR 2.0b: moderate, high, special; 0 is normal operation."""
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where a VTN listens and with what certificate, how often it wants to be polled, and to be told what is drawn."""

    vtn_id: str
    port: int
    poll_s: float
    certificate: Path
    key: Path
    authorities: Path
    host: str = "127.0.0.1"
    tls_minimum: str = "1.3"
    tls_maximum: str | None = None
    report_s: float = 0.0
    """0: it asks for no report."""
    signs: bool = False
    """It signs its messages, by its certificate's key, and demands that a VEN signs its own."""


class Vtn:
    """openleadr's VTN, the VENs that are registered with it, how they answered its events, and what they reported."""

    def __init__(self, settings: Settings) -> None:
        self.vens: dict[str, str] = {}
        """The fingerprint of each VEN's certificate, by its id; one that is here gets that id when it registers."""
        self.forget()
        self.report_s = settings.report_s
        self.server = OpenADRServer(
            vtn_id=settings.vtn_id,
            http_port=settings.port,
            http_host=settings.host,
            http_cert=str(settings.certificate),
            http_key=str(settings.key),
            http_ca_file=str(settings.authorities),
            requested_poll_freq=timedelta(seconds=settings.poll_s),
            fingerprint_lookup=self.fingerprint,
            cert=str(settings.certificate) if settings.signs else None,
            key=str(settings.key) if settings.signs else None,
            show_fingerprint=False,
            verify_message_signatures=settings.signs,
        )
        self.server.ssl_context.minimum_version = _VERSIONS[settings.tls_minimum]
        if settings.tls_maximum:
            self.server.ssl_context.maximum_version = _VERSIONS[settings.tls_maximum]
        self.server.add_handler("on_create_party_registration", self.register)
        self.server.add_handler("on_cancel_party_registration", self.cancel)
        self.server.add_handler("on_register_report", self.offered)

    def forget(self) -> None:
        """Forget what was seen, but not who is registered."""
        self.registrations: list[dict[str, Any]] = []
        self.opts: list[dict[str, Any]] = []
        self.samples: deque[dict[str, Any]] = deque(maxlen=_MOST_SAMPLES)

    def fingerprint(self, ven_id: str) -> str | None:
        """Return that of the certificate that a VEN has to show; None: it is not known."""
        return self.vens.get(ven_id)

    async def register(self, payload: dict[str, Any]) -> tuple[str, str]:
        """Take whoever has a certificate of the authority's, by the id that it asks for."""
        ven_id = payload.get("ven_id") or f"ven-{len(self.registrations)}"  # openleadr's parser makes a number of 0001
        self.vens[ven_id] = payload["fingerprint"]
        self.registrations.append({"ven_id": ven_id, "ven_name": payload["ven_name"], "asked": payload.get("ven_id")})
        return ven_id, f"reg-{len(self.registrations)}"

    async def cancel(self, payload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Forget a VEN that leaves."""
        self.vens.pop(payload["ven_id"], None)
        return "oadrCanceledPartyRegistration", {"registration_id": payload["registration_id"]}

    async def offered(self, report: dict[str, Any]) -> list[tuple[Any, ...]] | None:
        """Ask for every data point of a VEN's TELEMETRY_USAGE."""
        if not self.report_s or report["report_name"] != "METADATA_TELEMETRY_USAGE":
            return None
        every = timedelta(seconds=self.report_s)
        return [(one["r_id"], partial(self.sampled, one["r_id"]), every) for one in report["report_descriptions"]]

    async def sampled(self, data_point: str, values: list[tuple[datetime, float]]) -> None:
        """Keep what a report says of a data point."""
        self.samples += [{"point": data_point, "at": at.timestamp(), "value": value} for at, value in values]

    def opted(self, ven_id: str, event_id: str, opt_type: str) -> None:
        """Keep a VEN's answer to an event."""
        now = datetime.now(timezone.utc).timestamp()
        self.opts.append({"ven_id": ven_id, "event_id": event_id, "opt": opt_type, "at": now})


_SERVICE: ContextVar[str] = ContextVar("_SERVICE", default="")
"""The service that a message is for, while it is answered."""


@web.middleware
async def _service_noted(request: web.Request, handler: Handler) -> web.StreamResponse:
    _SERVICE.set(request.path.rsplit("/", 1)[1])
    return await handler(request)


class Utility(Vtn):
    """A VTN that a person has at a terminal: it tells what happens, a line each, and sends events on command."""

    def __init__(
        self, settings: Settings, tell: Callable[[str], None], market_context: str, agreed: Mapping[str, str]
    ) -> None:
        """Agree with VENs beforehand: the id of each, and the fingerprint of its certificate."""
        super().__init__(settings)
        self.vens |= agreed
        self._agreed = agreed
        self._tell = tell
        self._market_context = market_context
        self._present: dict[str, None] = {}
        self.server.app.middlewares.append(_service_noted)
        self._sent: dict[str, tuple[tuple[str, ...], asyncio.TimerHandle]] = {}
        self._asked_for: frozenset[str] = frozenset()
        self._readings: dict[datetime, dict[str, float]] = {}

    def fingerprint(self, ven_id: str) -> str | None:
        """Know a VEN that was agreed with once it registers: one of before a restart has reports to offer again."""
        known = ven_id in self._present or _SERVICE.get() == "EiRegisterParty"
        return super().fingerprint(ven_id) if known else None

    def _told(self, words: str, at: datetime | None = None) -> None:
        self._tell(f"{(at or datetime.now(timezone.utc)).astimezone(timezone.utc):%H:%M:%S}  {words}")

    async def register(self, payload: dict[str, Any]) -> tuple[str, str]:
        """Take a VEN, and say so."""
        found = await super().register(payload)
        self._present[found[0]] = None
        self._told(f"{payload['ven_name']} registers as VEN {found[0]}")
        return found

    async def cancel(self, payload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Let a VEN leave, and say so; it may come back by the id that was agreed on."""
        found = await super().cancel(payload)
        self._present.pop(payload["ven_id"], None)
        self.vens |= self._agreed
        self._told(f"VEN {payload['ven_id']} leaves")
        return found

    def opted(self, ven_id: str, event_id: str, opt_type: str) -> None:
        """Keep an answer, and say it."""
        super().opted(ven_id, event_id, opt_type)
        self._told(f"VEN {ven_id} answers {event_id}: {opt_type}")

    async def offered(self, report: dict[str, Any]) -> list[tuple[Any, ...]] | None:
        """Ask for all of it, and remember what that is."""
        found = await super().offered(report)
        if found is not None:
            self._asked_for = frozenset(data_point for data_point, *_ in found)
        return found

    async def sampled(self, data_point: str, values: list[tuple[datetime, float]]) -> None:
        """Keep readings, and say those of one moment in one line as soon as they are complete."""
        await super().sampled(data_point, values)
        for at, value in values:
            reading = self._readings.setdefault(at, {})
            reading[data_point] = value
            if reading.keys() >= self._asked_for:
                shown = ", ".join(f"{name} {watts / 1000:.1f} kW" for name, watts in reading.items())
                self._told(f"TELEMETRY_USAGE: {shown}", at)
                self._readings = {later: other for later, other in self._readings.items() if later > at}

    def shed(self, level: int, for_s: float) -> str:
        """Send a SIMPLE event to every VEN, from now on and for so many s; return its id."""
        begins = datetime.now(timezone.utc)
        event_id = f"shed-{begins:%Y%m%d-%H%M%S}"
        interval = {"dtstart": begins, "duration": timedelta(seconds=for_s), "signal_payload": float(level)}
        for ven_id in self._present:
            self.server.add_event(
                ven_id=ven_id,
                signal_name="SIMPLE",
                signal_type="level",
                intervals=[interval],
                callback=self.opted,
                event_id=event_id,
                market_context=self._market_context,
            )
        ends = asyncio.get_running_loop().call_later(for_s, self._over, event_id)
        self._sent[event_id] = (tuple(self._present), ends)
        self._told(f"{event_id} is sent: SIMPLE level {level} for {for_s:g} s")
        return event_id

    def _over(self, event_id: str) -> None:
        """Take an event off the list: openleadr fails at an answer to one that is over."""
        del self._sent[event_id]
        for events in self.server.events.values():
            events[:] = [one for one in events if utils.getmember(one, "event_descriptor.event_id") != event_id]
        self._told(f"{event_id} is over")

    def answer(self, line: str) -> dict[str, Any]:
        """Do what a line asks for and return the answer to it."""
        try:
            asked = json.loads(line)
        except json.JSONDecodeError as error:
            return _refused(f"found no JSON at character {error.pos + 1}; expected one JSON object")
        if not isinstance(asked, dict):
            return _refused("expected one JSON object")
        if "status" in asked:
            return {
                "ok": True,
                "registrations": self.registrations,
                "opts": self.opts,
                "samples": list(self.samples),
            }
        if "cancel" in asked:
            return self._cancelled(asked["cancel"])
        return self._event(asked)

    def _cancelled(self, event_id: object) -> dict[str, Any]:
        if not isinstance(event_id, str) or event_id not in self._sent:
            return _refused(f"cancel: found {event_id!r}; expected one of {', '.join(self._sent) or 'no event'}")
        vens, ends = self._sent.pop(event_id)
        ends.cancel()
        for ven_id in vens:
            self.server.cancel_event(ven_id, event_id)
        self._told(f"{event_id} is cancelled")
        return {"ok": True}

    def _event(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        level, for_s = asked.get("level"), asked.get("for_s")
        if asked.get("event") != "SIMPLE":
            return _refused(f"event: found {asked.get('event')!r}; expected SIMPLE, or cancel, or status")
        if isinstance(level, bool) or not isinstance(level, int) or level not in _LEVELS:
            return _refused(f"level: found {level!r}; expected 1, 2 or 3")
        if isinstance(for_s, bool) or not isinstance(for_s, (int, float)) or not 1 <= for_s <= _LONGEST_EVENT_S:
            return _refused(f"for_s: found {for_s!r}; expected 1 to {_LONGEST_EVENT_S:g} s")
        if not self._present:
            return _refused("found no VEN that has registered, expected one")
        return {"ok": True, "event": self.shed(level, for_s)}

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Answer VENs. Raises OSError where the address is not this machine's, or taken."""
        await self.server.run()
        try:
            yield
        finally:
            await asyncio.wait_for(self.server.stop(), _STOPS_WITHIN_S)


def _refused(*problems: str) -> dict[str, Any]:
    return {"ok": False, "problems": list(problems)}


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status. Raises what `derms_agent.twin.cli.main` says in a line."""
    parser = argparse.ArgumentParser(
        prog="derms-twin vtn",
        description="Play the utility of a depot file: a VTN at its vtn.url, under mutual TLS 1.3.",
    )
    parser.add_argument("depot", type=Path, help="a depot file, or an inventory directory with one")
    parser.add_argument("--depot", dest="name", help="which depot, where the directory has several files")
    parser.add_argument(
        "--certificates",
        type=Path,
        required=True,
        metavar="DIR",
        help="has vtn.crt, vtn.key, ca.crt and the VEN's ven.crt",
    )
    parser.add_argument("--control", type=Path, required=True, metavar="SOCKET", help="answer commands at this socket")
    parser.add_argument("--poll-s", type=int, default=1, metavar="S", help="how often to be polled; %(default)s")
    parser.add_argument("--report-s", type=int, default=5, metavar="S", help="how often to be told; %(default)s")
    given = parser.parse_args(arguments)
    depot = find_depot(given.depot, given.name)
    if depot.vtn is None:
        raise CannotStart(f"{given.depot}: found no vtn, expected one with its url")
    where = urlsplit(depot.vtn.url)
    host = where.hostname or ""  # the depot file was checked: there is one
    settings = Settings(
        vtn_id=depot.utility or host,
        host=host,
        port=where.port or _HTTPS_PORT,
        poll_s=given.poll_s,
        report_s=given.report_s,
        certificate=given.certificates / "vtn.crt",
        key=given.certificates / "vtn.key",
        authorities=given.certificates / "ca.crt",
    )
    # What it warns of is its own affair: how it was called, and what it puts right in an event.
    logging.getLogger("openleadr").setLevel(logging.ERROR)
    try:
        agreed = {}
        if depot.vtn.client_id is not None:
            shown = (given.certificates / "ven.crt").read_text(encoding="ascii")
            agreed[depot.vtn.client_id] = utils.certificate_fingerprint(shown)
        context = next(iter(depot.vtn.market_contexts), "http://utility.example/shed")
        utility = Utility(settings, _print, context, agreed)
    except OSError as error:
        raise CannotStart(f"{given.certificates}: {error}; expected vtn.crt, vtn.key, ca.crt and ven.crt") from None
    asyncio.run(_serve(utility, given.control, depot.vtn.url))
    return 0


async def _serve(utility: Utility, socket: Path, url: str) -> None:
    """Serve until a signal comes."""
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(utility.serving())
        except OSError as error:
            raise CannotStart(f"{url}: {error.strerror}; expected an address of this machine's") from None
        try:
            await stack.enter_async_context(control.serving(utility.answer, socket))
        except OSError as error:
            raise CannotStart(f"{socket}: {error.strerror}; expected a path for a new socket") from None
        _print(f"ready: {url}")
        await ended.wait()


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command speaks on its standard output
