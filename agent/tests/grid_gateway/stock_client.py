# SPDX-License-Identifier: Apache-2.0
"""openleadr's own client, as a program: what it makes of what the gateway has to live with. A case by its name.

It says in a line of JSON what happened. Its one argument is a JSON object: case, url, certificate, key, authorities.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any
from unittest import mock

import attr
import tzlocal.unix
from agent.tests.grid_gateway.scripted_vtn import (
    NOTHING_NEW,
    REREGISTER,
    VEN_ID,
    VTN_ID,
    ScriptedVtn,
    cancel_report,
    create_report,
    registered,
    registered_report,
    report_request,
    sent,
)
from agent.tests.grid_gateway.vtn_messages import (
    KILOWATTS,
    distribute,
    eiresponse,
    event,
    interval,
    payload,
    signal,
)
from aiohttp import web
from openleadr import OpenADRClient, messaging, utils

OUT = sys.stdout
sys.stdout = sys.stderr
POLL_S = 0.1
PATIENCE_S = 20.0


def client_of(told: dict[str, Any], ven_name: str = "stock") -> OpenADRClient:
    made = OpenADRClient(
        ven_name=ven_name, vtn_url=f"{told['url']}/OpenADR2/Simple/2.0b", cert=told["certificate"], key=told["key"],
        ca_file=told["authorities"], disable_signature=True,
    )  # fmt: skip
    made.cert_path, made.key_path = told["certificate"], told["key"]

    async def opt_in(*_: Any, **__: Any) -> str:
        return "optIn"

    made.add_handler("on_event", opt_in)
    made.add_handler("on_update_event", opt_in)
    return made


async def doctype(_told: dict[str, Any]) -> str:
    text = distribute(event(), vtn_id="&b;").decode()
    messaging.validate_xml_schema(f'<!DOCTYPE a [<!ENTITY b "c">]>{text}')
    return "read"


async def identifiers(_told: dict[str, Any]) -> Any:
    _, found = messaging.parse_message(distribute(event("00123")).decode())
    return found["events"][0]["event_descriptor"]["event_id"]


async def dotted(_told: dict[str, Any]) -> Any:
    _, found = messaging.parse_message(distribute(event("1.2.3")).decode())
    return found["events"][0]["event_descriptor"]["event_id"]


async def no_zone(_told: dict[str, Any]) -> Any:
    _, found = messaging.parse_message(distribute(event(start="2026-11-26T18:00:00")).decode())
    utils.determine_event_status(found["events"][0]["active_period"])
    return "read"


async def name(_told: dict[str, Any]) -> str:
    text = messaging.create_message(
        "oadrCreatePartyRegistration", request_id="1", ven_name="A & B", profile_name="2.0b",
        transport_name="simpleHttp", transport_address=None, report_only=False, xml_signature=False,
        http_pull_model=True,
    )  # fmt: skip
    messaging.validate_xml_schema(text)
    return "valid"


async def opt(_told: dict[str, Any]) -> str:
    text = messaging.create_message(
        "oadrCreateOpt",
        opt_id="1",
        opt_type="optOut",
        opt_reason="x-schedule",
        ven_id="v",
        request_id="1",
        targets=None,
    )
    messaging.validate_xml_schema(text)
    return "valid"


async def away_at_start(told: dict[str, Any]) -> str:
    client = client_of(told)
    await client.run()
    try:
        await client.run()
    except RuntimeError as why:
        return str(why)
    return "runs" if client.scheduler.running else "returned"


async def cancelled_twice(told: dict[str, Any]) -> list[str]:
    client = client_of(told)
    client.ven_id, client.vtn_id = "ven-1", "vtn-1"
    answers: list[str] = []

    async def answered(_request_id: str, *_: Any, **__: Any) -> None:
        return None

    async def perform(_service: str, message: str) -> tuple[str, dict[str, Any]]:
        answers.extend("optOut" if "optOut" in part else "optIn" for part in message.split("<ei:eventResponse>")[1:])
        return "oadrResponse", {"response": {"response_code": 200, "response_description": "OK"}}

    client._perform_request = perform
    # The client answers an event only before it is over by the clock of this machine.
    start = f"{datetime.now(timezone.utc) + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
    cancelled = event("e1", status="cancelled", modification=1, start=start)
    for text in (
        distribute(event("e1", start=start)),
        distribute(cancelled),
        distribute(cancelled, event("e2", start=start)),
    ):
        _, message = messaging.parse_message(text.decode())
        await client._on_event(message)
    return answers


# With a VTN that is a table: what the client asks and is answered is as it would be on the wire


def speaking_to(vtn: ScriptedVtn, told: dict[str, Any]) -> OpenADRClient:
    """Return a client that is registered with a scripted VTN."""
    client = client_of(told)
    client.ven_id, client.vtn_id, client.registration_id = VEN_ID, VTN_ID, "reg-1"
    client.loop = asyncio.get_running_loop()

    async def perform(_service: str, message: str) -> tuple[str | None, dict[str, Any]]:
        text = vtn.answer(message)
        if text is None:  # so it does where the connection breaks
            return None, {}
        messaging.validate_xml_schema(text)
        kind, found = messaging.parse_message(text)
        if "requested_oadr_poll_freq" in found:  # which has whole seconds on the wire
            found["requested_oadr_poll_freq"] = timedelta(seconds=POLL_S)
        return kind, found

    client._perform_request = perform
    return client


async def until(what: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until_s, "it takes too long"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def running(vtn: ScriptedVtn, told: dict[str, Any]) -> AsyncIterator[OpenADRClient]:
    """Run a client on its own, until it has polled three times."""
    client = speaking_to(vtn, told)
    await client._ensure_client_session()
    await client.run()
    await until(lambda: vtn.count("oadrPoll") >= 3)
    try:
        yield client
    finally:
        await client.stop()


async def polls_from_now(vtn: ScriptedVtn) -> int:
    """Return how often a VTN is polled within seven intervals, after a poll that is under way."""
    await asyncio.sleep(2 * POLL_S)
    before = vtn.count("oadrPoll")
    await asyncio.sleep(7 * POLL_S)
    return vtn.count("oadrPoll") - before


async def polled(client: OpenADRClient, vtn: ScriptedVtn, *answers: str) -> list[str]:
    """Have a client poll once for each answer, and return what it says of events."""
    since = len(vtn.asked)
    vtn.script["oadrPoll"] = [*answers]
    for _ in answers:
        await client._poll()
    return vtn.messages("oadrCreatedEvent", since)


def opts(message: str) -> list[tuple[str, str]]:
    """Return code and opt of each answer in a message."""
    found = message.split("<ei:eventResponse>")[1:]
    return [(re.findall(r"responseCode>(\d+)<", one)[0], re.findall(r"optType>(\w+)<", one)[0]) for one in found]


def tomorrow(seconds: float = 86400.0) -> str:
    """Return a time that is to come: the client answers an event only before it is over."""
    return f"{datetime.now(timezone.utc) + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ}"


async def steady(told: dict[str, Any]) -> int:
    """Return how often it polls where nothing happens, for the cases in which it polls no more."""
    vtn = ScriptedVtn()
    async with running(vtn, told):
        return await polls_from_now(vtn)


async def refused_once(told: dict[str, Any]) -> dict[str, int]:
    vtn = ScriptedVtn()
    vtn.script["oadrCreatePartyRegistration"] = [registered(), registered("", "")]
    vtn.script["oadrPoll"] = [NOTHING_NEW, NOTHING_NEW, REREGISTER]
    async with running(vtn, told):
        return {"polls": await polls_from_now(vtn), "registrations": vtn.count("oadrCreatePartyRegistration")}


async def step_back(told: dict[str, Any]) -> int:
    class Stepped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) - timedelta(hours=1)

    vtn = ScriptedVtn()
    async with running(vtn, told):
        with (
            mock.patch("apscheduler.schedulers.base.datetime", Stepped),
            mock.patch("apscheduler.executors.base.datetime", Stepped),
        ):
            return await polls_from_now(vtn)


async def zone_without_a_name(told: dict[str, Any]) -> str:
    """Make a client on a host whose /etc/localtime is a file instead of a link."""
    cet = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + struct.pack(">lbB", 3600, 0, 0) + b"CET\0"
    with tempfile.TemporaryDirectory() as root, mock.patch.dict(os.environ):
        os.environ.pop("TZ", None)
        (Path(root) / "etc").mkdir()
        (Path(root) / "etc" / "localtime").write_bytes(cet)
        zone = tzlocal.unix._get_localzone(root)  # type: ignore[no-untyped-call]
        with mock.patch.object(tzlocal, "get_localzone", return_value=zone):
            client_of(told)
    return "made"


async def answer_lost(told: dict[str, Any]) -> dict[str, Any]:
    """Lose the answer to the third poll, with an event in it that the VTN tells of whoever asks for all events.

    Return how often it polls after that, and what else it sends from that poll on.
    """
    vtn = ScriptedVtn()
    vtn.script["oadrRequestEvent"] = [sent()]
    vtn.standing["oadrRequestEvent"] = sent(event(start=tomorrow()))
    vtn.script["oadrPoll"] = [NOTHING_NEW, NOTHING_NEW, None]
    async with running(vtn, told):
        polls = await polls_from_now(vtn)
        third = [number for number, (kind, _) in enumerate(vtn.asked) if kind == "oadrPoll"][2]
        return {"polls": polls, "sent": sorted(vtn.kinds(third))}


async def numeric_vtn(told: dict[str, Any]) -> list[tuple[str, str]]:
    vtn = ScriptedVtn()
    (said,) = await polled(speaking_to(vtn, told), vtn, distribute(event(start=tomorrow()), vtn_id="00123").decode())
    return opts(said)


async def lowercase_vtn(told: dict[str, Any]) -> str:
    vtn = ScriptedVtn()
    (said,) = await polled(speaking_to(vtn, told), vtn, distribute(event(start=tomorrow()), vtn_id="utility").decode())
    code: str = re.findall(r"responseCode>(\d+)<", said)[0]
    return code


async def events_misread(told: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to each event, what the handlers saw, and what it still holds of what is no longer listed."""
    vtn = ScriptedVtn()
    client = speaking_to(vtn, told)
    seen: list[tuple[str, str, int]] = []

    def handler(how: str) -> Callable[[dict[str, Any]], str]:
        def opt_in(found: dict[str, Any]) -> str:
            described = found["event_descriptor"]
            seen.append((how, described["event_id"], described["modification_number"]))
            return "optIn"

        return opt_in

    client.on_event, client.on_update_event = handler("new"), handler("update")
    start = tomorrow()
    said = await polled(
        client, vtn,
        sent(event("gone", status="cancelled", start=start)),
        sent(event("lower", modification=3, start=start)),
        sent(event("lower", modification=1, start=start)),
        sent(event("theirs", targets="<ei:venID>somebody-else</ei:venID>", start=start)),
        sent(event("odd", signals=signal(name="x-unheard-of"), start=start)),
        sent(event("last", start=start)),
    )  # fmt: skip
    held = [one["event_descriptor"]["event_id"] for one in client.received_events]
    return {"answers": [opts(one)[0] for one in said], "seen": seen, "held": held}


