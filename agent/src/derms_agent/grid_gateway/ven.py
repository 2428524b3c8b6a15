# SPDX-License-Identifier: Apache-2.0
"""The VEN: it registers, polls, obeys, answers and reports, and begins anew whatever ends it.

Two loops run side by side. One speaks to the VTN: it registers where need be, asks for all events, and then polls at
the VTN's pace; anything that goes wrong ends the session, and after a pause with full jitter the next begins. The other
goes on whatever the VTN does: it begins and ends events in their time, freezes baselines, and hands bounds over.

An event is on the disk before the orchestrator is asked; it has the bound on its disk before the VTN has its answer,
which says what the depot will really do.

Durations are counted on the host's clock since boot, which no step of the wall's clock moves.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import sqlite3
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import anyio

from derms_agent.document_store import Store
from derms_agent.engine_log import Heartbeats, listen, tls_handshake_failure
from derms_agent.grid_gateway import events, messages, progress, reports, terms, tls_trouble, transport
from derms_agent.grid_gateway.control_link import Control, Honour, NoControl, NotJudged, NotReady, changes
from derms_agent.grid_gateway.event_store import EventStore
from derms_agent.grid_gateway.events import Bound, Key, Received, State
from derms_agent.grid_gateway.incoming import (
    CanceledPartyRegistration,
    CancelPartyRegistration,
    CancelReport,
    Code,
    CreatedPartyRegistration,
    CreateReport,
    DistributeEvent,
    Malformed,
    Message,
    Opted,
    RegisteredReport,
    RegisterReport,
    ReportRequest,
    RequestReregistration,
    Response,
    Signal,
    UpdatedReport,
    UpdateReport,
    parse,
)
from derms_agent.grid_gateway.messages import EventResponse, Opt, Report, ReportInterval
from derms_agent.grid_gateway.progress import Progress
from derms_agent.grid_gateway.reports import BASELINE_S, Buffer, Schedule
from derms_agent.grid_gateway.signals import Away, Rules
from derms_agent.grid_gateway.signatures import Signatures
from derms_agent.grid_gateway.terms import Terms
from derms_agent.grid_gateway.transport import Kind, Transport, Trouble
from derms_agent.model import OPENADR, Rank

REGISTRATION, REPORTS, OPTS, TERMS = "registration.json", "reports.json", "opts.json", "terms.json"
ENDS = "ends.json"
POLL_S = 10.0
"""How often a VTN is polled that does not say."""
SILENT_INTERVALS = 3.0
"""Without a valid answer for so many polls the link counts as lost."""
LONGEST_LINK_S, LINK_AGAIN_S = 86400.0, 3600.0
"""For how long at the most the orchestrator is told that the link stands, and how often, also between answers."""
LONGEST_PAUSE_S = 10.0
HORIZON_S = 48 * 3600.0
"""How far ahead the orchestrator is handed what to do, in case this process is gone by then."""
TICK_S = 0.5
STATUS_EVERY_S = 5.0
MOST_DRAINED = 50
SYNC_EVERY_S = 3600.0
SYNC_AGAIN_POLLS = 10
"""All events are asked for once an hour, and after so many polls where that failed."""
_CANCELLED_PAUSE_S, _CANCELLED_MOST_S = 300.0, 3600.0
"""A VTN that ends the registration is left alone for so long at the least, and for up to so long more at random.

