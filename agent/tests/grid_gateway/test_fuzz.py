# SPDX-License-Identifier: Apache-2.0
"""Whatever comes from a VTN: it is read or refused, in bounded time, and what the VEN then does and says is sound.

Messages of every kind that openleadr's VTN has a template for, and written ones that say more, are damaged as trees and
as bytes, some of them signed before or after that. Examples here are few and the same in every run; `make fuzz` draws
new ones for FUZZ_MINUTES.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import json
import logging
import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anyio
import pytest
from agent.tests.grid_gateway import vtn_messages as written
from agent.tests.grid_gateway.conftest import Authority, endpoint_of
from agent.tests.grid_gateway.test_ven import RULES
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lxml import etree
from openleadr import messaging, objects

from derms_agent.document_store import Store
from derms_agent.grid_gateway import control_link, messages, reports
from derms_agent.grid_gateway.control_link import ControlLink, NoControl, NotTaken
from derms_agent.grid_gateway.incoming import Malformed
from derms_agent.grid_gateway.messages import Unsendable
from derms_agent.grid_gateway.reports import Buffer
from derms_agent.grid_gateway.schema import Element, schema_problem
from derms_agent.grid_gateway.signatures import Signatures
from derms_agent.grid_gateway.ven import Identity, NotRegistered, Refused, Registration, Ven
from derms_agent.orchestrator.api import ask_of
from derms_agent.socket_protocol import ProtocolError, decode, encode

MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))
MOST_S = 5.0
"""Of the processor, for a message of up to 1 MiB, and all that comes of it."""
GROWN_MIB = 64.0
"""By which what is held may grow over all messages."""
PEAK_MIB = 256.0
"""Above that, for one message of up to 1 MiB, as a tree and copied by these tests."""
MOST_ELEMENTS, MOST_COPIED = 2000, 60_000
NOW = datetime(2026, 11, 26, 18, 30, tzinfo=timezone.utc)
VTN_ID, VEN_ID = "vtn-1", "ven-1"
PLACES = ("site", "a", "b")
OFFERS, OWN_STATUS = reports.offers(["r1"]), reports.status_point("r1")
FIRST = f"rr-{reports.SITE_POWER}"
USAGE, STATUS = (offer.specifier for offer in OFFERS)


# What is damaged


def _stock(kind: str, **payload: Any) -> bytes:
    text: str = messaging.create_message(kind, **payload)
    return text.encode()


def _stock_event(name: str, kind: str, values: list[float], **descriptor: Any) -> dict[str, Any]:
    intervals = [
        objects.Interval(
            dtstart=NOW + timedelta(minutes=10 * n), duration=timedelta(minutes=10), signal_payload=float(value)
        )
        for n, value in enumerate(values)
    ]
    measurement = objects.Measurement(
        "powerReal",
        description="RealPower",
        unit="W",
        scale="k",
        power_attributes=objects.PowerAttributes(50, 230, True),
    )
    told = {
        "event_id": "e1",
        "modification_number": 0,
        "event_status": "far",
        "market_context": "http://m",
        **descriptor,
    }
    event = objects.Event(
        event_descriptor=objects.EventDescriptor(created_date_time=NOW, **told),
        event_signals=[
            objects.EventSignal(
                intervals=intervals, signal_name=name, signal_type=kind, signal_id="s1", measurement=measurement
            )
        ],
        active_period=objects.ActivePeriod(dtstart=NOW, duration=timedelta(minutes=10 * len(values))),
        targets=[objects.Target(ven_id=VEN_ID), objects.Target(resource_id="r1")],
        response_required="always",
    )

    made: dict[str, Any] = asdict(event)
    return made


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Return a message of every kind that a VTN sends, and events of every kind."""
    response = {"response_code": 200, "response_description": "OK", "request_id": "r1"}
    asked = [
        {
            "report_request_id": f"rr-{point}",
            "report_specifier": {
                "report_specifier_id": specifier,
                "granularity": timedelta(seconds=10),
                "report_back_duration": timedelta(seconds=10),
                "report_interval": {
                    "dtstart": NOW, "duration": timedelta(hours=1), "tolerance": None,
                    "notification": None, "ramp_up": None, "recovery": None,
                },
                "specifier_payloads": [{"r_id": point, "reading_type": "Direct Read"}],
            },
        }
        for specifier, point in ((USAGE, reports.SITE_POWER), (STATUS, reports.SITE_STATUS), (STATUS, OWN_STATUS))
    ]  # fmt: skip
    own = {"ven_id": VEN_ID}
    ids = {**own, "vtn_id": VTN_ID}
    rich = written.event(
        "e2",
        tolerance="<xcal:tolerance><xcal:tolerate><xcal:startafter>PT5M</xcal:startafter></xcal:tolerate>"
        "</xcal:tolerance>",
        periods="<ei:x-eiNotification><xcal:duration>P1D</xcal:duration></ei:x-eiNotification>"
        "<ei:x-eiRampUp><xcal:duration>PT5M</xcal:duration></ei:x-eiRampUp>"
        "<ei:x-eiRecovery><xcal:duration>-PT5M</xcal:duration></ei:x-eiRecovery>",
        priority="<ei:priority>2</ei:priority>", test="<ei:testEvent>false</ei:testEvent>",
        signals=written.signal([written.interval(40, "PT30M"), written.interval(-5.5, "PT30M")], "LOAD_DISPATCH",
                               "delta", written.KILOWATTS),
    )  # fmt: skip
    return (
        _stock("oadrResponse", response=response, **ids),
        *(
            _stock("oadrDistributeEvent", request_id="r1", vtn_id=VTN_ID, events=[event], response=response)
            for event in (
                _stock_event("SIMPLE", "level", [1, 2, 3, 0]),
                _stock_event("LOAD_DISPATCH", "setpoint", [10, 20]),
                _stock_event("LOAD_CONTROL", "x-loadControlCapacity", [0.5], priority=1),
                _stock_event("ELECTRICITY_PRICE", "price", [0.2, 0.3]),
                _stock_event("BID_LOAD", "setpoint", [5], test_event="true"),
                _stock_event("SIMPLE", "level", [1], event_status="cancelled", modification_number=1),
            )
        ),
        written.distribute(written.event("e1"), rich, written.event("e3", duration="PT0S"), vtn_id=VTN_ID),
        _stock(
            "oadrCreatedPartyRegistration", response=response, registration_id="reg-1", **ids,
            profiles=[{"profile_name": "2.0b", "transports": [{"transport_name": "simpleHttp"}]}],
            requested_oadr_poll_freq=timedelta(seconds=10),
        ),
        _stock("oadrCanceledPartyRegistration", response=response, registration_id="reg-1", ven_id=VEN_ID),
        _stock("oadrCancelPartyRegistration", request_id="r1", registration_id="reg-1", ven_id=VEN_ID),
        _stock("oadrRequestReregistration", ven_id=VEN_ID),
        _stock("oadrRegisteredReport", response=response, report_requests=asked, ven_id=VEN_ID),
        _stock("oadrCreateReport", request_id="r1", report_requests=asked, ven_id=VEN_ID),
        _stock("oadrCancelReport", request_id="r1", report_request_id=[FIRST], report_to_follow=True, **own),
        _stock(
            "oadrUpdatedReport", response=response, ven_id=VEN_ID,
            cancel_report={"request_id": "r1", "report_request_id": [FIRST], "report_to_follow": False,
                           "ven_id": VEN_ID},
        ),
        messages.register_report("r1", VEN_ID, OFFERS, NOW.timestamp()),
        messages.update_report("r1", VEN_ID, ()),
        _stock("oadrCreatedOpt", response=response, opt_id="o1", ven_id=VEN_ID),
        _stock("oadrCanceledOpt", response=response, opt_id="o1"),
    )  # fmt: skip