async def ramp_up(_told: dict[str, Any]) -> str:
    """Return what an event is that begins in half an hour, with a ramp of an hour."""
    periods = "<ei:x-eiRampUp><xcal:duration>PT1H</xcal:duration></ei:x-eiRampUp>"
    text = sent(event(start=tomorrow(1800), periods=periods))
    messaging.validate_xml_schema(text)
    _, found = messaging.parse_message(text)
    period = found["events"][0]["active_period"]
    assert period["ramp_up"] == timedelta(hours=1)
    return str(utils.determine_event_status(period))


async def units(_told: dict[str, Any]) -> list[bool]:
    """Return whether the unit of a signal is where it belongs: first in the list, and after one without."""
    load = signal([interval(40)], name="LOAD_DISPATCH", kind="setpoint", unit=KILOWATTS, id="s2")
    found = []
    for signals in (load, signal() + load):
        text = sent(event(signals=signals, start=tomorrow()))
        messaging.validate_xml_schema(text)
        _, message = messaging.parse_message(text)
        found.append("measurement" in message["events"][0]["event_signals"][-1])
    return found


# Reports


def reporting(vtn: ScriptedVtn, told: dict[str, Any]) -> OpenADRClient:
    """Return a client that offers two values, and a status."""
    client = speaking_to(vtn, told)
    each = {"sampling_rate": timedelta(seconds=10), "report_duration": timedelta(hours=1)}
    usage = {"measurement": "voltage", "report_specifier_id": "usage"}
    state = {"report_name": "TELEMETRY_STATUS", "report_specifier_id": "status"}
    for point, kind in (("p1", usage), ("p2", usage), ("s1", state)):
        client.add_report(lambda: 1.0, point, r_id=point, **kind, **each)
    return client


