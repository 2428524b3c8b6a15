# SPDX-License-Identifier: Apache-2.0
"""Every message that the VEN sends follows the schema, with whatever text in it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from derms_agent.grid_gateway import messages
from derms_agent.grid_gateway.messages import (
    DataPoint,
    EventResponse,
    Offer,
    Opt,
    Opted,
    Point,
    Report,
    ReportInterval,
    ResourceStatus,
    Window,
)
from derms_agent.grid_gateway.schema import NAMESPACES, schema_problem

NOW = 1_795_000_000.5
POWER = DataPoint(
    id="site-power", resource="site", report_type="demand", reading_type="Direct Read", unit="W", least_s=1, most_s=3600
)
STATUS = DataPoint(
    id="site-status",
    resource="site",
    report_type="x-resourceStatus",
    reading_type="x-notApplicable",
    unit=None,
    least_s=1,
    most_s=3600,
)


def all_messages(text: str) -> dict[str, bytes]:
    """Return one of each message, with a text wherever one may stand."""
    value = Point(data_point=text, value=-12.5)
    offline = Point(data_point=text, status=ResourceStatus(online=False, manual_override=True))
    status = ResourceStatus(online=True, manual_override=False, setpoint_w=4000.0, normal_w=9000.0, least_w=0.0)
    intervals = (
        ReportInterval(NOW, 60, (value, Point(data_point=text, status=status))),
        ReportInterval(NOW + 60, 60, (offline,)),
    )
    report = Report(
        report_id=text, request_id=text, specifier=text, name="TELEMETRY_USAGE", created_unix_s=NOW, intervals=intervals
    )
    responses = (
        EventResponse(event_id=text, modification=0, opt=Opt.IN),
        EventResponse(event_id=text, modification=7, opt=Opt.OUT, code=460, description=text),
    )
    opted = Opted(id=text, opt=Opt.OUT, reason="x-schedule", available=(Window(NOW, 3600), Window(NOW + 9000, 60)))
    for_event = Opted(id=text, opt=Opt.IN, reason="participating", event_id=text, modification=3, resources=(text,))
    offers = (
        Offer(text, "TELEMETRY_USAGE", (POWER, DataPoint(id=text, resource=text, report_type="usage",
              reading_type="Direct Read", unit="Wh", least_s=1, most_s=60))),
        Offer(text, "TELEMETRY_STATUS", (STATUS,)),
    )  # fmt: skip
    return {
        "oadrQueryRegistration": messages.query_registration(text),
        "oadrCreatePartyRegistration": messages.create_party_registration(text, text, text, text),
        "oadrCancelPartyRegistration": messages.cancel_party_registration(text, text, text),
        "oadrCanceledPartyRegistration": messages.canceled_party_registration(text, text, None, 452, text),
        "oadrPoll": messages.poll(text),
        "oadrResponse": messages.response(text, text, 459, text),
        "oadrRequestEvent": messages.request_event(text, text),
        "oadrCreatedEvent": messages.created_event(text, text, responses, 200, text),
        "oadrCreateOpt": messages.create_opt(text, text, opted, NOW),
        "oadrCreateOpt event": messages.create_opt(text, text, for_event, NOW),
        "oadrCancelOpt": messages.cancel_opt(text, text, text),
        "oadrRegisterReport": messages.register_report(text, text, offers, NOW),
        "oadrCreatedReport": messages.created_report(text, text, (text, text)),
        "oadrCanceledReport": messages.canceled_report(text, text, ()),
        "oadrUpdateReport": messages.update_report(text, text, (report,)),
        "oadrRegisteredReport": messages.registered_report(text, text),
        "oadrUpdatedReport": messages.updated_report(text, text),
    }


@pytest.mark.parametrize("kind", all_messages("x"))
def test_every_message_follows_the_schema_and_is_the_one_that_was_meant(kind: str) -> None:
    root = etree.fromstring(all_messages("x")[kind])

    assert schema_problem(root) is None
    assert etree.QName(root[0][0]).localname == kind.partition(" ")[0]


@settings(max_examples=25)
@given(st.text(max_size=40))
def test_no_text_breaks_a_message(text: str) -> None:
    for kind, body in all_messages(text).items():
        assert schema_problem(etree.fromstring(body)) is None, kind


@given(
    st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), max_size=40
    )
)
def test_a_text_arrives_as_it_was_given(text: str) -> None:  # defect 15
    root = etree.fromstring(messages.create_party_registration("1", text))

    assert (root.findtext(".//oadr:oadrVenName", namespaces=NAMESPACES) or "") == text


def test_a_name_with_markup_in_it_is_a_name() -> None:
    root = etree.fromstring(messages.create_party_registration("1", "A & B <depot> ]]> \0"))

    assert root.findtext(".//oadr:oadrVenName", namespaces=NAMESPACES) == "A & B <depot> ]]> \ufffd"


def test_metadata_has_the_report_request_id_0() -> None:  # conformance rule 311
    root = etree.fromstring(messages.register_report("1", "ven", (Offer("usage", "TELEMETRY_USAGE", (POWER,)),), NOW))

    assert root.findtext(".//ei:reportRequestID", namespaces=NAMESPACES) == "0"
    assert root.findtext(".//ei:reportName", namespaces=NAMESPACES) == "METADATA_TELEMETRY_USAGE"


def test_a_status_is_a_resource_status_and_no_number() -> None:  # defect 13
    body = all_messages("x")["oadrUpdateReport"]
    found = etree.fromstring(body).find(".//oadr:oadrPayloadResourceStatus", NAMESPACES)

    assert found.findtext("oadr:oadrOnline", namespaces=NAMESPACES) == "true"
    assert found.findtext(".//oadr:oadrCurrent", namespaces=NAMESPACES) == "4000.0"


def test_an_opt_has_its_time() -> None:  # defect 14
    root = etree.fromstring(all_messages("x")["oadrCreateOpt"])

    assert root.findtext(".//ei:createdDateTime", namespaces=NAMESPACES) == "2026-11-18T11:06:40.500Z"


def test_what_the_schema_does_not_admit_is_not_sent() -> None:
    wrong: Any = Opted(id="1", opt=Opt.OUT, reason="because")

    with pytest.raises(messages.Unsendable, match="optReason"):
        messages.create_opt("1", "ven", wrong, NOW)


def test_openleadr_itself_is_not_imported() -> None:
    """In a process of its own, for tests of what is signed have openleadr verify it."""
    program = (
        "import sys; import derms_agent.grid_gateway.service; from derms_agent.grid_gateway import messages\n"
        "messages.poll('ven')\n"
        "assert 'lxml' in sys.modules and 'openleadr' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