For longer each time that it does so again within the latter, so that no fleet of VENs goes round in circles.
"""
_ENDING_S = 1.0
"""What ends within so long is over before the orchestrator could do anything about it."""
_PROVISIONAL_S = 60.0
_JUST_AFTER_S = 0.002
_SERVICE_FAILS = frozenset({Kind.HTTP, Kind.BODY, Kind.TIMEOUT})
"""How one service of a VTN fails while the others may be well: without it events go on coming."""
_STEP_S = 1.0
"""What moves the wall's clock by more than this, beside the host's clock since boot, is a step."""

logger = logging.getLogger("derms.grid_gateway")
T = TypeVar("T")


class NotRegistered(Exception):
    """The VTN does not know this VEN, or not any more."""


class Refused(Exception):
    """The VTN answers with an error."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What the VTN gave. `asked_as` is whom it was asked for: with another URL or client id it is worth nothing."""

    asked_as: tuple[str, str]
    ven_id: str
    vtn_id: str
    registration_id: str | None
    poll_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who the VEN is to the VTN. `client_id`: the id that the utility operator gave it beforehand."""

    ven_name: str
    client_id: str | None = None


@dataclass(slots=True, eq=False)
class Ven:
    """A VEN towards one VTN. `rules` are the depot's; its ids in them are set by the registration.

    `reporting` is the way of the reports, where that is another than that of events: these then wait for no report.
    `awake` is the clock that waits are counted on: unlike `clock` it stands still while the host is suspended.
    """

    identity: Identity
    transport: Transport
    control: Control
    store: Store
    buffer: Buffer
    rules: Rules
    happened: Callable[[str, Mapping[str, Any]], None] = lambda _kind, _what: None
    push_address: str | None = None
    signatures: Signatures | None = None
    reporting: Transport | None = None
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    awake: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.SystemRandom().random
    tick_s: float = TICK_S
    registration: Registration | None = None
    absent: bool = False
    terms: Terms = field(default_factory=Terms)
    state: State = field(default_factory=State)
    handed: dict[str, Bound] = field(default_factory=dict)
    schedules: dict[str, Schedule] = field(default_factory=dict)
    opts: dict[str, messages.Opted] = field(default_factory=dict)
    heard_s: float = 0.0
    trouble: str | None = None
    control_trouble: str | None = None
    unkept: str | None = None
    _by_file: Rules = field(init=False)
    _events: EventStore = field(init=False)
    _wall_ahead_s: float | None = None
    _rung: int = 0
    _anew: bool = False
    _cancelled: bool = False
    _cancellations: int = 0
    _registered_s: float = -math.inf
    _away_until_s: float = -math.inf
    _offered: tuple[str, ...] = ()
    _report: Mapping[str, Any] | None = None
    _status_s: float = -math.inf
    _link_s: float = -math.inf
    _linked_s: float = -math.inf
    _drawn: deque[tuple[float, float]] = field(default_factory=deque)
    _free_s: float = 0.0
    _ticked_s: float | None = None
    _provisional_w: float | None = None
    _provisional_s: float = -math.inf
    _unanswered: set[Key] = field(default_factory=set)
    _noticed: set[Key] = field(default_factory=set)
    _late: bool = False
    _between_polls: bool = False
    _doubted: set[Key] = field(default_factory=set)
    _unjudged: str | None = None
    _judged_by: Rules | None = None
    _sync_s: float = -math.inf
    _listed: bool = False
    _pushed: int = 0
    _clock_off: bool = False
    _heartbeats: Heartbeats = field(default_factory=Heartbeats)
    _progress: Progress = field(default_factory=Progress)
    _woken: anyio.Event = field(default_factory=anyio.Event)
    _busy: anyio.Lock = field(default_factory=anyio.Lock)

    def __post_init__(self) -> None:
        self._by_file = self.rules
        self._events = EventStore(self.store)

    # What outlives the process

    def recall(self) -> None:
        """Take in what a predecessor left; what cannot be used is put aside and said."""
        self.state, problem = self._events.load()
        self._say_lost(problem)
        # What the depot was not asked about was answered as such, or not at all.
        self._unanswered |= events.unpromised(self.state, self.wall() + HORIZON_S)
        unknown: tuple[bool, Registration | None] = (False, None)
        self.absent, self.registration = self._recalled(REGISTRATION, self._registration_of, unknown)
        self._away_until_s, self._cancellations = self._recalled(ENDS, self._ends_of, (-math.inf, 0))
        self._registered_s = self._away_until_s  # it was not before that
        asked: tuple[tuple[ReportRequest, ...], tuple[str, ...]] = ((), ())
        requests, self._offered = self._recalled(REPORTS, reports.from_json, asked)
        opts: tuple[messages.Opted, ...] = ()
        self.opts = {one.id: one for one in self._recalled(OPTS, _opts_of, opts)}
        self.terms = self._recalled(TERMS, terms.from_json, Terms())
        self._adopt_rules()
        drawn_w = events.latest_baseline_w(self.state, self.wall(), BASELINE_S)
        if drawn_w is not None:
            # As if it had drawn that all the while: what it draws right after an event is less than it would without.
            count = round(BASELINE_S / STATUS_EVERY_S)
            self._drawn.extend((-number * STATUS_EVERY_S, drawn_w) for number in reversed(range(count)))
        for request in requests:
            if reports.offer_of(request, self.offers) is None:
                logger.warning("Report %s is of something that this depot has no longer: it ends", request.id)
            else:
                self.schedules[request.id] = self._resumed(request)

    def _resumed(self, request: ReportRequest) -> Schedule:
        """Return the schedule of a report that a predecessor was asked for, and may have sampled and not sent."""
        schedule = reports.begun(request, self.clock(), self.wall())
        there = schedule.once and self.buffer.oldest(request.id)[1]
        return reports.sampled(schedule, self.clock()) if there else schedule

    def _recalled(self, name: str, read: Callable[[Mapping[str, Any]], T], nothing: T) -> T:
        document, problem = self.store.load(name)
        try:
            if document is not None:
                return read(document)
        except (ValueError, TypeError, KeyError, AttributeError) as unusable:
            problem = self.store.put_aside(name, repr(unusable))
        self._say_lost(problem)
        return nothing

    @staticmethod
    def _say_lost(problem: str | None) -> None:
        if problem is not None:
            logger.error("What was known of the VTN is lost: %s", problem)

    def _registration_of(self, document: Mapping[str, Any]) -> tuple[bool, Registration | None]:
        """Return whether the VEN is to stay away, and its registration where that is with this VTN."""
        stored = document["registration"]
        if stored is None:
            return bool(document["absent"]), None
        url, client_id = stored["asked_as"]
        found = Registration(**{**stored, "asked_as": (str(url), str(client_id))})
        return bool(document["absent"]), found if found.asked_as == self._asked_as else None

    def _ends_of(self, document: Mapping[str, Any]) -> tuple[float, int]:
        """Return until when this VTN is to be left alone, for it has ended the registration so many times in a row."""
        url, client_id = document["asked_as"]
        if (url, client_id) != self._asked_as:
            return -math.inf, 0
        left_s = min(float(document["until_unix_s"]) - self.wall(), _CANCELLED_PAUSE_S + _CANCELLED_MOST_S)
        return self.clock() + left_s, int(document["times"])

    @property
    def _asked_as(self) -> tuple[str, str]:
        return self.transport.endpoint.url, self.identity.client_id or ""

    def _adopt_rules(self) -> None:
        away = tuple(
            Away(window, one.market_context)
            for one in self.opts.values()
            if one.opt is Opt.OUT
            for window in one.available
        )
        self.rules = replace(self.terms.applied(self._by_file), unavailable=away)
        if self.registration is not None:
            self.rules = replace(self.rules, ven_id=self.registration.ven_id, vtn_id=self.registration.vtn_id)

    def _save_registration(self) -> None:
        known = None if self.registration is None else asdict(self.registration)
        self.store.save(REGISTRATION, {"version": 1, "absent": self.absent, "registration": known})

    def _save_reports(self) -> None:
        self.store.save(REPORTS, reports.to_json((one.request for one in self.schedules.values()), self._offered))
        self.buffer.keep_only([*self.schedules])

    # Both loops

    async def run(self) -> None:
        """Run until cancelled. Nothing that a VTN or an orchestrator does ends it."""
        self.heard_s = self.clock()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._converse)
            tasks.start_soon(self._keep_time)
            tasks.start_soon(self._report_loop)

    def _goes_on(self, loop: str, wait_s: float = 0.0) -> None:
        """Note a step of a loop, which now waits for so long."""
        self._progress = progress.stepped(self._progress, loop, self.awake(), wait_s)

    def _helps_on(self, loop: str) -> None:
        """Note that something is over with that a loop may be waiting for."""
        self._progress = progress.prolonged(self._progress, loop, self.awake())

    @property
    def stuck(self) -> tuple[str, ...]:
        """Which loops do not go on."""
        return progress.stuck(self._progress, self.awake())

    @property
    def poll_s(self) -> float:
        """How often the VTN is polled."""
        return POLL_S if self.registration is None else max(0.1, self.registration.poll_s)

    async def _converse(self) -> None:
        attempt = 0
        while True:
            self._goes_on(progress.CONVERSATION)
            if await self._left_alone():
                continue
            heard_s = self.heard_s
            pause_s: float | None = None
            try:
                await self._session()
            except Trouble as trouble:
                self._in_trouble(trouble)
            except NotRegistered as why:
                if self.absent:
                    continue
                self._rung += 1
                self._say(f"The VTN does not know this VEN ({why}): registering anew")
                pause_s = 0.0 if self._rung < len(self._ladder()) else None
            except Refused as why:
                self._say(f"The VTN refuses: {why}")
            except Cancelled as why:
                self._say(str(why))
                self._woken = anyio.Event()  # it was the VTN itself that wanted something at once
                pause_s = 0.0
            except (OSError, sqlite3.Error, messages.Unsendable) as problem:
                self._say(f"{type(problem).__name__}: {problem}")
            attempt = 1 if self.heard_s > heard_s else attempt + 1
            if pause_s is None:
                most_s = max(LONGEST_PAUSE_S, 2 * self.poll_s)
                pause_s = transport.backoff_s(attempt, self.draw(), most_s=most_s)
            await self._pause(pause_s)

    async def _left_alone(self) -> bool:
        """Wait where the VTN is to be asked nothing, and return whether that is so."""
        if self.absent:
            self.heard_s = self.clock()
            await self._pause(self.poll_s)
            return True
        if self.registration is None and not self._cancelled and self.clock() < self._away_until_s:
            self._say(_ENDED)
            await self._stay_away()
            return True
        return False

    def _in_trouble(self, trouble: Trouble) -> None:
        host = f"VTN {self.transport.endpoint.host}"
        if trouble.kind is Kind.TLS:
            words = f"{Kind.TLS.value}: {trouble}"
            if self.trouble != words:
                tls_handshake_failure(host, str(trouble)).log(logger)
                self.happened("alarm", {"about": host, "words": words})
            self.trouble = words
        else:
            self._say(f"{host}: {trouble}")

    def _say(self, words: str) -> None:
        """Log a trouble, once for as long as it lasts."""
        if self.trouble != words:
            logger.warning("%s", words)
        self.trouble = words

    async def take_and_answer(self, message: DistributeEvent, within_s: float) -> None:
        """Take events that were pushed, and answer them; the VTN has so long to take that.

        Raises Trouble, NotRegistered, Refused, messages.Unsendable or OSError.
        """
        self._pushed += 1
        try:
            await self._answered(message, within_s)
        except TimeoutError as late:
            raise Trouble(Kind.TIMEOUT, f"within {within_s:g} s") from late

    def register_anew(self, *, cancelled: bool) -> None:
        """Do what the VTN has asked for by a push: begin the next session with a registration, or leave it alone."""
        if cancelled and self.registration is None:
            return  # it has ended that already, and is left alone since
        if cancelled:
            self._end_registration()
        else:
            self._anew = True
        self.wake()

    def wake(self) -> None:
        """Have the VTN asked at once."""
        self._late = False  # that comes with it
        self._woken.set()

    def wake_registered(self) -> None:
        """Have the VTN asked at once, for something that it sent: not while it is left alone, as it wanted it."""
        if self.registration is not None:
            self.wake()

    async def aclose(self) -> None:
        """Close what is open; `run` has been cancelled."""
        for way in (self.transport, self.reporting):
            if way is not None:
                await way.aclose()
        self.buffer.close()

    # The VTN

    async def _ask(self, service: str, body: bytes) -> Message:
        """Send a message and return the answer. Raises Trouble, and NotRegistered where the VTN says so."""
        way = self.reporting if service == "EiReport" and self.reporting is not None else self.transport
        try:
            answer = await way.post(service, self.signed(body))
        finally:
            # Requests wait for one another: as long as any is over with, those behind it are not stuck.
            self._helps_on(progress.CONVERSATION if way is self.transport else progress.REPORTS)
        if not answer.strip():
            raise Trouble(Kind.BODY, "the VTN answered with nothing")
        try:
            message = self.read(answer)
        except Malformed as why:
            raise Trouble(Kind.BODY, str(why)) from why
        self._judge(message)
        self.heard_s = self.clock()
        if self.trouble is not None:
            logger.info("VTN %s answers again", self.transport.endpoint.host)
            self.trouble = None
        self._compare_clocks()
        return message

    def _compare_clocks(self) -> None:
        """Say where this clock is off the VTN's, once for as long as it is: events begin and end by it."""
        off_s = self.transport.clock_off_s
        off = off_s is not None and abs(off_s) > transport.LONGEST_OFF_S
        if off and not self._clock_off:
            about, words = f"VTN {self.transport.endpoint.host}", tls_trouble.clock_off(off_s or 0.0)
            logger.warning("%s: %s; events begin and end by it", about, words)
            self.happened("alarm", {"about": about, "words": words})
        self._clock_off = off

    def signed(self, body: bytes) -> bytes:
        """Return a message as it is sent. Raises messages.Unsendable."""
        return body if self.signatures is None else self.signatures.signed(body)

    def read(self, body: bytes) -> Message:
        """Return the message of a body that came from the VTN. Raises Malformed."""
        return parse(body) if self.signatures is None else self.signatures.read(body)

    @staticmethod
    def _judge(message: Message) -> None:
        """Raise NotRegistered or Refused where a message says so."""
        response = message if isinstance(message, Response) else getattr(message, "response", None)
        if isinstance(response, Response) and not response.ok:
            if response.code == Code.NOT_REGISTERED:
                raise NotRegistered(response.description or str(response.code))
            raise Refused(f"{response.code} {response.description}")

    async def _session(self) -> None:
        """Speak to the VTN until something goes wrong, which is raised, or the registration is given up."""
        self._mind_cancel()
        await self._register()
        registration = self._known()
        ven_id = registration.ven_id
        if self._offered != reports.data_points(self.offers):  # the depot file has changed
            await self._offer_reports()
        # Whatever was missed: a poll whose answer was lost has taken its events along.
        self._sync_s = await self._sync(ven_id)
        # The VEN may leave and join again between two polls: then this registration is none any more.
        while not self.absent and (self._anew or self._cancelled or self.registration is registration):
            self._mind_cancel()
            began_s = self.clock()
            if self._anew:
                self._anew, self._rung = False, 0
                raise NotRegistered("it asks to register anew")
            if self.push_address is None:
                await self._drain(ven_id)
            else:
                # A VTN that pushes is not polled: this shows that it is there, and brings what a push has lost.
                self._sync_s = await self._sync(ven_id)
            self._rung = 0
            await self._let_go_of_others(registration.vtn_id)
            await self._answer_late()
            if self.clock() >= self._sync_s:
                if self._offered != reports.data_points(self.offers):  # the VTN failed at them
                    await self._offer_reports()
                self._sync_s = await self._sync(ven_id)
            await self._pause_to_poll(began_s + self.poll_s)

    async def _sync(self, ven_id: str) -> float:
        """Ask for all events, and return when to do so again: soon where the VTN fails at it, and polls have to do."""
        pushed = -1
        try:
            # A list that a push has overtaken may lack what came with that, which would be cancelled by it.
            while pushed != self._pushed:
                pushed = self._pushed
                message = await self._ask("EiEvent", messages.request_event(_fresh_id(), ven_id))
        except Trouble as trouble:
            # openleadr's VTN fails so where it does not know the VEN; the answer to a poll then says it.
            if trouble.kind not in _SERVICE_FAILS:
                raise
            return self._no_list(str(trouble))
        except Refused as why:
            return self._no_list(str(why))
        await self._take(message)
        self._listed = True  # an oadrResponse as well: there are VTNs that answer so where they have none
        return self.clock() + SYNC_EVERY_S

    def _no_list(self, why: str) -> float:
        """Say that the VTN fails at the list of events, and return when to ask for it again."""
        self._say(f"The VTN gives no list of events: {why}")
        return self.clock() + SYNC_AGAIN_POLLS * self.poll_s

    async def _pause(self, seconds: float) -> bool:
        """Wait for so long; return whether somebody wants the VTN asked before that."""
        self._goes_on(progress.CONVERSATION, max(0.0, seconds))
        with anyio.move_on_after(max(0.0, seconds)):
            await self._woken.wait()
        self._goes_on(progress.CONVERSATION)
        woken = self._woken.is_set()
        if woken:
            self._woken = anyio.Event()
        return woken

    async def _pause_to_poll(self, at_s: float) -> None:
        """Wait for the next poll, or until somebody wants one. Answers that become due neither wait nor poll."""
        while True:
            while self._late:
                await self._answer_late()
            self._between_polls = True
            try:
                woken = await self._pause(at_s - self.clock())
            finally:
                self._between_polls = False
            if not (woken and self._late):
                return

    def _notice_late(self) -> None:
        """Have the conversation send what has become due of answers; what the VTN fails at waits for the next poll."""
        due = self._due()
        if due - self._noticed and not self._woken.is_set():
            self._late = True
            if self._between_polls:
                self._woken.set()
        self._noticed = due

    async def _stay_away(self) -> None:
        """Ask the VTN nothing, as it wants it, until somebody else wants it asked: its silence is no trouble."""
        while (left_s := self._away_until_s - self.clock()) > 0:
            self.heard_s = self.clock()
            if await self._pause(min(left_s, self.poll_s)):
                self._away_until_s = -math.inf

    def _end_registration(self) -> None:
        """Be registered no more, as the VTN wants it: the conversation leaves it alone from its next step on."""
        self._anew, self._cancelled = False, True
        self._leave_alone(self._cancelled_pause_s())
        self._forget_registration()

    def _leave_alone(self, seconds: float) -> None:
        """Have the conversation leave the VTN alone for so long, over restarts as well; what cannot be kept is said."""
        self._away_until_s = self.clock() + seconds
        ends = {"asked_as": self._asked_as, "until_unix_s": self.wall() + seconds, "times": self._cancellations}
        try:
            self.store.save(ENDS, {"version": 1, **ends})
        except OSError as problem:
            logger.warning("Until when the VTN is left alone cannot be kept: %s", problem)

    def _mind_cancel(self) -> None:
        """Raise Cancelled where the VTN has ended the registration."""
        if self._cancelled:
            self._cancelled = False
            raise Cancelled(_ENDED)

    def _cancelled_pause_s(self) -> float:
        """Return for how long a VTN that has ended the registration is left alone."""
        lasted = self.clock() - self._registered_s > _CANCELLED_MOST_S
        self._cancellations = 1 if lasted else self._cancellations + 1
        return _CANCELLED_PAUSE_S + transport.backoff_s(
            self._cancellations, self.draw(), most_s=_CANCELLED_MOST_S, first_s=_CANCELLED_PAUSE_S
        )

    async def _drain(self, ven_id: str) -> None:
        """Poll, and once more as long as there was something."""
        for _ in range(MOST_DRAINED):
            message = await self._ask("OadrPoll", messages.poll(ven_id))
            if isinstance(message, Response):
                return
            await self._take(message)

    def _known(self) -> Registration:
        if self.registration is None:
            raise NotRegistered("it was never registered")
        return self.registration

    # Registration

    def _ladder(self) -> tuple[tuple[str | None, str | None], ...]:
        """Return with which venID and registrationID to register, one after the other until the VTN goes along."""
        known = self.registration
        rungs: list[tuple[str | None, str | None]] = []
        if known is not None and known.registration_id is not None:
            rungs.append((known.ven_id, known.registration_id))
        if self.identity.client_id is not None:
            rungs.append((self.identity.client_id, None))
        return (*rungs, (None, None))

    async def _register(self) -> None:
        """Have a registration. Raises Refused where none is given, whichever way it is asked for."""
        if self.registration is not None and self._rung == 0:
            return
        asked = await self._query()
        if isinstance(asked, CreatedPartyRegistration) and asked.profiles and messages.PROFILE not in asked.profiles:
            raise Refused(f"found profiles {', '.join(asked.profiles)}, expected {messages.PROFILE}")
        ladder = self._ladder()
        begin = max(0, self._rung - 1) % len(ladder)
        refusal = "it gives no venID"
        for number, (ven_id, registration_id) in enumerate(ladder[begin:], start=begin + 1):
            body = messages.create_party_registration(
                _fresh_id(),
                self.identity.ven_name,
                ven_id,
                registration_id,
                self.push_address,
                signs=self.signatures is not None,
            )
            try:
                answer = await self._ask("EiRegisterParty", body)
            except (NotRegistered, Refused) as why:
                refusal = str(why)
                continue
            if isinstance(answer, CreatedPartyRegistration) and answer.ven_id is not None:
                self._rung = number
                await self._registered(answer, asked)
                return
        self._rung = 1
        raise Refused(f"it does not register this VEN: {refusal}")

    async def _query(self) -> Message | None:
        """Return how the VTN wants to be spoken to; None: it does not say, and whoever registers may still do so."""
        with _going_on_without("The VTN does not answer what it offers"):
            return await self._ask("EiRegisterParty", messages.query_registration(_fresh_id()))
        return None

    async def _registered(self, answer: CreatedPartyRegistration, asked: Message | None) -> None:
        offered_s = asked.poll_s if isinstance(asked, CreatedPartyRegistration) else None
        poll_s = answer.poll_s or offered_s or POLL_S
        ven_id = answer.ven_id or ""
        if self.registration is None or self.registration.vtn_id != answer.vtn_id:
            with self._samples():
                self._forget_samples()  # they are no other utility's business
        self.registration = Registration(self._asked_as, ven_id, answer.vtn_id, answer.registration_id, poll_s)
        self._registered_s = self.clock()
        self._adopt_rules()
        self._save_registration()
        logger.info("Registered with VTN %s as %s: polling every %g s", answer.vtn_id, ven_id, poll_s)
        if self.identity.client_id not in {None, ven_id}:
            words = "VTN %s knows this VEN as %s, and not by its CLIENT_ID %s: ask the utility operator"
            logger.warning(words, answer.vtn_id, ven_id, self.identity.client_id)
        self.happened("registered", {"vtn_id": answer.vtn_id, "ven_id": ven_id, "poll_s": poll_s})
        await self._offer_reports()

    async def cancel_registration(self) -> None:
        """Take the VEN away from the VTN, and stay away until `join`. Raises Trouble or Refused."""
        known = self.registration
        if known is not None:
            body = messages.cancel_party_registration(_fresh_id(), known.registration_id or "", known.ven_id)
            # One that the VTN does not know is as good as cancelled.
            with contextlib.suppress(NotRegistered):
                answer = await self._ask("EiRegisterParty", body)
                if not isinstance(answer, CanceledPartyRegistration):
                    raise Refused(f"found {type(answer).__name__}, expected oadrCanceledPartyRegistration")
        self.absent = True
        self._forget_registration()
        await self._let_go_of_others(None)

    def join(self) -> None:
        """Be registered again, after `cancel_registration`."""
        self.absent = self._cancelled = False
        self._leave_alone(0.0)
        self._save_registration()
        self.wake()

    def _forget_registration(self) -> None:
        self.registration = None
        self._rung = 0
        self._save_registration()
        self._forget_samples()

    def _forget_samples(self) -> None:
        """Be done with all reports, and with what of them the VTN has not taken."""
        self.schedules.clear()
        self._save_reports()
        self.buffer.forget()

    @contextlib.contextmanager
    def _samples(self) -> Iterator[None]:
        """Go on where samples cannot be worked on, and say so: nothing but history depends on them."""
        try:
            yield
        except (OSError, sqlite3.Error) as problem:
            logger.warning("Samples that the VTN has not taken: %s: %s", type(problem).__name__, problem)

    # What comes

    async def _take(self, message: Message) -> None:
        """Do what a message of the VTN's asks for, and answer it."""
        await self._answered(message)
        self._mind_cancel()
        if isinstance(message, RequestReregistration):
            raise NotRegistered("it asks to register anew")

    async def _answered(self, message: Message, within_s: float | None = None) -> None:
        reply = await self.reply_to(message)
        if isinstance(message, CancelPartyRegistration):
            self._end_registration()  # whatever becomes of the answer
        with anyio.fail_after(within_s):
            taken = reply is None or await self._reply(*reply)
        if not taken and isinstance(message, DistributeEvent):
            keys = {(message.vtn_id, str(one.id)) for one in message.events}
            self._unanswered |= keys & self.state.events.keys()

    async def _reply(self, service: str, body: bytes) -> bool:
        """Send an answer, and return whether the VTN has it, for all that is known.

        That it makes nothing of it is said, and ends no session: events go on coming.
        """
        try:
            await self._ask(service, body)
        except Refused as why:
            logger.warning("The VTN does not take an answer: %s", why)
        except Trouble as trouble:
            if trouble.kind not in {Kind.HTTP, Kind.BODY}:
                raise
            # Some answer an oadrResponse with nothing.
            logger.info("The VTN says nothing to an answer: %s", trouble)
            return trouble.kind is Kind.BODY
        return True

    async def reply_to(self, message: Message) -> tuple[str, bytes] | None:
        """Do what a message asks for, and return the answer with the service that it goes to; None: there is none."""
        ven_id = self._known().ven_id
        if isinstance(message, DistributeEvent):
            answers = await self.take_events(message)
            return ("EiEvent", messages.created_event(message.request_id, ven_id, answers)) if answers else None
        if isinstance(message, CancelPartyRegistration):
            body = messages.canceled_party_registration(message.request_id, message.registration_id, ven_id)
            return "EiRegisterParty", body
        if isinstance(message, RequestReregistration):
            return "EiRegisterParty", messages.response("", ven_id)
        about_reports = await self._reply_about_reports(message, ven_id)
        return None if about_reports is None else ("EiReport", about_reports)

    async def _reply_about_reports(self, message: Message, ven_id: str) -> bytes | None:
        if isinstance(message, CreateReport):
            code, why = await self._create_reports(message.requests)
            return messages.created_report(message.request_id, ven_id, [*self.schedules], code, why)
        if isinstance(message, CancelReport):
            await self._cancel_reports(message)
            return messages.canceled_report(message.request_id, ven_id, [*self.schedules])
        if isinstance(message, RegisterReport):
            return messages.registered_report(message.request_id, ven_id)
        if isinstance(message, UpdateReport):
            return messages.updated_report(message.request_id, ven_id)
        return None

    # Events

    async def take_events(self, message: DistributeEvent) -> tuple[EventResponse, ...]:
        """Keep events, have them obeyed, and return how they are to be answered."""
        async with self._busy:
            self._mind_step()
            now_unix_s = self.wall()
            self._listed |= message.vtn_id == self.rules.vtn_id
            received = events.receive(self.state, message, self.rules, now_unix_s, self.draw)
            if self._baseline() is None and events.baseless(received.state, self.rules, now_unix_s):
                await self._look_at_power()
            # An event that is to begin at once has its baseline from now on, whatever becomes of this process.
            frozen = events.frozen(received.state, now_unix_s, self._baseline())
            received = replace(received, state=frozen)
            before, self.state = self.state, received.state
            if not self._keep():
                self._unanswered |= {*received.accepted}
            await self._hand_over()
            self._log_events(before, self.state, now_unix_s)
            answers = tuple(self._answer_now(one, message.vtn_id, received) for one in received.responses)
            answered = {(message.vtn_id, answer.event_id) for answer in answers}
            self._unanswered -= {key for key in answered if not self._promise_waits(key)}
            return answers

    def _differing(self, before: State) -> set[Key]:
        """Return the events that are known otherwise than before."""
        return {key for key, held in self.state.events.items() if before.events.get(key) != held}

    def _keep(self) -> bool:
        """Store the events, and return whether they are on the disk; what is not is obeyed, and not promised."""
        try:
            self._events.save(self.state)
        except OSError as problem:
            if self.unkept is None:
                logger.error("The events cannot be kept: %s", problem)
            self.unkept = str(problem)
            return False
        if self.unkept is not None:
            logger.info("The events are kept again")
        self.unkept = None
        return True

    @property
    def _no_promise(self) -> str | None:
        """Why the VTN can be promised nothing now; None: it can."""
        if self.unkept is not None:
            return f"the event cannot be kept: {self.unkept}"
        return None if self.control_trouble is None else f"the depot's control does not answer: {self.control_trouble}"

    def _promise_waits(self, key: Key) -> bool:
        """Whether the depot takes part in an event, and the VTN cannot be promised that now."""
        held = self.state.events.get(key)
        return self._no_promise is not None and held is not None and held.refusal is None

    async def _let_go_of_others(self, vtn_id: str | None) -> None:
        """Have the events of all other VTNs end: the one that the VEN is registered with has said what it wants."""
        async with self._busy:
            self._mind_step()
            now_unix_s = self.wall()
            before, self.state = self.state, events.of_vtn(self.state, vtn_id, now_unix_s)
            if self.state is not before:
                self._keep()
                await self._hand_over()
                self._log_events(before, self.state, now_unix_s)

    def _log_events(self, before: State, after: State, now_unix_s: float) -> None:
        """Say what has come; what it has to do with is on its way by then."""
        for key, held in after.events.items():
            if before.events.get(key) != held:
                phase = held.phase(now_unix_s).value
                why = "" if held.refusal is None else f": opted out, {held.refusal.why}"
                test = " (a test)" if held.event.test else ""
                logger.info(
                    "OpenADR event %s modification %d %s%s%s", key[1], held.event.modification, phase, test, why
                )
                self.happened("event", {"event": key[1], "modification": held.event.modification, "phase": phase})

    def _answer_now(self, response: EventResponse, vtn_id: str, received: Received) -> EventResponse:
        """Return an answer as it is after the depot was asked: what it cannot honour it opts out of."""
        key = (vtn_id, response.event_id)
        if response.opt is Opt.OUT or key not in received.accepted:
            return response
        refusal = self.state.events[key].refusal
        if refusal is not None:
            return replace(response, opt=Opt.OUT, code=int(refusal.code), description=refusal.why)
        if key in self._unanswered and self._no_promise is not None:
            return replace(response, opt=Opt.OUT, code=int(Code.DEPLOYMENT_ERROR), description=self._no_promise)
        return response

    def _wanted(self, now_unix_s: float) -> tuple[Bound, ...]:
        found = events.bounds(self.state, self.rules, now_unix_s, self._provisional(), now_unix_s + HORIZON_S)
        return tuple(bound for bound in found if bound.end_unix_s > now_unix_s + _ENDING_S or bound.name in self.handed)

    async def _hand_over(self) -> None:
        """Have the orchestrator hold what is wanted; opt out of what it cannot honour."""
        try:
            while not await self._handed_over():
                pass
        except NoControl as why:
            if self.control_trouble is None:
                logger.error("The orchestrator cannot be told of events: %s", why)
            self.control_trouble = str(why)
            now_unix_s = self.wall()
            fresh, _ = changes(self.handed, self._wanted(now_unix_s), now_unix_s)
            stands = isinstance(why, NotReady)  # what was promised, and is obeyed
            self._unanswered |= {bound.key for bound in fresh if not (stands and self.state.events[bound.key].promised)}
            return
        if self.control_trouble is not None:
            logger.info("The orchestrator is told of events again")
            self.control_trouble = None

    def _mind_step(self) -> None:
        """Have all bounds put again, and those removed that are over, where the wall's clock was stepped.

        The orchestrator turns a bound's times into those of its own clock when it is put, and they stay where they are.
        What has ended has not begun again, and what seemed over, or did not, the VTN is asked for once more.
        """
        ahead_s = self.wall() - self.clock()
        if self._wall_ahead_s is None:
            self._wall_ahead_s = ahead_s
        elif abs(ahead_s - self._wall_ahead_s) > _STEP_S:
            logger.warning("The clock was stepped by %+.1f s: events are placed anew", ahead_s - self._wall_ahead_s)
            self.state = events.stepped(self.state, ahead_s - self._wall_ahead_s)
            self._wall_ahead_s = ahead_s
            self.handed = {name: _unknown(name) for name in self.handed}
            self._sync_s = -math.inf

    async def _handed_over(self) -> bool:
        """Put and remove; return whether that was all, or an event was opted out of, so that more is to be removed.

        Raises NoControl; where that is NotReady, all else is done.
        """
        now_unix_s = self.wall()
        fresh, gone = changes(self.handed, self._wanted(now_unix_s), now_unix_s)
        waits: NotReady | None = None
        for bound in fresh:
            try:
                honour = await self._put(bound)
            except NotReady as why:
                # It is obeyed. Neither the others wait for that, nor what stands.
                if not self.state.events[bound.key].promised:
                    waits = why
                continue
            # A price obliges to nothing: what of it cannot be done the VTN need not know.
            if honour.can or bound.rank is not Rank.GRID or bound.end_unix_s <= self.wall() + _ENDING_S:
                self._doubted.discard(bound.key)
            elif not self.state.events[bound.key].promised:
                self._opt_out(bound.key, f"the depot cannot obey: {honour.why}", now_unix_s)
                return False
            elif bound.key not in self._doubted:
                self._doubted.add(bound.key)
                logger.warning("OpenADR event %s could not be honoured now: %s", bound.key[1], honour.why)
        for name in gone:
            try:
                await self.control.remove(name)
            except NotReady as why:
                waits = why
                continue
            finally:
                self._goes_on(progress.EVENTS)
            del self.handed[name]
        self.handed = {name: bound for name, bound in self.handed.items() if bound.end_unix_s > now_unix_s}
        if waits is not None:
            raise waits
        # What was promised stands, whoever is silent just when its bound is put again. The next tick stores it: where
        # there is none, the depot is asked once more.
        self.state = events.promised(self.state, now_unix_s + HORIZON_S)
        return True

    async def _put(self, bound: Bound) -> Honour:
        """Have a bound obeyed. Raises NoControl; where that is NotReady, it is asked again with the next tick.

        What could not be judged is put again once it can: until then it is said without.
        """
        again = replace(bound, source=_ASKED_AGAIN)
        if self._unjudged is not None and self.handed.get(bound.name) == again:
            raise NotJudged(self._unjudged)
        try:
            honour = await self.control.put(bound)
        except NotReady as why:
            self.handed[bound.name] = again
            self._unjudged = str(why) if isinstance(why, NotJudged) else self._unjudged
            raise
        finally:
            self._goes_on(progress.EVENTS)
        self.handed[bound.name] = bound
        return honour

    def _opt_out(self, key: Key, why: str, now_unix_s: float) -> None:
        """Take no part in an event after all, and have the VTN told."""
        code = Code.OK
        if self._baseline() is None and key in events.baseless(self.state, self.rules, now_unix_s):
            # That is no choice: it is judged again as soon as it is known.
            why, code = f"the baseline is not known, for nobody says what all of it draws: {why}", Code.DEPLOYMENT_ERROR
        logger.warning("OpenADR event %s cannot be honoured: opted out: %s", key[1], why)
        self.state = events.opted_out(self.state, key, why, code)
        self._unanswered.add(key)
        self._keep()

    def _compare(self, report: Mapping[str, Any]) -> None:
        """Note what the orchestrator has of bounds: what it has lost is put again, what nobody wants is removed.

        Where no event is known at all, these were lost: what was handed over goes on until a VTN has said what it has.
        """
        now_unix_s = self.wall()
        there = {str(ask["name"]) for ask in report.get("asks") or ()}
        for name, bound in tuple(self.handed.items()):
            if name not in there and bound.end_unix_s > now_unix_s + _ENDING_S:
                del self.handed[name]
        lost = not self.state.events and not self._listed and not self.absent
        for name in there - self.handed.keys():
            if name.startswith(OPENADR) and not lost:
                self.handed[name] = _unknown(name)

    def _due(self) -> set[Key]:
        """Return the events that the VTN is to be told of anew, as far as it can be told now."""
        if not self._unanswered:
            return set()
        unasked = events.unpromised(self.state, self.wall() + HORIZON_S)
        return {key for key in self._unanswered - unasked if not self._promise_waits(key)}

    async def _answer_late(self) -> None:
        """Tell the VTN of events that the depot now sees otherwise than it said."""
        self._late = False
        for key in self._due():
            held = self.state.events.get(key)
            if self._promise_waits(key):  # by now
                continue
            ours = key[0] == self._known().vtn_id
            if held is not None and ours and held.event.response_required and held.end_unix_s > self.wall():
                opt = Opt.IN if held.refusal is None else Opt.OUT
                answer = EventResponse(
                    event_id=key[1],
                    modification=held.event.modification,
                    opt=opt,
                    code=int(Code.OK if held.refusal is None else held.refusal.code),
                    description="OK" if held.refusal is None else held.refusal.why,
                )
                if not await self._reply("EiEvent", messages.created_event("", self._known().ven_id, (answer,))):
                    return
            if self.state.events.get(key) is held:
                self._unanswered.discard(key)
            else:
                self._late = True  # it was judged anew while the VTN took the answer

    # Time

    async def _keep_time(self) -> None:
        said = ""
        while True:
            self._goes_on(progress.EVENTS)
            words = ""
            try:
                await self._tick()
            except OSError as problem:
                words = str(problem)
                if words != said:
                    logger.error("The gateway's state cannot be kept: %s", words)
            said = words
            await anyio.sleep(self._tick_pause_s())

    def _tick_pause_s(self) -> float:
        """Return how long time may be left alone: no longer than until the VTN has been silent for too long."""
        left_s = self.heard_s + SILENT_INTERVALS * self.poll_s - self.clock()
        return min(self.tick_s, left_s + _JUST_AFTER_S) if left_s > 0 else self.tick_s

    async def _tick(self) -> None:
        now_s = self.clock()
        self._noticed &= self._unanswered
        self._listen(now_s)
        if self._ticked_s is not None and not self._in_force():
            self._free_s += now_s - self._ticked_s
        self._ticked_s = now_s
        await self._look_at_depot(now_s)
        await self._look_whether_judged()
        async with self._busy:
            self._mind_step()
            before = self.state
            if self._baseline() is not None:
                self.state = events.reconsidered(self.state, self.wall())
                self._unanswered |= self._differing(before)
            if self.registration is not None and self.rules is not self._judged_by:
                self._judged_by = self.rules
                self.state = events.rejudged(self.state, self.rules, self.wall())
                self._unanswered |= self._differing(before)
                self._log_events(before, self.state, self.wall())
            self.state = events.frozen(self.state, self.wall(), self._baseline())
            kept = self._keep()
            await self._hand_over()
            self._notice_late()
            if kept:
                self._events.shorten(self.state)

    def _listen(self, now_s: float) -> None:
        about = f"VTN {self.transport.endpoint.host}"
        timeout_s = SILENT_INTERVALS * self.poll_s
        self._heartbeats, entries = listen(self._heartbeats, {about: self.heard_s}, {about: timeout_s}, now_s)
        for entry in entries:
            entry.log(logger)
            self.happened("alarm", {"about": about, "words": entry.text})

    @property
    def link_lost(self) -> bool:
        """Whether the VTN has been silent for too long."""
        return self.clock() - self.heard_s > SILENT_INTERVALS * self.poll_s

    async def _look_at_depot(self, now_s: float) -> None:
        """Tell the orchestrator that the link stands, and look at what the depot draws."""
        valid_for_s = SILENT_INTERVALS * self.poll_s - (now_s - self.heard_s)
        # A VTN may want to be polled less often than once in the longest time that can be told.
        due = self.heard_s >= self._link_s + self.poll_s / 2 or now_s >= self._linked_s + LINK_AGAIN_S
        if self.registration is not None and valid_for_s > 0 and due:
            with contextlib.suppress(NoControl):  # it may be unable to store that, and yet say what the depot draws
                await self.control.link(min(LONGEST_LINK_S, valid_for_s))
                self._link_s, self._linked_s = self.heard_s, now_s
        try:
            if now_s - self._status_s >= STATUS_EVERY_S:
                self._status_s = now_s
                handed = dict(self.handed)
                self._report = await self.control.status()
                self._remember_power()
                async with self._busy:
                    # An event that came meanwhile was not kept waiting: the report may be of before it.
                    if self.handed == handed:
                        self._compare(self._report)
        except NoControl:
            self._report = None

    async def _look_whether_judged(self) -> None:
        """Ask whether the orchestrator can judge by now what it could not: that costs less than to put it again.

        Each put is stored and logged there, and begins a cycle.
        """
        if self._unjudged is None:
            return
        try:
            informed = (await self.control.status()).get("informed", True)
        except NoControl:
            informed = True  # what is the matter a put says
        if informed:
            self._unjudged = None

    async def _look_at_power(self) -> None:
        """Ask what the site draws now, for an event that cannot be judged without."""
        with contextlib.suppress(NoControl):
            self._report = await self.control.status()
            self._remember_power()

    def _remember_power(self) -> None:
        """Keep what the site draws while no event bounds it: that is what a baseline is made of.

        It is as old as the time without an event since: one event right after another begins where that began.
        """
        power_w = reports.power_w(self._report)
        if power_w is not None and not self._in_force():
            self._drawn.append((self._free_s, power_w))
        while self._drawn and self._drawn[0][0] < self._free_s - BASELINE_S:
            self._drawn.popleft()

    def _in_force(self) -> tuple[Bound, ...]:
        now_unix_s = self.wall()
        return tuple(
            one
            for one in self.handed.values()
            if one.key != _NO_KEY and one.start_unix_s <= now_unix_s < one.end_unix_s
        )

    def _baseline(self) -> float | None:
        """Return the mean of what the site drew in the last minutes without an event; None: that is not known."""
        drawn = [power_w for at_s, power_w in self._drawn if at_s >= self._free_s - BASELINE_S]
        return sum(drawn) / len(drawn) if drawn else None

    def _provisional(self) -> float | None:
        """Return what stands for a baseline that is still to be frozen; it moves once a minute, not at each sample."""
        now_s = self.clock()
        if self._provisional_w is None or now_s - self._provisional_s >= _PROVISIONAL_S:
            self._provisional_w, self._provisional_s = self._baseline(), now_s
        return self._provisional_w

    # Terms

    async def agree(self, wanted: Terms) -> None:
        """Go by other terms from now on, and offer the VTN the reports that they name.

        Raises Trouble, NotRegistered, Refused, Unsendable, OSError or sqlite3.Error, and then goes by those before.
        """
        before, self.terms = self.terms, wanted
        # At once: a report that the VTN asks for by the way is sampled by them.
        self._adopt_rules()
        if self.registration is not None and wanted.offers(self._by_file) != before.offers(self._by_file):
            try:
                await self._offer_and_create()
            except (Trouble, NotRegistered, Refused, messages.Unsendable, OSError, sqlite3.Error):
                self.terms = before
                self._adopt_rules()
                raise
        self.store.save(TERMS, terms.to_json(wanted))

    # Reports

    @property
    def offers(self) -> tuple[messages.Offer, ...]:
        """The reports that the VTN is offered."""
        return self.terms.offers(self._by_file)

    async def _offer_reports(self) -> None:
        """Say which reports there are, and take those that are asked for at once. Events go on without."""
        try:
            with _going_on_without("The VTN takes no reports"):
                await self._offer_and_create()
        except (OSError, sqlite3.Error) as problem:
            # The VTN has heard of them, and this process knows what it asked for.
            logger.warning("Which reports are asked for cannot be kept: %s: %s", type(problem).__name__, problem)

    async def _offer_and_create(self) -> None:
        body = messages.register_report(_fresh_id(), self._known().ven_id, self.offers, self.wall())
        answer = await self._ask("EiReport", body)
        # A registration begins without reports; those before it were for another. What the VTN has not taken of them
        # goes along with the same ones, once they are asked for anew.
        before = [one.request for one in self.schedules.values() if not one.once]
        self.schedules.clear()
        self._offered = reports.data_points(self.offers)
        with self._samples():
            for request in before:
                self.buffer.set_aside(request)
        if isinstance(answer, RegisteredReport):
            code, why = await self._create_reports(answer.requests)
            if answer.requests:
                pending = [*self.schedules]
                await self._reply("EiReport", messages.created_report("", self._known().ven_id, pending, code, why))
        self._save_reports()

    async def _create_reports(self, requests: Iterable[ReportRequest]) -> tuple[int, str]:
        """Take reports that are asked for, and return the code and words to answer with."""
        unknown = []
        for request in requests:
            if request.specifier == reports.METADATA:
                body = messages.register_report(_fresh_id(), self._known().ven_id, self.offers, self.wall())
                await self._ask("EiReport", body)
            elif reports.offer_of(request, self.offers) is None:
                unknown.append(request.specifier)
            else:
                self.schedules[request.id] = schedule = reports.begun(request, self.clock(), self.wall())
                if not schedule.once:
                    with self._samples():
                        self.buffer.take_up(request)
        self._save_reports()
        if unknown:
            return Code.REPORT_NOT_SUPPORTED, f"not supported: {', '.join(unknown)}"
        return Code.OK, "OK"

    async def _cancel_reports(self, message: CancelReport) -> None:
        for request_id in message.report_requests:
            schedule = self.schedules.get(request_id)
            if schedule is not None and message.to_follow:
                await self._send_report(schedule, progress.CONVERSATION)
            self.schedules.pop(request_id, None)
        self._save_reports()

    async def _report_loop(self) -> None:
        while True:
            self._goes_on(progress.REPORTS)
            for request_id in tuple(self.schedules):
                # While one was sent, another may have been cancelled, or asked for otherwise.
                if request_id in self.schedules:
                    await self._try(self.schedules[request_id])
            await anyio.sleep(self.tick_s)

    async def _try(self, schedule: Schedule) -> None:
        """Work on a report. What goes wrong the conversation notices as well; samples wait on the disk."""
        try:
            await self._work_on(schedule)
        except (Trouble, NotRegistered, Refused, messages.Unsendable) as why:
            logger.debug("Report %s waits: %s", schedule.request.id, why)
            waits = self.schedules.get(schedule.request.id)
            if waits is not None:
                most_s = max(LONGEST_PAUSE_S, 2 * self.poll_s)
                pause_s = transport.backoff_s(waits.failures + 1, self.draw(), most_s=most_s)
                self.schedules[waits.request.id] = reports.failed(waits, self.clock() + pause_s)
        except (OSError, sqlite3.Error) as problem:
            logger.warning("Report %s: its samples cannot be kept: %s", schedule.request.id, problem)

    async def _work_on(self, schedule: Schedule) -> None:
        now_s = self.clock()
        request_id = schedule.request.id
        if reports.offer_of(schedule.request, self.offers) is None:
            logger.warning("Report %s is of something that is no longer offered: it ends", request_id)
            self.schedules.pop(request_id)
            self._save_reports()
            return
        if schedule.sample_s <= now_s < schedule.end_s:
            self._sample(schedule)
            schedule = self.schedules[request_id] = reports.sampled(schedule, now_s)
        if now_s < max(schedule.again_s, min(schedule.send_s, schedule.end_s)):
            return
        last = schedule.once or now_s >= schedule.end_s
        if not last:
            self.schedules[request_id] = reports.sent(schedule, now_s)
        await self._send_report(schedule)
        if last:
            self.schedules.pop(request_id, None)
            self._save_reports()
        elif request_id in self.schedules:
            self.schedules[request_id] = reports.taken(self.schedules[request_id])

    def _sample(self, schedule: Schedule) -> None:
        request = schedule.request
        in_force = [one for one in self._in_force() if one.rank is Rank.GRID]
        found = reports.points(self._report, in_force, self.rules.resources)
        at_unix_s = self.wall()
        for name in request.data_points:
            # One value an interval: there are VTNs, openleadr's among them, that fail at several.
            self.buffer.add(request.id, ReportInterval(at_unix_s, schedule.every_s, (found[name],)))

    async def _send_report(self, schedule: Schedule, loop: str = progress.REPORTS) -> None:
        """Send all samples of a report, those of an outage first; each leaves the disk when it was taken.

        :param loop: the one that sends it
        """
        request = schedule.request
        offer = reports.offer_of(request, self.offers)
        while offer is not None:
            self._helps_on(loop)
            number, intervals = self.buffer.oldest(request.id)
            if not intervals:
                return
            report = Report(
                report_id=offer.specifier,
                request_id=request.id,
                specifier=offer.specifier,
                name=offer.name,
                created_unix_s=self.wall(),
                intervals=intervals,
            )
            body = messages.update_report(_fresh_id(), self._known().ven_id, (report,))
            answer = await self._ask("EiReport", body)
            self.buffer.taken(request.id, number)
            if isinstance(answer, UpdatedReport) and answer.cancel is not None:
                for request_id in answer.cancel.report_requests:
                    self.schedules.pop(request_id, None)
                self._save_reports()
                return

    # Opts

    async def opt(self, opted: messages.Opted) -> None:
        """Tell the VTN when the depot takes part, or does not. Raises Trouble, NotRegistered or Refused."""
        body = messages.create_opt(_fresh_id(), self._known().ven_id, opted, self.wall())
        await self._expect_opted(body)
        self.opts[opted.id] = opted
        self._keep_opts()

    async def cancel_opt(self, opt_id: str) -> None:
        """Take that back. Raises Trouble, NotRegistered or Refused."""
        await self._expect_opted(messages.cancel_opt(_fresh_id(), self._known().ven_id, opt_id))
        self.opts.pop(opt_id, None)
        self._keep_opts()

    def _keep_opts(self) -> None:
        """Store what was opted for and is not over, and go by it."""
        now_unix_s = self.wall()
        for one in tuple(self.opts.values()):
            if all(window.start_unix_s + window.duration_s <= now_unix_s for window in one.available):
                del self.opts[one.id]
        self.store.save(OPTS, {"version": 1, "opts": [asdict(one) for one in self.opts.values()]})
        self._adopt_rules()

    async def _expect_opted(self, body: bytes) -> None:
        answer = await self._ask("EiOpt", body)
        if not isinstance(answer, Opted):
            raise Refused(f"found {type(answer).__name__}, expected the answer to an opt")

    # What a person may see

    def shown_events(self) -> list[dict[str, Any]]:
        """Return every event with the values of its signals and what the depot is held to, as plain JSON."""
        now_unix_s = self.wall()
        return [
            {
                **_event_json(key, held, now_unix_s),
                "signals": [_signal_json(one) for one in held.event.signals],
                "bounds": [_bound_json(bound) for bound in self.handed.values() if bound.key == key],
            }
            for key, held in self.state.events.items()
        ]

    def shown(self) -> dict[str, Any]:
        """Return what the VEN is doing, as plain JSON."""
        now_s, now_unix_s = self.clock(), self.wall()
        known = self.registration
        return {
            "vtn": self.transport.endpoint.url,
            "registered": known is not None,
            "absent": self.absent,
            "ven_id": None if known is None else known.ven_id,
            "client_id": self.identity.client_id,
            "vtn_id": None if known is None else known.vtn_id,
            "poll_s": self.poll_s,
            "heard_s_ago": round(now_s - self.heard_s, 1),
            "link_lost": self.link_lost,
            "trouble": self.trouble,
            "control_trouble": self.control_trouble,
            "unkept": self.unkept,
            "clock_off_s": self.transport.clock_off_s,
            "events": [_event_json(key, held, now_unix_s) for key, held in self.state.events.items()],
            "bounds": [_bound_json(bound) for bound in self.handed.values() if bound.key != _NO_KEY],
            "prices": [asdict(price) for price in events.prices(self.state, self.rules, now_unix_s)],
            "opts": [
                {
                    "name": one.id,
                    "opt": one.opt.value,
                    "times": [asdict(window) for window in one.available],
                    "market_context": one.market_context,
                }
                for one in self.opts.values()
            ],
            "terms": terms.shown(self.terms, self._by_file),
            "terms_by_file": terms.shown(Terms(), self._by_file),
            "reports": [one.request.id for one in self.schedules.values()],
            "samples_waiting": self._samples_waiting(),
        }

    def _samples_waiting(self) -> int | None:
        """Return how many samples the VTN has not taken yet; None: their file cannot be read."""
        try:
            return self.buffer.count()
        except sqlite3.Error:
            return None


