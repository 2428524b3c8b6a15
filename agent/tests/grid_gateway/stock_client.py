# SPDX-License-Identifier: Apache-2.0
"""openleadr's own client, as a program: what it makes of what the gateway has to live with. A case by its name.

It says in a line of JSON what happened. Its one argument is a JSON object: case, url, certificate, key, authorities.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import datetime, timedelta, timezone
from typing import Any

from agent.tests.grid_gateway.vtn_messages import distribute, event
from openleadr import OpenADRClient, messaging, utils

OUT = sys.stdout
sys.stdout = sys.stderr


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
