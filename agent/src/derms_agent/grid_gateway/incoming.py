# SPDX-License-Identifier: Apache-2.0
"""What a VTN sends, from bytes to plain data; nothing that comes in can harm the process or its neighbour. Pure.

- A DOCTYPE, and with it every entity, is refused before a parser sees it, in whatever encoding it is written.
- How long, how deep and how many elements a message may be is bounded; nothing is fetched.
- Every identifier is the text that was sent: `00123`, `1.2.3` and ` a` are three texts, and no numbers.
- The schema is asked for each event by itself where the message as a whole does not follow it: a broken event gets a
  code to be answered with, and its neighbours go on.

Codes are OpenADR 2.0b's, those of EiResponse: 2xx, and of 4xx the ones that `Code` has.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, TypeAlias

from lxml import etree

from derms_agent.grid_gateway import iso8601
from derms_agent.grid_gateway.schema import NAMESPACES, Element, schema_problem

MOST_BYTES = 1 << 20
MOST_ELEMENTS = 50_000
MOST_DEPTH = 40
MOST_EVENTS = 500
_CHUNK_BYTES = 16_384
_SHOWN = 200
_MOST_VALUE = 1e12
"""No power, share or price of this world is more; what is made of it stays finite."""
_OFF_S = 1.0
"""How far intervals may be from adding up: their durations are whole seconds."""
_DECLARATION = re.compile(r"<\?xml\s[^>]*?\?>")
_ENCODING = re.compile(r"""\sencoding\s*=\s*["']([^"']*)["']""")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_FAMILIES = {"utf-8": ("utf-8", "utf8", "us-ascii", "ascii"), "utf-16": ("utf-16", "utf16", "utf-16le", "utf-16be")}
_SCALES = {
    "p": 1e-12, "n": 1e-9, "micro": 1e-6, "m": 1e-3, "c": 1e-2, "d": 1e-1,
    "none": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
}  # fmt: skip


class Code(IntEnum):
    """OpenADR 2.0b's codes of refusal."""

    OK = 200
    OUT_OF_SEQUENCE = 450
    NOT_ALLOWED = 451
    INVALID_ID = 452
    NOT_RECOGNIZED = 453
    INVALID_DATA = 454
    COMPLIANCE_ERROR = 459
    SIGNAL_NOT_SUPPORTED = 460
    REPORT_NOT_SUPPORTED = 461
    TARGET_MISMATCH = 462
    NOT_REGISTERED = 463
    DEPLOYMENT_ERROR = 469

    __str__ = int.__repr__  # also on Python 3.10


class Malformed(ValueError):
    """A message that cannot be used as a whole; the text says why."""


class Status(str, Enum):
    """What an event is said to be."""

    NONE = "none"
    FAR = "far"
    NEAR = "near"
    ACTIVE = "active"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


ENDED = (Status.CANCELLED, Status.COMPLETED)