class Cancelled(Exception):
    """The VTN has ended the registration."""


_ENDED = "The VTN has ended the registration: registering anew after a while"
_NO_KEY: Key = ("", "")
_ASKED_AGAIN = "asked again"
"""The source of a bound that is obeyed and asked about once more: whatever is wanted differs from it."""


def _unknown(name: str) -> Bound:
    """Return what stands for a bound that is there, nobody knows when: whatever is wanted now differs from it."""
    return Bound(name=name, key=_NO_KEY, target="", high_w=0.0, start_unix_s=0.0, end_unix_s=math.inf, source="before")


def _opts_of(document: Mapping[str, Any]) -> tuple[messages.Opted, ...]:
    """Return what was opted for. Raises ValueError, TypeError or KeyError for anything else."""
    return tuple(
        messages.Opted(
            **{
                **stored,
                "opt": Opt(stored["opt"]),
                "available": tuple(messages.Window(**window) for window in stored["available"]),
                "resources": tuple(stored["resources"]),
            }
        )
        for stored in document["opts"]
    )


@contextlib.contextmanager
def _going_on_without(words: str) -> Iterator[None]:
    """Say that a service of the VTN's fails, and go on: events come without it.

    Whether it knows this VEN at all, the answer to a poll says as well.
    """
    try:
        yield
    except (Refused, NotRegistered) as why:
        logger.warning("%s: %s", words, why)
    except Trouble as trouble:
        if trouble.kind not in _SERVICE_FAILS:
            raise
        logger.warning("%s: %s", words, trouble)


