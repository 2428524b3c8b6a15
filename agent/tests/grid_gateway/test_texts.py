# SPDX-License-Identifier: Apache-2.0
"""Identifiers are the texts that the VTN sent, through the disk and back to it, however much they look like numbers."""

from __future__ import annotations

import pytest
from agent.tests.grid_gateway.scripted_vtn import (
    create_report,
    registered,
    registered_report,
    report_request,
)
from agent.tests.grid_gateway.test_promises import Play, an_event, play
from agent.tests.grid_gateway.vtn_messages import distribute
from lxml import etree

from derms_agent.grid_gateway.incoming import CreatedPartyRegistration, parse

__all__ = ["play"]
NUMBERS = ["00123", "1.20", "1e5", "-0", " 7 ", "١٢"]


@pytest.mark.parametrize("text", NUMBERS)
def test_a_registration_gives_texts(text: str) -> None:
    message = parse(registered(text, text).replace(">VTN-1<", f">{text}<").encode())
    assert isinstance(message, CreatedPartyRegistration)
    assert (message.registration_id, message.ven_id, message.vtn_id) == (text, text, text)


@pytest.mark.anyio
@pytest.mark.parametrize("text", NUMBERS)
async def test_what_the_vtn_is_sent_has_the_texts_that_it_gave(play: Play, text: str) -> None:
    play.vtn.standing["oadrQueryRegistration"] = play.vtn.standing["oadrCreatePartyRegistration"] = registered(
        text, text
    ).replace(">VTN-1<", f">{text}<")
    asked = report_request(text, "telemetry-usage", "site-power")
    play.vtn.standing["oadrRegisterReport"] = registered_report(asked).replace(">ven-1<", f">{text}<")
    play.ven.registration = None
    await play.ven._register()
    # From the disk, as a successor has it.
    play.ven._save_registration()
    kept = play.ven.store.load("registration.json")[0]
    assert kept is not None
    assert kept["registration"]["ven_id"] == kept["registration"]["registration_id"] == text
    listed = distribute(an_event(text, 1, 0, 600, targets=f"<ei:venID>{text}</ei:venID>"), vtn_id=text, request_id=text)
    report = report_request(text, "telemetry-usage", "site-power")
    play.vtn.script["oadrPoll"] = [listed.decode(), create_report(report)]
    await play.ven._drain(text)

    assert play.held_to() == [(text, 60_000.0)]
    (answer,) = play.vtn.messages("oadrCreatedEvent")
    tree = etree.fromstring(answer.encode())
    assert {one.text for name in ("eventID", "requestID", "venID") for one in tree.iter(f"{{*}}{name}")} == {text}
    assert tree.findtext(".//{*}optType") == "optIn"
    for kind, name in (("oadrPoll", "venID"), ("oadrCreatedReport", "reportRequestID")):
        trees = [etree.fromstring(one.encode()) for one in play.vtn.messages(kind)]
        assert trees
        assert {one.text for found in trees for one in found.iter(f"{{*}}{name}")} == {text}