@dataclass(frozen=True, slots=True)
class Unit:
    """What a signal's values are of: the element's name, as `powerReal`; its unit; what a value is multiplied by."""

    item: str
    unit: str
    scale: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and when it holds: from `start_unix_s`, for `duration_s`; 0 is until the event ends."""

    start_unix_s: float
    duration_s: float
    value: float


@dataclass(frozen=True, slots=True)
class Targets:
    """Whom something is for. `others` counts what nothing here is; the depot's own class of devices names nobody."""

    vens: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    parties: tuple[str, ...] = ()
    others: int = 0

    @property
    def all(self) -> bool:
        """Whether nobody is named, which means everybody that it was sent to."""
        return not (self.vens or self.resources or self.groups or self.parties or self.others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One signal of an event, its intervals one after the other without a gap."""

    id: str
    name: str
    type: str
    intervals: tuple[Interval, ...]
    unit: Unit | None = None
    targets: Targets = Targets()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event as the VTN describes it. Times are s since 1970, durations s.

    `duration_s` 0 is open-ended. `startafter_s`: it begins at a random time within so long after its start.
    `notification_s`: so long before its start it was to be known. `ramp_up_s` and `recovery_s` are below zero where the
    change is to be over at the start or the end, and above where it begins there.
    """

    id: str
    modification: int
    status: Status
    market_context: str
    created_unix_s: float
    start_unix_s: float
    duration_s: float
    signals: tuple[Signal, ...]
    targets: Targets = Targets()
    priority: int = 0
    test: bool = False
    response_required: bool = True
    startafter_s: float = 0.0
    notification_s: float = 0.0
    ramp_up_s: float = 0.0
    recovery_s: float = 0.0
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenEvent:
    """An event that cannot be used, and how to answer it. Without an id there is nothing to answer.

    `status` is cancelled or completed where that much can be read: it is enough to end what is known.
    """

    code: Code
    why: str
    id: str | None = None
    modification: int = 0
    response_required: bool = True
    status: Status = Status.NONE


@dataclass(frozen=True, slots=True)
class Response:
    """eiResponse: the code that a message was answered with. `ven_id` is only in an oadrResponse."""

    code: int
    description: str = ""
    request_id: str = ""
    ven_id: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it was taken."""
        return 200 <= self.code < 300  # noqa: PLR2004 - the class of success


@dataclass(frozen=True, slots=True)
class DistributeEvent:
    """All events that the VTN has for this VEN."""

    request_id: str
    vtn_id: str
    events: tuple[Event | BrokenEvent, ...]
    response: Response | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedPartyRegistration:
    """The answer to a query or a registration. `poll_s`: how often the VTN wants to be polled, where it says so."""

    response: Response
    vtn_id: str
    registration_id: str | None = None
    ven_id: str | None = None
    poll_s: float | None = None
    profiles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CanceledPartyRegistration:
    """The answer to a registration's end."""

    response: Response


@dataclass(frozen=True, slots=True)
class CancelPartyRegistration:
    """The VTN ends the registration."""

    request_id: str
    registration_id: str


@dataclass(frozen=True, slots=True)
class RequestReregistration:
    """The VTN wants the VEN to register anew."""

    ven_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """A report that the VTN asks for.

    `granularity_s`: how often a value is taken; `report_back_s`: how often they are sent; 0: once. Where there is no
    interval it begins at once and has no end.
    """

    id: str
    specifier: str
    granularity_s: float
    report_back_s: float
    data_points: tuple[str, ...]
    start_unix_s: float | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RegisteredReport:
    """The answer to the reports that the VEN has, with those that are asked for at once."""

    response: Response
    requests: tuple[ReportRequest, ...] = ()


@dataclass(frozen=True, slots=True)
class CreateReport:
    """Reports that are asked for."""

    request_id: str
    requests: tuple[ReportRequest, ...]


@dataclass(frozen=True, slots=True)
class CancelReport:
    """Reports that are no longer asked for; `to_follow`: with a last one."""

    request_id: str
    report_requests: tuple[str, ...]
    to_follow: bool


@dataclass(frozen=True, slots=True)
class UpdatedReport:
    """The answer to a report; it may end reports by the way."""

    response: Response
    cancel: CancelReport | None = None


@dataclass(frozen=True, slots=True)
class RegisterReport:
    """The reports that the VTN has. This VEN asks for none of them."""

    request_id: str


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """A report of the VTN's."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Opted:
    """The answer to an oadrCreateOpt or an oadrCancelOpt."""

    response: Response
    opt_id: str


@dataclass(frozen=True, slots=True)
class Unexpected:
    """A sound message that no VTN sends a VEN."""

    kind: str


Message: TypeAlias = (
    "Response | DistributeEvent | CreatedPartyRegistration | CanceledPartyRegistration | CancelPartyRegistration | "
    "RequestReregistration | RegisteredReport | CreateReport | CancelReport | UpdatedReport | RegisterReport | "
    "UpdateReport | Opted | Unexpected"
)


def parse(body: bytes) -> Message:
    """Return the message of a body. Raises Malformed."""
    return message_of(tree_of(body))


def message_of(payload: Element) -> Message:
    """Return the message of an oadrPayload. Raises Malformed."""
    signed = payload.find("oadr:oadrSignedObject", NAMESPACES) if payload.tag == _name("oadr:oadrPayload") else None
    if signed is None or not len(signed):
        raise Malformed(f"found {_shown(payload.tag)}, expected an oadrPayload with a message in it")
    message = signed[0]
    kind = etree.QName(message).localname
    if kind == "oadrDistributeEvent":
        return _distributed(payload, message)
    problem = schema_problem(payload)
    if problem is not None:
        raise Malformed(_shown(problem))
    made = _MADE_BY.get(kind)
    if made is None:
        return Unexpected(kind)
    try:
        found: Message = made(message)
    except ValueError as wrong:
        raise Malformed(_shown(str(wrong))) from wrong
    return found


# From bytes to a tree


def tree_of(body: bytes) -> Element:
    """Return the root of a document without DOCTYPE, and within the limits. Raises Malformed."""
    if len(body) > MOST_BYTES:
        raise Malformed(f"found {len(body)} bytes, expected at most {MOST_BYTES}")
    text = _text(body)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise Malformed("found a DOCTYPE, expected none: it is not read")
    parser = etree.XMLPullParser(
        events=("start", "end"),
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    encoded = text.encode()
    counted = _Counted()
    try:
        for begin in range(0, len(encoded), _CHUNK_BYTES):
            parser.feed(encoded[begin : begin + _CHUNK_BYTES])
            counted.take(parser.read_events())
        root = parser.close()
        counted.take(parser.read_events())
    except etree.XMLSyntaxError as problem:
        raise Malformed(f"found no XML: {_shown(str(problem))}") from problem
    return root


@dataclass(slots=True)
class _Counted:
    """Elements and depth so far."""

    elements: int = 0
    depth: int = 0

    def take(self, events: Iterable[tuple[str, Element]]) -> None:
        for event, _element in events:
            if event == "end":
                self.depth -= 1
                continue
            self.depth += 1
            self.elements += 1
            if self.depth > MOST_DEPTH:
                raise Malformed(f"found elements more than {MOST_DEPTH} deep")
            if self.elements > MOST_ELEMENTS:
                raise Malformed(f"found more than {MOST_ELEMENTS} elements")


def _text(body: bytes) -> str:
    """Return a body as text without its declaration: what the parser gets is always UTF-8. Raises Malformed."""
    encoding = "utf-8"
    for mark, named in _MARKS:
        if body.startswith(mark):
            body, encoding = body[len(mark) :], named
            break
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as problem:
        raise Malformed(f"found no text in {encoding} at byte {problem.start}") from problem
    if "\0" in text:
        raise Malformed("found a NUL character, expected UTF-8, or UTF-16 with its mark")
    text = text.lstrip("\ufeff").lstrip()  # some put a line before the declaration
    declaration = _DECLARATION.match(text)
    if declaration is None:
        return text
    declared = _ENCODING.search(declaration[0])
    if declared is not None and declared[1].lower() not in _FAMILIES[encoding[:6].rstrip("-")]:
        raise Malformed(f"found the encoding {_shown(declared[1])} declared, and {encoding} written")
    return text[declaration.end() :]


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


# Elements


def _name(prefixed: str) -> str:
    prefix, local = prefixed.split(":")
    return f"{{{NAMESPACES[prefix]}}}{local}"


def _all(element: Element, path: str) -> list[Element]:
    found: list[Element] = element.findall(path, NAMESPACES)
    return found


def _texts(element: Element, path: str) -> tuple[str, ...]:
    return tuple(found.text or "" for found in _all(element, path))


def _maybe(element: Element, path: str) -> str | None:
    """Return the text of a descendant, "" where it is empty and None where it lacks."""
    found = element.find(path, NAMESPACES)
    return None if found is None else str(found.text or "")


def _one(element: Element, path: str) -> str:
    found = _maybe(element, path)
    if found is None:
        raise ValueError(f"found no {path}")
    return found


def _true(text: str | None) -> bool:
    return (text or "").strip() in {"true", "1"}


def _duration(element: Element, path: str, from_unix_s: float | None = None) -> float:
    """Return a duration below an element, 0 where it lacks. Raises ValueError."""
    text = _maybe(element, path)
    return 0.0 if text is None else iso8601.duration_s(text, from_unix_s)


def _positive(length_s: float, what: str) -> float:
    if length_s < 0:
        raise ValueError(f"{what}: found a duration below 0")
    return length_s


def _response(element: Element) -> Response:
    found = element.find("ei:eiResponse", NAMESPACES)
    return Response(
        int(_one(found, "ei:responseCode")),
        _maybe(found, "ei:responseDescription") or "",
        _maybe(found, "pyld:requestID") or "",
        _maybe(element, "ei:venID"),
    )


# Events


def _distributed(payload: Element, message: Element) -> DistributeEvent:
    """Return the events of a message, each judged by itself where they are not all sound. Raises Malformed."""
    found = _all(message, "oadr:oadrEvent")
    if len(found) > MOST_EVENTS:
        raise Malformed(f"found {len(found)} events, expected at most {MOST_EVENTS}")
    problem = schema_problem(payload)
    problems: dict[int, str] = {}
    if problem is not None:
        for event in found:
            message.remove(event)
        shell_problem = schema_problem(payload)
        if shell_problem is not None:
            raise Malformed(_shown(shell_problem))
        for place, event in enumerate(found):
            message.append(event)
            alone = schema_problem(payload)
            if alone is not None:
                problems[place] = _shown(alone)
            message.remove(event)
    has_response = message.find("ei:eiResponse", NAMESPACES) is not None
    return DistributeEvent(
        request_id=_one(message, "pyld:requestID"),
        vtn_id=_one(message, "ei:vtnID"),
        events=tuple(_event_or_broken(event, problems.get(place)) for place, event in enumerate(found)),
        response=_response(message) if has_response else None,
    )


def _event_or_broken(element: Element, problem: str | None) -> Event | BrokenEvent:
    if problem is None:
        try:
            return _event(element)
        except ValueError as wrong:
            problem = _shown(str(wrong))
    modification = _maybe(element, ".//ei:eventDescriptor/ei:modificationNumber") or ""
    number = modification.strip()
    said = (_maybe(element, ".//ei:eventDescriptor/ei:eventStatus") or "").strip()
    return BrokenEvent(
        code=Code.INVALID_DATA,
        why=problem,
        id=_maybe(element, ".//ei:eventDescriptor/ei:eventID"),
        modification=int(number) if re.fullmatch("[0-9]{1,9}", number, re.ASCII) else 0,
        response_required=_maybe(element, "oadr:oadrResponseRequired") != "never",
        status=next((one for one in ENDED if one.value == said), Status.NONE),
    )


def _event(element: Element) -> Event:
    """Return the event of an oadrEvent that follows the schema. Raises ValueError."""
    event = element.find("ei:eiEvent", NAMESPACES)
    descriptor = event.find("ei:eventDescriptor", NAMESPACES)
    period = event.find("ei:eiActivePeriod/xcal:properties", NAMESPACES)
    start_unix_s = iso8601.unix_s(_one(period, "xcal:dtstart/xcal:date-time"))
    length_s = _positive(_duration(period, "xcal:duration/xcal:duration", start_unix_s), "the active period")
    test = _maybe(descriptor, "ei:testEvent")
    startafter_s = _duration(period, "xcal:tolerance/xcal:tolerate/xcal:startafter", start_unix_s)
    identity = _one(descriptor, "ei:eventID")
    if not identity.strip():
        raise ValueError("found an empty eventID")
    return Event(
        id=identity,
        modification=int(_one(descriptor, "ei:modificationNumber")),
        status=Status(_one(descriptor, "ei:eventStatus").strip()),
        market_context=_one(descriptor, "ei:eiMarketContext/emix:marketContext").strip(),
        created_unix_s=iso8601.unix_s(_one(descriptor, "ei:createdDateTime")),
        start_unix_s=start_unix_s,
        duration_s=length_s,
        signals=tuple(
            _signal(found, start_unix_s, length_s) for found in _all(event, "ei:eiEventSignals/ei:eiEventSignal")
        ),
        targets=_targets(event.find("ei:eiTarget", NAMESPACES)),
        priority=int(_maybe(descriptor, "ei:priority") or 0),
        # Whatever is not "false" is a test (upstream's conformance test 006).
        test=test is not None and test.strip().lower() != "false",
        response_required=_one(element, "oadr:oadrResponseRequired") != "never",
        startafter_s=_positive(startafter_s, "startafter"),
        notification_s=_positive(_duration(period, "ei:x-eiNotification/xcal:duration", start_unix_s), "notification"),
        ramp_up_s=_duration(period, "ei:x-eiRampUp/xcal:duration", start_unix_s),
        recovery_s=_duration(period, "ei:x-eiRecovery/xcal:duration", start_unix_s),
        comment=_maybe(descriptor, "ei:vtnComment") or "",
    )


def _signal(element: Element, start_unix_s: float, length_s: float) -> Signal:
    found = _all(element, "strm:intervals/ei:interval")
    unit = _unit(element)
    scale = 1.0 if unit is None else unit.scale
    return Signal(
        id=_one(element, "ei:signalID"),
        name=_one(element, "ei:signalName").strip(),
        type=_one(element, "ei:signalType").strip(),
        intervals=tuple(_intervals(found, start_unix_s, length_s, scale)),
        unit=unit,
        targets=_targets(element.find("ei:eiTarget", NAMESPACES)),
    )


def _intervals(found: list[Element], start_unix_s: float, length_s: float, scale: float) -> Iterator[Interval]:
    """Yield intervals that add up to the active period. Raises ValueError where they do not."""
    at_unix_s, ends_unix_s = start_unix_s, start_unix_s + length_s
    for place, element in enumerate(found):
        last = place == len(found) - 1
        written = _maybe(element, "xcal:dtstart/xcal:date-time")
        if written is not None and abs(iso8601.unix_s(written) - at_unix_s) > _OFF_S:
            raise ValueError(f"interval {place}: found it at {written}, expected it where the one before ends")
        text = _maybe(element, "xcal:duration/xcal:duration")
        own_s = _positive(0.0 if text is None else iso8601.duration_s(text, at_unix_s), f"interval {place}")
        if own_s == 0.0 and not last:
            raise ValueError(f"interval {place}: found no end, expected one before the next begins")
        open_ended = own_s == 0.0 or (last and length_s == 0.0)
        yield Interval(at_unix_s, 0.0 if open_ended else own_s, _value(element, place, scale))
        at_unix_s += own_s
        if own_s and length_s and last and abs(at_unix_s - ends_unix_s) > _OFF_S:
            total_s = at_unix_s - start_unix_s
            raise ValueError(f"found intervals of {total_s:g} s together, expected the active period's {length_s:g}")
    if length_s and at_unix_s > ends_unix_s + _OFF_S:
        raise ValueError("found intervals that end after the active period")


def _value(element: Element, place: int, scale: float) -> float:
    text = _one(element, "ei:signalPayload/ei:payloadFloat/ei:value")
    value = float(text.strip().replace("INF", "inf"))
    if not (math.isfinite(value) and abs(value * scale) <= _MOST_VALUE):
        raise ValueError(f"interval {place}: found {text}, expected a number up to {_MOST_VALUE:g} without its scale")
    return value


def _unit(element: Element) -> Unit | None:
    for found in element:
        units = next((one for one in found if etree.QName(one).localname == "itemUnits"), None)
        if units is not None:
            scale = _maybe(found, "scale:siScaleCode")
            return Unit(etree.QName(found).localname, str(units.text or "").strip(), _SCALES[(scale or "none").strip()])
    return None


_OWN_TARGETS = {
    "venID": "vens",
    "resourceID": "resources",
    "groupID": "groups",
    "groupName": "groups",
    "partyID": "parties",
}

_OWN_ASSETS = frozenset({"electric_vehicle", "evse"})
"""The classes of devices, of those that OpenADR 2.0b names, that a depot is made of."""


def _targets(element: Element | None) -> Targets:
    if element is None:
        return Targets()
    named: dict[str, list[str]] = {kind: [] for kind in _OWN_TARGETS.values()}
    others, assets = 0, []
    for found in element:
        name = etree.QName(found).localname
        if name == "endDeviceAsset":
            assets += [str(one.text or "").strip().lower() for one in found]
        elif name in _OWN_TARGETS:
            named[_OWN_TARGETS[name]].append(str(found.text or ""))
        else:
            others += 1
    if assets and _OWN_ASSETS.isdisjoint(assets):
        others += len(assets)
    return Targets(**{kind: tuple(names) for kind, names in named.items()}, others=others)


# Registration, reports, opts


def _created_registration(element: Element) -> CreatedPartyRegistration:
    poll = "oadr:oadrRequestedOadrPollFreq/xcal:duration"
    wants = _maybe(element, poll) is not None
    return CreatedPartyRegistration(
        response=_response(element),
        vtn_id=_one(element, "ei:vtnID"),
        registration_id=_maybe(element, "ei:registrationID") or None,
        ven_id=_maybe(element, "ei:venID") or None,
        poll_s=_positive(_duration(element, poll), "oadrRequestedOadrPollFreq") if wants else None,
        profiles=_texts(element, "oadr:oadrProfiles/oadr:oadrProfile/oadr:oadrProfileName"),
    )


def _report_requests(element: Element) -> tuple[ReportRequest, ...]:
    return tuple(map(_report_request, _all(element, "oadr:oadrReportRequest")))


def _report_request(element: Element) -> ReportRequest:
    specifier = element.find("ei:reportSpecifier", NAMESPACES)
    interval = "ei:reportInterval/xcal:properties"
    start = _maybe(specifier, f"{interval}/xcal:dtstart/xcal:date-time")
    start_unix_s = None if start is None else iso8601.unix_s(start)
    return ReportRequest(
        id=_one(element, "ei:reportRequestID"),
        specifier=_one(specifier, "ei:reportSpecifierID"),
        granularity_s=_positive(_duration(specifier, "xcal:granularity/xcal:duration"), "granularity"),
        report_back_s=_positive(_duration(specifier, "ei:reportBackDuration/xcal:duration"), "reportBackDuration"),
        data_points=_texts(specifier, "ei:specifierPayload/ei:rID"),
        start_unix_s=start_unix_s,
        duration_s=_positive(
            _duration(specifier, f"{interval}/xcal:duration/xcal:duration", start_unix_s), "reportInterval"
        ),
    )


def _cancel_report(element: Element) -> CancelReport:
    return CancelReport(
        _one(element, "pyld:requestID"),
        _texts(element, "ei:reportRequestID"),
        _true(_maybe(element, "pyld:reportToFollow")),
    )


def _updated_report(element: Element) -> UpdatedReport:
    cancel = element.find("oadr:oadrCancelReport", NAMESPACES)
    return UpdatedReport(_response(element), None if cancel is None else _cancel_report(cancel))


_MADE_BY: dict[str, Any] = {
    "oadrResponse": _response,
    "oadrCreatedPartyRegistration": _created_registration,
    "oadrCanceledPartyRegistration": lambda found: CanceledPartyRegistration(_response(found)),
    "oadrCancelPartyRegistration": lambda found: CancelPartyRegistration(
        _one(found, "pyld:requestID"), _one(found, "ei:registrationID")
    ),
    "oadrRequestReregistration": lambda found: RequestReregistration(_one(found, "ei:venID")),
    "oadrRegisteredReport": lambda found: RegisteredReport(_response(found), _report_requests(found)),
    "oadrCreateReport": lambda found: CreateReport(_one(found, "pyld:requestID"), _report_requests(found)),
    "oadrCancelReport": _cancel_report,
    "oadrUpdatedReport": _updated_report,
    "oadrRegisterReport": lambda found: RegisterReport(_one(found, "pyld:requestID")),
    "oadrUpdateReport": lambda found: UpdateReport(_one(found, "pyld:requestID")),
    "oadrCreatedOpt": lambda found: Opted(_response(found), _one(found, "ei:optID")),
    "oadrCanceledOpt": lambda found: Opted(_response(found), _maybe(found, "ei:optID") or ""),
}