@functools.cache
def _trees() -> tuple[Element, ...]:
    return tuple(map(etree.fromstring, seeds()))


@functools.cache
def _tags() -> tuple[str, ...]:
    return tuple(sorted({one.tag for tree in _trees() for one in tree.iter()}))


STRANGE = (
    "", " ", "0", "-1", "1", "2", "3", "00123", "1e308", "-1e308", "1e-320", "1e999", "NaN", "INF", "-INF", "\uff10",
    "99999999999999999999999", "4294967296", "-2147483649", "true", "false", "TRUE", "maybe", "PT0S", "PT1S", "-PT1S",
    "P1M", "P9999Y", "PT99999999999S", "P0D", "52W", "-P3000Y", "2026-11-26T18:30:00Z", "2026-11-26T18:30:00",
    "2999-12-31T23:59:59Z", "1970-01-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-11-26T24:00:00Z",
    "0001-01-01T00:00:00Z", "2026-11-26T18:30:00.123456789Z", "none", "active", "cancelled", "completed", "near",
    "SIMPLE", "simple", "LOAD_DISPATCH", "LOAD_CONTROL", "ELECTRICITY_PRICE", "BID_LOAD", "level", "delta", "setpoint",
    "multiplier", "price", "x-loadControlCapacity", "x-loadControlLevelOffset", "x-loadControlPercentOffset", "T", "p",
    "micro", "k", "W", VTN_ID, VEN_ID, "e1", "e2", "r1", "never", "always", USAGE, STATUS, "METADATA",
    reports.SITE_POWER, reports.SITE_STATUS, OWN_STATUS, reports.EVSE_POWER, "a\u2028b", "\u202e",
    "\U0001f50c", "x" * 300, "]]>", "&amp;", "{{ 7 }}",
)  # fmt: skip
_OPERATIONS = ("text", "drop", "repeat", "swap", "graft", "rename", "attribute", "wrap", "many", "comment")
Operation = tuple[str, int, int, str]
TEXTS = st.one_of(st.sampled_from(STRANGE), st.text(max_size=12))
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(_OPERATIONS), st.integers(0, 400), st.integers(0, 400), TEXTS), max_size=6
)
CUTS = st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 9), st.binary(max_size=9)), max_size=3)