def _fresh_id() -> str:
    return str(uuid.uuid4())


def _event_json(key: Key, held: events.Held, now_unix_s: float) -> dict[str, Any]:
    event = held.event
    return {
        "vtn_id": key[0],
        "event": key[1],
        "modification": event.modification,
        "phase": held.phase(now_unix_s).value,
        "start_unix_s": held.start_unix_s,
        "end_unix_s": held.end_unix_s if math.isfinite(held.end_unix_s) else None,
        "priority": event.priority,
        "test": event.test,
        "market_context": event.market_context,
        "signals": [{"name": one.name, "type": one.type} for one in event.signals],
        "opt": (Opt.IN if held.refusal is None else Opt.OUT).value,
        "why": None if held.refusal is None else held.refusal.why,
        "baseline_w": held.baseline_w,
    }


def _signal_json(signal: Signal) -> dict[str, Any]:
    """Return a signal; its values are scaled, so that a power is in W."""
    scale = 1.0 if signal.unit is None else signal.unit.scale
    intervals = [{**asdict(one), "value": one.value * scale} for one in signal.intervals]
    unit = None if signal.unit is None else signal.unit.unit
    return {"name": signal.name, "type": signal.type, "unit": unit, "intervals": intervals}


def _bound_json(bound: Bound) -> dict[str, Any]:
    return {
        "name": bound.name,
        "event": bound.key[1],
        "target": bound.target,
        "rank": bound.rank.name.lower(),
        "high_w": bound.high_w,
        "start_unix_s": bound.start_unix_s,
        "end_unix_s": bound.end_unix_s if math.isfinite(bound.end_unix_s) else None,
        "baseline_w": bound.baseline_w,
    }