async def one_list(told: dict[str, Any]) -> list[list[str]]:
    """Return the data points of two reports that were asked for by one message, of one each."""
    vtn = ScriptedVtn()
    client = reporting(vtn, told)
    await polled(client, vtn, create_report(report_request("a", "usage", "p1"), report_request("b", "usage", "p2")))
    return [one["r_ids"] for one in client.report_requests]


@asynccontextmanager
async def sending(client: OpenADRClient, vtn: ScriptedVtn) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Have the client send reports; yield what takes a value for report a and waits until it is sent."""
    worker = asyncio.create_task(client._report_queue_worker())

    async def send() -> None:
        before = vtn.count("oadrUpdateReport")
        await client.update_report("a")
        await until(lambda: vtn.count("oadrUpdateReport") > before)

    yield send
    worker.cancel()
    await asyncio.wait({worker})


async def samples_lost(told: dict[str, Any]) -> int:
    """Return how many of two values arrive, where the answer to the first is lost and the second is answered."""
    vtn = ScriptedVtn()
    client = reporting(vtn, told)
    await polled(client, vtn, create_report(report_request("a", "usage", "p1")))
    vtn.script["oadrUpdateReport"] = [None]
    async with sending(client, vtn) as send:
        await send()
        await send()
        await asyncio.sleep(0.5)
    return "".join(vtn.messages("oadrUpdateReport")[1:]).count("<ei:interval>")


async def workers(told: dict[str, Any]) -> dict[str, int]:
    """Return how many tasks and jobs work on the reports of a client that was registered three times."""
    vtn = ScriptedVtn()
    vtn.standing["oadrRegisterReport"] = registered_report(report_request("a", "usage", "p1"))
    client = reporting(vtn, told)
    await client._ensure_client_session()
    await client.run()
    await polled(client, vtn, REREGISTER, REREGISTER)
    tasks = [one for one in asyncio.all_tasks() if getattr(one.get_coro(), "__name__", "") == "_report_queue_worker"]
    jobs = [one for one in client.scheduler.get_jobs() if type(one.trigger).__name__ == "CronTrigger"]
    await client.stop()
    for one in tasks:
        one.cancel()
    return {"tasks": len(tasks), "jobs": len(jobs)}


async def status(told: dict[str, Any]) -> dict[str, bool]:
    """Return what a report of TELEMETRY_STATUS has in it."""
    vtn = ScriptedVtn()
    client = reporting(vtn, told)
    await polled(client, vtn, create_report(report_request("a", "status", "s1")))
    async with sending(client, vtn) as send:
        await send()
    (said,) = vtn.messages("oadrUpdateReport")
    return {"number": "payloadFloat" in said, "status": "oadrPayloadResourceStatus" in said}


async def cancelled_beside(told: dict[str, Any]) -> list[str]:
    """Return the reports that go on after the answer to one of them has ended it."""
    vtn = ScriptedVtn()
    client = reporting(vtn, told)
    await polled(client, vtn, create_report(report_request("a", "usage", "p1")))
    vtn.script["oadrUpdateReport"] = [
        payload(f"<oadr:oadrUpdatedReport>{eiresponse()}{cancel_report('a')}</oadr:oadrUpdatedReport>")
    ]
    async with sending(client, vtn) as send:
        await send()
        # Where it obeys the end of a report, it waits for a second before it is done with it.
        await asyncio.sleep(1.3)
    return [one["report_request_id"] for one in client.report_requests]


async def memory(told: dict[str, Any]) -> dict[str, int]:
    """Return what it still has of 100 events that are over, after it has cleaned up."""
    vtn = ScriptedVtn()
    client = speaking_to(vtn, told)
    over = tomorrow(-7200)
    await polled(client, vtn, sent(*(event(f"e{number}", status="active", start=over) for number in range(100))))
    await client._event_cleanup()
    return {"received": len(client.received_events), "responded": len(client.responded_events)}


# With a server: what only a connection shows


@asynccontextmanager
async def served(answer: Callable[[web.Request], Any], told: dict[str, Any] | None = None) -> AsyncIterator[str]:
    """Answer at a port, with TLS where there is an authority told of; yield the URL."""
    app = web.Application()
    app.router.add_post("/OpenADR2/Simple/2.0b/{service}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    context = None
    if told is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        directory = Path(told["certificate"]).parent
        context.load_cert_chain(directory / "vtn.crt", directory / "vtn.key")
    site = web.TCPSite(runner, "localhost", 0, ssl_context=context, shutdown_timeout=0)
    await site.start()
    try:
        yield f"http{'' if context is None else 's'}://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def empty(told: dict[str, Any]) -> str:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="", content_type="application/xml")

    async with served(answer, told) as url:
        client = client_of({**told, "url": url})
        try:
            await client._poll()
        finally:
            await client.client_session.close()
    return "polled"


async def drip(told: dict[str, Any]) -> str:
    """Poll a VTN whose answer drips, for 1.5 s: 90 s, were there a time that it gives an answer in all."""

    async def answer(request: web.Request) -> web.StreamResponse:
        dripping = web.StreamResponse(headers={"Content-Type": "application/xml"})
        await dripping.prepare(request)
        while True:
            await dripping.write(b" ")
            await asyncio.sleep(0.02)

    async with served(answer, told) as url:
        client = client_of({**told, "url": url})
        await client._ensure_client_session()
        asked = client.client_session.timeout
        total_s = None if asked.total is None else asked.total / 60
        client.client_session._timeout = attr.evolve(asked, total=total_s)
        polling = asyncio.create_task(client.poll())
        done, _ = await asyncio.wait({polling}, timeout=1.5)
        polling.cancel()
        await asyncio.wait({polling})
        await client.client_session.close()
    return "ended" if done else "waits"


async def pinned(told: dict[str, Any]) -> dict[str, Any]:
    """Return what a client makes of messages that are signed by whom it trusts, sent by somebody else, now and late.

    Its answer is None where it drops the message. The certificate of the connection is never the pinned one.
    """
    certificate, key = (Path(told[name]).read_bytes() for name in ("certificate", "key"))
    late_s = 0.0

    class Late(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) - timedelta(seconds=late_s)

    async def answer(_request: web.Request) -> web.Response:
        with mock.patch.object(messaging, "datetime", Late):
            text = messaging.create_message(
                "oadrResponse", cert=certificate, key=key, ven_id=VEN_ID,
                response={"response_code": 200, "response_description": "OK", "request_id": "1"},
            )  # fmt: skip
        return web.Response(text=text, content_type="application/xml")

    found = {}
    async with served(answer, told) as url:
        client = client_of({**told, "url": url})
        client.ven_id, client.vtn_fingerprint = VEN_ID, utils.certificate_fingerprint(certificate.decode())
        for late_s in (0.0, 6.0):  # by which the answer goes
            kind, _ = await client.poll()
            found[f"{late_s:g}"] = kind
        await client.client_session.close()
    return found


async def tls_1_2(told: dict[str, Any]) -> str:
    client = client_of(told)
    await client._ensure_client_session()
    kind, _ = await client.query_registration()
    await client.client_session.close()
    return str(kind)


async def amnesia(told: dict[str, Any]) -> dict[str, Any]:
    """Poll a VTN that is made to forget the VEN by whoever runs this."""
    client = client_of(told)
    await client.run()
    print(json.dumps(client.ven_id), file=OUT, flush=True)
    until_s = time.monotonic() + told["seconds"]
    while time.monotonic() < until_s:
        await asyncio.sleep(0.1)
    return {"ven_id": client.ven_id}


async def outcome(told: dict[str, Any]) -> Any:
    try:
        return await globals()[told["case"]](told)
    except Exception as why:  # noqa: BLE001 - whatever it is, it is the outcome
        return f"{type(why).__name__}: {why}"


async def main() -> None:
    told = json.loads(sys.argv[1])
    cases = told["case"].split()
    found = {case: await outcome({**told, "case": case}) for case in cases}
    print(json.dumps(found), file=OUT, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