def damaged(tree: Element, operations: list[Operation]) -> Element:
    """Return a tree with something done to it."""
    tree = copy.deepcopy(tree)
    for what, place, other, text in operations:
        every = list(tree.iter(etree.Element))
        if len(every) > MOST_ELEMENTS:
            break
        _damage(every, what, place, other, text)
    return tree


def _damage(every: list[Element], what: str, place: int, other: int, text: str) -> None:
    one = every[place % len(every)]
    if what == "text":
        leaves = [leaf for leaf in every if next(leaf.iterchildren(etree.Element), None) is None]
        _with(leaves[place % len(leaves)], text)
    elif what == "rename":
        one.tag = _tags()[other % len(_tags())]
    elif what == "attribute":
        names = [*one.attrib] or ["{http://openadr.org/oadr-2.0b/2012/07}Id"]
        _attribute(one, names[other % len(names)], text)
    elif what == "comment":
        one.insert(0, etree.Comment("c") if other % 2 else etree.ProcessingInstruction("p", "q"))
    elif one.getparent() is not None:
        _move(one, one.getparent(), what, place, other)


def _move(one: Element, above: Element, what: str, place: int, other: int) -> None:
    if what == "drop":
        above.remove(one)
    elif what in {"repeat", "many"}:
        # A little over what is read; more would be the memory of these tests and not of what they test.
        most = MOST_COPIED // sum(1 for _ in one.iter())
        for _ in range(min(most, 1 + (other if what == "many" else other % 3))):
            above.append(copy.deepcopy(one))
    elif what == "swap":
        above.insert(other % len(above), one)
    elif what == "graft":
        parts = list(_trees()[other % len(_trees())].iter(etree.Element))
        above.replace(one, copy.deepcopy(parts[(place * 7 + other) % len(parts)]))
    elif what == "wrap":
        outer = etree.Element(one.tag)
        above.replace(one, outer)
        outer.append(one)


def _with(one: Element, text: str) -> None:
    if all(character in "\t\n\r" or character >= " " for character in text) and text.isprintable():
        one.text = text


def _attribute(one: Element, name: str, text: str) -> None:
    if text.isprintable():
        one.set(name, text)


