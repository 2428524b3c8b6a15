# SPDX-License-Identifier: Apache-2.0
"""What the VEN sends, from plain data to bytes: openleadr's templates, or our own where those are wrong. Pure.

Every value is escaped, whoever it is from; what XML cannot hold at all becomes U+FFFD. Every message is held against
the schema before it is given out, so a VTN never sees one that it would have to refuse for its form.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from lxml import etree

from derms_agent.grid_gateway import iso8601
from derms_agent.grid_gateway.incoming import Code
from derms_agent.grid_gateway.schema import openleadr_directory, schema_problem

CONTENT_TYPE = "application/xml"
PROFILE = "2.0b"
GOOD = "Quality Good - Non Specific"
LAST_KNOWN = "Quality Bad - Last Known Value"
_OWN = Path(__file__).parent / "templates"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2


class Unsendable(ValueError):
    """A message that does not follow the schema, which is a fault of ours; nothing is sent."""


class Opt(str, Enum):
    """Whether the depot takes part."""

    IN = "optIn"
    OUT = "optOut"

    __str__ = str.__str__


@dataclass(frozen=True, slots=True, kw_only=True)
class EventResponse:
    """The answer to one event."""

    event_id: str
    modification: int
    opt: Opt
    code: int = Code.OK
    description: str = "OK"


@dataclass(frozen=True, slots=True)
class Window:
    """A time, from `start_unix_s` on, for so long."""

    start_unix_s: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Opted:
    """What the depot opts for outside an answer: for one event, or for times in which it takes part or does not."""

    id: str
    opt: Opt
    reason: str
    available: tuple[Window, ...] = ()
    market_context: str | None = None
    event_id: str | None = None
    modification: int = 0
    resources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPoint:
    """Something that can be reported, as METADATA describes it: a power in W, or a resource's status (unit None)."""

    id: str
    resource: str
    report_type: str
    reading_type: str
    unit: str | None
    least_s: float
    most_s: float


