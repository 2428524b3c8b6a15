# SPDX-License-Identifier: Apache-2.0
"""openleadr's VTN with mutual TLS, as a program: one VTN a process, for its state is its classes' (defect 17).

Its one argument is a JSON object: vtn_id, host, port, poll_s, cert, key, ca, tls_minimum. Commands are JSON objects on
standard input, a line each, and each is answered with a line. `mode` puts something between the VTN and its answers:
a status, no body, a body that drips, or nothing at all; `bring` has the next polls answered with these messages.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from aiohttp import web
from openleadr import objects, utils
from openleadr.messaging import create_message, validate_xml_schema

from derms_agent.twin.vtn import Settings, Vtn

OUT = sys.stdout
sys.stdout = sys.stderr  # the library prints


class Lab(Vtn):
    """The twin's VTN, with what tests have it do to its answers, and what it has seen."""

    def __init__(self, told: dict[str, Any]) -> None:
        names = ("vtn_id", "host", "port", "poll_s", "tls_minimum", "tls_maximum", "report_s", "signs")
        settings = Settings(
            certificate=Path(told["cert"]),
            key=Path(told["key"]),
            authorities=Path(told["ca"]),
            **{name: told[name] for name in names if name in told},
        )
        super().__init__(settings)
        self.vens |= told.get("vens", {})
        self.begin()
        self.server.app.middlewares.append(self.between)
        # openleadr's VTN has no EiOpt.
        self.server.app.add_routes([web.post("/OpenADR2/Simple/2.0b/EiOpt", self.opt)])

    def begin(self) -> None:
        self.forget()
        self.statuses: list[str] = []
        self.schedules: list[str] = []
        self.polls = 0
        self.requests: list[str] = []
        self.bodies: list[str] = []
        self.brought: list[str] = []
        self.refused: list[str] = []
        self.mode = ""

    def do_reset(self) -> None:
        """Forget all, and hang up on whoever is connected still: nothing of theirs is to arrive after this."""
        runner = self.server.app_runner
        assert runner is not None
        assert runner.server is not None
        for connection in runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        self.begin()
        self.vens.clear()
        for kept in (self.server.events, self.server.events_updated, self.server.registered_reports):
            kept.clear()

    async def register(self, payload: dict[str, Any]) -> tuple[str, str]:
        if payload.get("ven_id") in self.refused:
            return None  # type: ignore[return-value]  # openleadr answers that without a venID
        return await super().register(payload)

    async def opt(self, request: web.Request) -> web.Response:
        body = (await request.read()).decode()
        validate_xml_schema(body)
        opt_id = body.partition("<ei:optID>")[2].partition("<")[0]
        kind = "Created" if "oadrCreateOpt" in body else "Canceled"
        self.schedules.append(kind)
        text = create_message(
            f"oadr{kind}Opt",
            response={"response_code": 200, "response_description": "OK", "request_id": "1"},
            opt_id=opt_id,
        )
        return web.Response(text=text, content_type="application/xml")

    def note(self, service: str, body: str) -> bool:
        """Remember a request; return whether it is a poll."""
        self.requests.append(service)
        if "oadrPayloadResourceStatus" in body:
            self.statuses.append(body)
        if polls := "oadrPoll " in body:
            self.polls += 1
        else:
            self.bodies.append(body)
        return polls

    @web.middleware
    async def between(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.read()
        polls = self.note(request.path.rsplit("/", 1)[1], body.decode())
        if self.mode == "empty":
            return web.Response(text="", content_type="application/xml")
        if self.mode == "stall":
            await asyncio.sleep(3600)
        if self.mode == "lose":  # the VTN has answered, and the answer never arrives
            await handler(request)
            assert request.transport is not None
            request.transport.abort()
        if self.mode == "drip":
            dripping = web.StreamResponse(headers={"Content-Type": "application/xml"})
            await dripping.prepare(request)
            for _ in range(3600):
                await dripping.write(b" ")
                await asyncio.sleep(0.1)
        if self.mode.isdecimal():
            return web.Response(status=int(self.mode), text="no")
        if self.mode.startswith("<"):
            return web.Response(text=self.mode, content_type="application/xml")
        if polls and self.brought:
            return web.Response(text=self.brought.pop(0), content_type="application/xml")
        found: web.StreamResponse = await handler(request)
        return found

    def do(self, what: str, **told: Any) -> Any:
        return getattr(self, f"do_{what}")(**told)

    def do_add(self, ven_id: str, values: list[float], name: str = "SIMPLE", kind: str = "level", **more: Any) -> str:
        begin = datetime.fromtimestamp(more.pop("start"), timezone.utc)
        length_s, unit, status = more.pop("length_s"), more.pop("unit", False), more.pop("status", "far")
        currency = more.pop("currency", None)
        intervals = [
            objects.Interval(
                dtstart=begin + timedelta(seconds=length_s * n), duration=timedelta(seconds=length_s), signal_payload=v
            )
            for n, v in enumerate(values)
        ]
        measurement = objects.Measurement(
            "powerReal",
            description="RealPower",
            unit="W",
            scale="k",
            power_attributes=objects.PowerAttributes(50, 230, True),
        )
        if currency is not None:
            measurement = objects.Measurement("currencyPerKWh", "currencyPerKWh", currency, scale="none")
        event_id: str = more.pop("event_id", None) or utils.generate_id()
        event = objects.Event(
            event_descriptor=objects.EventDescriptor(
                event_id=event_id,
                modification_number=more.pop("modification", 0),
                event_status=status,
                created_date_time=datetime.now(timezone.utc),
                market_context="http://utility.example/shed",
                priority=more.pop("priority", 0),
                test_event=more.pop("test", False),
            ),
            event_signals=[
                objects.EventSignal(
                    intervals=intervals,
                    signal_name=name,
                    signal_type=kind,
                    signal_id="s1",
                    measurement=measurement if unit or currency else None,
                )
            ],
            active_period=utils.get_active_period_from_intervals(intervals, False),
            targets=[objects.Target(ven_id=ven_id)],
            response_required=more.pop("response_required", "always"),
        )
        assert not more, more
        self.server.add_raw_event(ven_id, event, callback=self.opted)
        return event_id

    def do_cancel(self, ven_id: str, event_id: str) -> None:
        self.server.cancel_event(ven_id, event_id)

    def do_push(self, ven_id: str) -> None:
        """Have all events sent with the next poll."""
        self.server.events_updated[ven_id] = True

    def do_forget(self, ven_id: str) -> None:
        self.vens.pop(ven_id, None)

    def do_refuse(self, ven_id: str) -> None:
        self.refused.append(ven_id)

    def do_mode(self, mode: str) -> None:
        self.mode = mode

    def do_bring(self, messages: list[str]) -> None:
        self.brought += messages

    def do_bodies(self, of: str) -> list[str]:
        """Return all messages of a kind that have come."""
        return [body for body in self.bodies if f"<oadr:{of}" in body]

    def do_seen(self) -> dict[str, Any]:
        names = ("registrations", "opts", "statuses", "polls", "requests", "schedules", "vens")
        return {name: getattr(self, name) for name in names} | {"samples": list(self.samples)}


async def main(kind: type[Lab] = Lab) -> None:
    lab = kind(json.loads(sys.argv[1]))
    await lab.server.run()
    reader = asyncio.StreamReader(limit=1 << 22)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps("ready"), file=OUT, flush=True)
    while line := await reader.readline():
        told = json.loads(line)
        print(json.dumps(lab.do(told.pop("do"), **told)), file=OUT, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