@dataclass(frozen=True)
class Sent:
    """What is sent, and how it came about."""

    seed: int
    operations: list[Operation]
    cuts: list[tuple[int, int, bytes]]
    encoding: str
    signs: str

    def body(self) -> bytes:
        """Return the bytes."""
        tree = _trees()[self.seed]
        if self.signs == "before":
            tree = etree.fromstring(_theirs().signed(etree.tostring(tree)))
        body: bytes = etree.tostring(damaged(tree, self.operations))
        if self.signs == "after":
            with contextlib.suppress(
                Unsendable, ValueError, IndexError, etree.LxmlError
            ):  # it may be past being signed
                body = _theirs().signed(body)
        if self.encoding != "utf-8":
            body = etree.tostring(etree.fromstring(body), encoding=self.encoding)
        damage = bytearray(body)
        for place, length, text in self.cuts:
            begin = place % (len(damage) + 1)
            damage[begin : begin + length] = text
        return bytes(damage)


SENT = st.builds(
    Sent,
    seed=st.integers(0, len(seeds()) - 1),
    operations=OPERATIONS,
    cuts=st.one_of(st.just([]), st.just([]), CUTS),
    encoding=st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "iso-8859-1"]),
    signs=st.sampled_from(["", "", "before", "after"]),
)


@functools.cache
def _authority() -> Authority:
    made = Authority(Path(tempfile.mkdtemp(prefix="derms-fuzz-")))
    made.issue("vtn")
    made.issue("ven")
    return made


@functools.cache
def _theirs() -> Signatures:
    directory = _authority().directory
    return Signatures(endpoint_of(_authority(), 1, certificate=directory / "vtn.crt", key=directory / "vtn.key"))


# What takes it


class Memory(Store):
    """Documents that are kept as the disk has them, without waiting for one."""

    def __init__(self) -> None:
        super().__init__(Path("/nonexistent"))
        self.documents: dict[str, bytes] = {}
        self.journals: dict[str, list[bytes]] = {}

    def load(self, name: str) -> tuple[Any, str | None]:
        kept = self.documents.get(name)
        return (None if kept is None else json.loads(kept)), None

    def save(self, name: str, document: Mapping[str, Any]) -> None:
        self.documents[name] = json.dumps(document, allow_nan=False).encode()

    def begin(self, name: str) -> None:
        self.journals[name] = []

    def append(self, name: str, record: Mapping[str, Any]) -> int:
        line = json.dumps(record, allow_nan=False).encode()
        self.journals[name].append(line)
        return len(line)

    def records(self, name: str) -> list[Any]:
        return [json.loads(line) for line in self.journals.get(name, ())]

    def put_aside(self, name: str, why: str) -> str:
        raise AssertionError(f"{name} cannot be read again: {why}")


class Socket(control_link._Connection):
    """The orchestrator's socket, with its own words and its own judge, but no process behind it."""

    async def ask(self, verb: str, **arguments: Any) -> Any:
        asked = decode(encode({"v": 1, "id": 1, "verb": verb, **arguments}))
        found = {name: value for name, value in asked.items() if name not in {"v", "id", "verb"}}
        if verb == "limit.put":
            try:
                ask_of(found, "derms-grid-gateway", dict.fromkeys(PLACES), NOW.timestamp())
            except ProtocolError as refusal:
                raise (NotTaken if refusal.code == "argument" else NoControl)(str(refusal)) from refusal
        return {
            "can_honour": True, "why": "", "state": "normal", "site": {"power_w": 80_000.0, "evse_power_w": 70_000.0},
        }  # fmt: skip


class Depot(ControlLink):
    """The way to it."""

    def __init__(self) -> None:
        self._orders = self._looks = Socket(Path("/nonexistent"))


@dataclass
class Wire:
    """Holds everything that is sent against the schema, and says yes to it."""

    endpoint: Any = field(default_factory=lambda: endpoint_of(_authority(), 1))
    clock_off_s: None = None

    async def post(self, _service: str, body: bytes) -> bytes:
        sound(body)
        return messages.response("r1", VEN_ID)


def sound(body: bytes) -> None:
    assert schema_problem(etree.fromstring(body)) is None