@dataclass(frozen=True, slots=True)
class Offer:
    """A report that the VEN has: its specifier's id, its name without METADATA_, and what is in it."""

    specifier: str
    name: str
    points: tuple[DataPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceStatus:
    """A resource's status. `setpoint_w`: what it is held to, `normal_w`: what it would draw, `least_w`: its floor."""

    online: bool
    manual_override: bool
    setpoint_w: float | None = None
    normal_w: float | None = None
    least_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A value that is reported, or a status."""

    data_point: str
    value: float = 0.0
    status: ResourceStatus | None = None
    quality: str = GOOD


@dataclass(frozen=True, slots=True)
class ReportInterval:
    """What was so from `start_unix_s` on, for so long."""

    start_unix_s: float
    duration_s: float
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One report as it is sent."""

    report_id: str
    request_id: str
    specifier: str
    name: str
    created_unix_s: float
    intervals: tuple[ReportInterval, ...]


def _fit(value: object) -> object:
    """Return a value without what XML 1.0 has no place for; nothing for None."""
    if value is None:
        return ""
    return _NOT_XML.sub("\ufffd", value) if type(value) is str else value


def _boolean(value: bool) -> str:
    return "true" if value else "false"


@functools.cache
def _templates() -> Environment:
    environment = Environment(
        loader=ChoiceLoader([FileSystemLoader(_OWN), FileSystemLoader(openleadr_directory() / "templates")]),
        autoescape=True,
        finalize=_fit,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "datetimeformat": iso8601.time_text,
        "timedeltaformat": iso8601.duration_text,
        "booleanformat": _boolean,
    }
    return environment


def _made(kind: str, **values: Any) -> bytes:
    """Return a message. Raises Unsendable."""
    signed_object = _templates().get_template(f"{kind}.xml").render(values)
    envelope = _templates().get_template("oadrPayload.xml").render(signature=None, signed_object=signed_object)
    body = envelope.encode()
    parser = etree.XMLParser(no_network=True, resolve_entities=False, load_dtd=False)
    try:
        problem = schema_problem(etree.fromstring(body, parser))
    except etree.XMLSyntaxError as broken:
        problem = str(broken)
    if problem is not None:
        raise Unsendable(f"{kind}: {problem}")
    return body


def _response(request_id: str, code: int, description: str) -> dict[str, object]:
    return {"response_code": int(code), "response_description": description, "request_id": request_id}


# Registration


def query_registration(request_id: str) -> bytes:
    """Return the question how the VTN may be spoken to."""
    return _made("oadrQueryRegistration", request_id=request_id)


def create_party_registration(
    request_id: str,
    ven_name: str,
    ven_id: str | None = None,
    registration_id: str | None = None,
    push_address: str | None = None,
    *,
    signs: bool = False,
) -> bytes:
    """Return a registration, or with `registration_id` a re-registration.

    :param push_address: where the VTN sends to; None: the VEN polls
    :param signs: the VEN signs its messages
    """
    return _made(
        "oadrCreatePartyRegistration",
        request_id=request_id,
        registration_id=registration_id,
        ven_id=ven_id,
        profile_name=PROFILE,
        transport_name="simpleHttp",
        transport_address=push_address,
        report_only=False,
        xml_signature=signs,
        ven_name=ven_name,
        http_pull_model=push_address is None,
    )


def cancel_party_registration(request_id: str, registration_id: str, ven_id: str | None) -> bytes:
    """Return the end of a registration."""
    return _made(
        "oadrCancelPartyRegistration", request_id=request_id, registration_id=registration_id, ven_id=ven_id or ""
    )


def canceled_party_registration(
    request_id: str, registration_id: str, ven_id: str | None, code: int = Code.OK, description: str = "OK"
) -> bytes:
    """Return the answer to a registration's end by the VTN."""
    return _made(
        "oadrCanceledPartyRegistration",
        response=_response(request_id, code, description),
        registration_id=registration_id,
        ven_id=ven_id or "",
    )


def poll(ven_id: str) -> bytes:
    """Return the question what is new."""
    return _made("oadrPoll", ven_id=ven_id)


def response(request_id: str, ven_id: str | None, code: int = Code.OK, description: str = "OK") -> bytes:
    """Return a plain answer."""
    return _made("oadrResponse", response=_response(request_id, code, description), ven_id=ven_id or "")


# Events and opts


def request_event(request_id: str, ven_id: str) -> bytes:
    """Return the question for all events."""
    return _made("oadrRequestEvent", request_id=request_id, ven_id=ven_id)


def created_event(
    request_id: str,
    ven_id: str,
    events: Sequence[EventResponse],
    code: int = Code.OK,
    description: str = "OK",
) -> bytes:
    """Return the answers to events; `request_id` is that of the oadrDistributeEvent that they came in."""
    return _made(
        "oadrCreatedEvent", request_id=request_id, ven_id=ven_id, events=events, code=int(code), description=description
    )


def create_opt(request_id: str, ven_id: str, opted: Opted, created_unix_s: float) -> bytes:
    """Return what the depot opts for."""
    return _made(
        "oadrCreateOpt",
        request_id=request_id,
        ven_id=ven_id,
        opt_id=opted.id,
        opt_type=opted.opt,
        opt_reason=opted.reason,
        market_context=opted.market_context,
        available=opted.available,
        created_date_time=created_unix_s,
        event_id=opted.event_id,
        modification_number=opted.modification,
        resources=opted.resources,
    )


def cancel_opt(request_id: str, ven_id: str, opt_id: str) -> bytes:
    """Return the end of what the depot opted for."""
    return _made("oadrCancelOpt", request_id=request_id, ven_id=ven_id, opt_id=opt_id)


# Reports


def register_report(request_id: str, ven_id: str, offers: Sequence[Offer], created_unix_s: float) -> bytes:
    """Return the METADATA reports: what this VEN can report. Their reportRequestID is 0 (conformance rule 311)."""
    reports = [
        {
            "duration": max((point.most_s for point in offer.points), default=0.0),
            "report_id": None,
            "report_request_id": None,
            "report_specifier_id": offer.specifier,
            "report_name": f"METADATA_{offer.name}",
            "created_date_time": created_unix_s,
            "report_descriptions": [_description(point) for point in offer.points],
        }
        for offer in offers
    ]
    return _made("oadrRegisterReport", request_id=request_id, ven_id=ven_id, reports=reports)


def _description(point: DataPoint) -> dict[str, object]:
    no_target = {"emix_interfaces": None, "group_id": None, "group_name": None, "ven_id": None, "party_id": None}
    return {
        "r_id": point.id,
        "report_subject": None,
        "report_data_source": {**no_target, "resource_id": point.resource},
        "report_type": point.report_type,
        "reading_type": point.reading_type,
        "market_context": None,
        "sampling_rate": {"min_period": point.least_s, "max_period": point.most_s, "on_change": False},
        "measurement": None if point.unit is None else _MEASUREMENTS[point.unit],
    }


_MEASUREMENTS: dict[str, dict[str, object]] = {
    "W": {
        "ns": "power",
        "name": "powerReal",
        "description": "RealPower",
        "unit": "W",
        "scale": "none",
        "pulse_factor": None,
        "power_attributes": {"hertz": 50, "voltage": 230, "ac": True},
    },
    "Wh": {
        "ns": "power",
        "name": "energyReal",
        "description": "RealEnergy",
        "unit": "Wh",
        "scale": "none",
        "pulse_factor": None,
        "power_attributes": None,
    },
}


def update_report(request_id: str, ven_id: str, reports: Sequence[Report]) -> bytes:
    """Return reports with values."""
    return _made("oadrUpdateReport", request_id=request_id, ven_id=ven_id, reports=reports)


def created_report(
    request_id: str, ven_id: str, pending: Sequence[str], code: int = Code.OK, description: str = "OK"
) -> bytes:
    """Return the answer to reports that were asked for; `pending` are the ids of all requests that stand."""
    return _made(
        "oadrCreatedReport",
        response=_response(request_id, code, description),
        pending_reports=[{"report_request_id": one} for one in pending],
        ven_id=ven_id,
    )


def canceled_report(
    request_id: str, ven_id: str, pending: Sequence[str], code: int = Code.OK, description: str = "OK"
) -> bytes:
    """Return the answer to reports that are no longer asked for."""
    return _made(
        "oadrCanceledReport",
        response=_response(request_id, code, description),
        pending_reports=[{"report_request_id": one} for one in pending],
        ven_id=ven_id,
    )


def registered_report(request_id: str, ven_id: str) -> bytes:
    """Return the answer to reports that the VTN has: none is asked for."""
    return _made(
        "oadrRegisteredReport", response=_response(request_id, Code.OK, "OK"), report_requests=(), ven_id=ven_id
    )


def updated_report(request_id: str, ven_id: str) -> bytes:
    """Return the answer to a report of the VTN's."""
    return _made("oadrUpdatedReport", response=_response(request_id, Code.OK, "OK"), cancel_report=None, ven_id=ven_id)