def ven_of(store: Store, wire: Any, *, signed: bool) -> Ven:
    ven = Ven(
        identity=Identity(ven_name="v"),
        transport=wire,
        control=Depot(),
        store=store,
        buffer=Buffer(Path(":memory:")),
        rules=replace(RULES, resources={"r1": "a"}),
        wall=NOW.timestamp,
        draw=lambda: 0.5,
    )
    ven.recall()
    ven.heard_s = ven.clock()
    ven.signatures = Signatures(wire.endpoint) if signed else None
    return ven


async def taken(sent: list[Sent]) -> None:
    """Give a VEN messages one after the other, and hold all that it does against what it has to be."""
    store, wire = Memory(), Wire()
    ven = ven_of(store, wire, signed=any(one.signs for one in sent))
    ven.registration = Registration((wire.endpoint.url, ""), VEN_ID, VTN_ID, "reg-1", 10.0)
    ven._adopt_rules()
    ven._save_registration()
    for one in sent:
        body = one.body()
        began_s = time.process_time()
        try:
            message = ven.read(body)
        except Malformed as why:
            assert len(str(why)) < 600  # noqa: PT017 - that it is raised or not are both right
        else:
            try:
                ven._judge(message)
            except (NotRegistered, Refused) as why:
                assert str(why) or True  # noqa: PT017 - as above
                continue
            reply = await ven.reply_to(message)
            if reply is not None:
                sound(ven.signed(reply[1]))
            await ven._tick()
            await ven._answer_late()
            for schedule in tuple(ven.schedules.values()):
                await ven._work_on(schedule)
            encode({"status": ven.shown(), "events": ven.shown_events()})
            assert ven.control_trouble is None
        assert time.process_time() - began_s < MOST_S
    successor = ven_of(store, wire, signed=False)
    assert successor.state == ven.state
    assert {*successor.schedules} == {*ven.schedules}
    for one_ven in (ven, successor):
        one_ven.buffer.close()


def holds(sent: list[Sent]) -> None:
    anyio.run(taken, sent)


PHASES = (Phase.explicit, Phase.generate, Phase.shrink)
EVERYTHING = st.lists(SENT, min_size=1, max_size=3)


@settings(max_examples=250, phases=PHASES, suppress_health_check=list(HealthCheck))
@given(EVERYTHING)
def test_whatever_a_vtn_sends_is_read_or_refused_and_answered_soundly(sent: list[Sent]) -> None:
    holds(sent)


def test_what_is_damaged_is_sound_before() -> None:
    for number in range(len(seeds())):
        for signs in ("", "before", "after"):
            holds([Sent(number, [], [], "utf-8", signs)])
    assert {etree.QName(tree.find("{*}oadrSignedObject")[0]).localname for tree in _trees()} >= {
        "oadrResponse", "oadrDistributeEvent", "oadrCreatedPartyRegistration", "oadrCanceledPartyRegistration",
        "oadrCancelPartyRegistration", "oadrRequestReregistration", "oadrRegisteredReport", "oadrCreateReport",
        "oadrCancelReport", "oadrUpdatedReport", "oadrRegisterReport", "oadrUpdateReport", "oadrCreatedOpt",
        "oadrCanceledOpt",
    }  # fmt: skip


@pytest.mark.skipif(not MINUTES, reason="FUZZ_MINUTES=10, as in make fuzz")
def test_the_same_for_minutes() -> None:
    logging.getLogger("derms").setLevel(logging.CRITICAL)
    count = 0

    def counted(sent: list[Sent]) -> None:
        nonlocal count
        count += len(sent)
        holds(sent)

    drawn = settings(
        max_examples=2000, derandomize=False, database=None, phases=PHASES, suppress_health_check=list(HealthCheck)
    )
    again: Callable[[], None] = drawn(given(EVERYTHING)(counted))
    ends_s = time.monotonic() + MINUTES * 60
    again()
    warm_mib = _held_mib()
    while time.monotonic() < ends_s:
        again()
    words = "%d messages, memory from %.0f to %.0f MiB, %.0f at most"
    logging.getLogger("fuzz").warning(words, count, warm_mib, _held_mib(), _peak_mib())
    assert _held_mib() < warm_mib + GROWN_MIB
    assert _peak_mib() < warm_mib + PEAK_MIB


def _held_mib() -> float:
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
