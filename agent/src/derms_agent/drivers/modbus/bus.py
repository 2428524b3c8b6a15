# SPDX-License-Identifier: Apache-2.0
"""A bus: its one connection, and the order in which jobs get it.

What holds, whatever goes wrong:

- One connection at the most: `run` alone opens it, and opens the next only when the last one's socket is closed.
- A job is sent once at the most. It is taken out of the queue before its bytes are handed over, and nothing puts it
  back: not a time-out, not a lost connection, not an exception reply. Whoever asked decides, knowing from the error's
  `may_have_happened` whether the device may have executed it.
- A reply is never taken for another's: see `connection`. What this module adds is the wait between two connections,
  until no gateway can still be waiting for the unit that did not answer.
- A job that was sent keeps its place on the line until its reply or its time-out, also when its caller has gone or its
  deadline has passed: what is sent next would otherwise meet its reply.
- Every job ends: by its reply, the transaction's time-out, its own deadline, the connection's end, or the bus's.

Scheduling runs where an event happens (a job comes, a reply comes, a timer fires) instead of in a task of its own: a
job that finds the bus idle is sent from its caller's own call, which is what makes reading as fast as asyncio allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import Any

import anyio

from derms_agent.drivers.errors import (
    BusError,
    ConnectionLost,
    DeadlinePassed,
    InvalidRequest,
    NoAnswer,
    Overloaded,
    Refused,
    Unreachable,
    Withdrawn,
)
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.modbus.backoff import Backoff
from derms_agent.drivers.modbus.connection import Connection, Outcome, open_connection
from derms_agent.drivers.modbus.frames import RTU_FRAMING_BYTES, Request, read_request, write_request
from derms_agent.drivers.modbus.unit import Unit
from derms_agent.drivers.modbus.waiting import WaitingJobs
from derms_agent.model import Bus, TransactionIds, Transport
from derms_agent.profiles.point import Table
from derms_agent.serial_line import silence_s, transaction_s

MOST_WAITING = 256
"""Jobs that may wait for one bus; the 50 units of a full serial line have two or three each."""

FIRST_RECONNECT_S = 0.5
LONGEST_RECONNECT_S = 10.0
SILENT_REQUESTS = 3
"""Requests one after the other that go unanswered without a byte coming back, before a connection is given up."""

GATEWAY_PATH_UNAVAILABLE = 10
"""The exception that says that the unit was not reached, so it did not answer."""

_NETWORK_S = 0.05


class Job:
    """One request with who asked it; `sent_at_s` is None while it waits, `due_s` is when its reply is given up.

    Implements `derms_agent.drivers.interface.Pending`. `queue` is where it waits.
    """

    __slots__ = ("deadline_s", "due_s", "future", "priority", "queue", "request", "sent_at_s", "unit")

    def __init__(
        self,
        request: Request,
        unit: Unit,
        priority: Priority,
        deadline_s: float,
        future: asyncio.Future[tuple[int, ...]],
    ) -> None:
        self.request = request
        self.unit = unit
        self.priority = priority
        self.deadline_s = deadline_s
        self.future = future
        self.sent_at_s: float | None = None
        self.due_s = 0.0
        self.queue: WaitingJobs[Job] | None = None

    def __await__(self) -> Generator[Any, None, tuple[int, ...]]:
        """Wait for the reply. Raises BusError."""
        return self.future.__await__()

    def fail(self, error: BusError) -> None:
        """Tell whoever asked, if they are still there."""
        if not self.future.done():
            self.future.set_exception(error)

    def withdraw(self) -> None:
        """See to it that it is not sent, unless it was: then its reply is still waited for."""
        if self.sent_at_s is not None or self.queue is None:
            return
        self.queue.discard(self)
        self.queue = None
        if not self.future.done():
            self.future.set_exception(Withdrawn(f"{self.request}: withdrawn while it waited; nothing was sent"))
            self.future.exception()  # nobody need ask for it

    @property
    def next_event_s(self) -> float:
        """When this job must be looked at again at the latest."""
        if self.sent_at_s is None:
            return self.deadline_s
        return self.due_s if self.future.done() else min(self.due_s, self.deadline_s)


class ModbusBus:
    """One Modbus endpoint or line with its units; implements `derms_agent.drivers.interface.SetpointBus`.

    `read` and `write` work while `run` does. While the bus is connecting, jobs wait as their deadlines allow; once an
    attempt has failed they are refused at once with `Unreachable`, until a connection stands.

    Among jobs of one priority, first come is first served; of sheds, the unit goes first that was sent one longest
    ago, so that who is to be lowered further waits for those who have not been lowered at all. A unit that does not
    answer is set apart: what is not a shed is refused to it, but for a try now and then (at first after 1 s, at last
    every 10 s); its sheds are sent, but after each attempt that it leaves unanswered a job for another unit goes first.
    So its neighbours wait one time-out at the most.
    """

    def __init__(self, bus: Bus, most_waiting: int = MOST_WAITING) -> None:
        if bus.max_in_flight < 1:
            raise ValueError(f"bus {bus.name}: found max_in_flight {bus.max_in_flight}, expected at least 1")
        self.bus = bus
        by_id = bus.transport is Transport.TCP and bus.transaction_ids is TransactionIds.STRICT
        # Without ids of their own, replies can only be paired one at a time.
        self._max_in_flight = bus.max_in_flight if by_id else 1
        self._hang_up_on_silence = not by_id
        self._delay_between_s = bus.delay_between_s
        if bus.transport is Transport.SERIAL and bus.baud_rate is not None:
            self._delay_between_s = max(bus.delay_between_s, silence_s(bus.baud_rate))
        self._units: dict[int, Unit] = {}
        self._waiting: WaitingJobs[Job] = WaitingJobs(most_waiting, _shed_at_s)
        self._waiting_for_dead: WaitingJobs[Job] = WaitingJobs(most_waiting, _shed_at_s)
        self._dead_had_its_turn = False
        self._in_flight: dict[Job, None] = {}
        self._connection: Connection[Job] | None = None
        self._problem: str | None = None
        self._running = False
        self._silent_requests = 0
        self._silence_noted_at_s = 0.0
        self._free_at_s = 0.0
        self._quiet_until_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._pace: asyncio.TimerHandle | None = None

    @property
    def connected(self) -> bool:
        """Whether a connection stands that jobs may be sent on."""
        return self._connection is not None

    @property
    def problem(self) -> str | None:
        """Why jobs are refused at once, in words; None while they are taken."""
        return self._problem

    def unit(self, unit_id: int) -> Unit:
        """Return what is known of a unit; it changes as replies come."""
        unit = self._units.get(unit_id)
        if unit is None:
            unit = self._units[unit_id] = Unit()
        return unit

    async def read(
        self, unit_id: int, table: Table, address: int, count: int, *, priority: Priority, deadline_s: float
    ) -> tuple[int, ...]:
        """Read `count` registers (bits, as 0 and 1, for coils and discrete inputs) from a PDU address on.

        `deadline_s` counts from the call and covers waiting, sending and the reply.

        :raises BusError: as each subclass says; `InvalidRequest` for more than 125 registers or 2,000 bits
        """
        return await self._outcome(self._submit(read_request(unit_id, table, address, count), priority, deadline_s))

    async def write(
        self,
        unit_id: int,
        table: Table,
        address: int,
        values: Sequence[int],
        *,
        priority: Priority,
        deadline_s: float,
        function: int | None = None,
    ) -> None:
        """Write registers (or coils, 0 and 1) from a PDU address on, once.

        :raises BusError: as each subclass says; where its `may_have_happened` is set the write may have been executed,
            and only reading back tells. `InvalidRequest` for more than 123 registers or 1,968 coils.
        """
        job = self.submit_write(
            unit_id, table, address, values, priority=priority, deadline_s=deadline_s, function=function
        )
        await self._outcome(job)

    def submit_write(
        self,
        unit_id: int,
        table: Table,
        address: int,
        values: Sequence[int],
        *,
        priority: Priority,
        deadline_s: float,
        function: int | None = None,
    ) -> Job:
        """Hand a write over as `write` does, without waiting: on an idle bus it has been sent when this returns.

        :raises BusError: it is not taken; what becomes of one that is, whoever awaits it is told
        """
        return self._submit(write_request(unit_id, table, address, values, function), priority, deadline_s)

    async def run(self) -> None:
        """Own the connection until cancelled: open it, keep it, open it again after jittered waits of up to 10 s.

        :raises RuntimeError: the bus is running already
        """
        if self._running:
            raise RuntimeError(f"bus {self.bus.name} is running already")
        self._running = True
        self._problem = None
        backoff = Backoff(FIRST_RECONNECT_S, LONGEST_RECONNECT_S)
        try:
            while True:
                delay_s = await self._connect_and_serve(backoff)
                await anyio.sleep(max(delay_s, self._quiet_until_s - self._now()))
        finally:
            self._running = False
            self._refuse(f"bus {self.bus.name} is stopped")
            for timer in (self._timer, self._pace):
                if timer is not None:
                    timer.cancel()
            self._timer = self._pace = None

    async def _connect_and_serve(self, backoff: Backoff) -> float:
        """Hold one connection from its opening to its end; return after how many seconds to open the next."""
        try:
            with anyio.fail_after(self.bus.connect_timeout_s):
                connection = await open_connection(self.bus, self._settled, self._ended)
        except (OSError, TimeoutError) as error:
            said = str(error) or "no answer"
            self._refuse(f"bus {self.bus.name}: cannot connect to {self.bus.endpoint}: {said}")
            return backoff.next_s()
        self._silent_requests = 0
        try:
            if self.bus.delay_after_connect_s:
                with anyio.move_on_after(self.bus.delay_after_connect_s):
                    await connection.closed.wait()
            else:
                await anyio.sleep(0)  # what has come already shows that it is no fresh link
            if not connection.problem:
                self._problem = None
                self._connection = connection
                self._pump()
            await connection.closed.wait()
        finally:
            self._connection = None
            connection.close(f"bus {self.bus.name} is stopped")
            with anyio.CancelScope(shield=True):
                await connection.closed.wait()
        return self._delay_after(connection, backoff)

    def _delay_after(self, connection: Connection[Job], backoff: Backoff) -> float:
        if connection.answered:
            backoff.reset()
        if connection.hung_up:
            # The peer did not refuse us. Without ids, `_quiet_until_s` says when to come back; the neighbours wait.
            backoff.reset()
            return 0.0 if self._hang_up_on_silence else backoff.next_s()
        delay_s = backoff.next_s()
        if backoff.attempts > 1:
            self._refuse(f"bus {self.bus.name}: {self.bus.endpoint} answers nothing: {connection.problem}")
        return delay_s

    @staticmethod
    async def _outcome(job: Job) -> tuple[int, ...]:
        try:
            return await job
        finally:
            job.withdraw()  # the caller was cancelled: what has not been sent never is

    def _submit(self, request: Request, priority: Priority, deadline_s: float) -> Job:
        """Take a job in, and send it if the bus is free for it."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if request.unit_id == 0 and self.bus.transport is not Transport.TCP:
            raise InvalidRequest("found unit 0, which is the broadcast of a serial line and never answered")
        if self._problem is not None:
            raise Unreachable(f"{request}: {self._problem}")
        unit = self.unit(request.unit_id)
        dead = unit.failures > 0 and unit.dead(now_s)
        if dead and priority is not Priority.SHED and not unit.may_be_asked(now_s):
            raise Unreachable(f"{request}: not asked, for it has not answered {unit.failures} times")
        job = Job(request, unit, priority, now_s + deadline_s, loop.create_future())
        if self._connection is not None and not self._waiting and not dead and self._may_send(now_s):
            self._dead_had_its_turn = False
            self._send(job, now_s)
        else:
            self._wait(job, self._waiting_for_dead if dead else self._waiting)
            self._pump()
        return job

    def _wait(self, job: Job, waiting: WaitingJobs[Job]) -> None:
        job.queue = waiting
        out = waiting.push(job, job.priority)
        if out is not None:
            out.fail(Overloaded(f"{out.request}: not sent, for {len(waiting)} jobs wait for bus {self.bus.name}"))
        if out is not job:
            self._arm(job.deadline_s)

    def _may_send(self, now_s: float) -> bool:
        if len(self._in_flight) >= self._max_in_flight:
            return False
        if now_s >= self._free_at_s:
            return True
        if self._pace is None:
            self._pace = asyncio.get_running_loop().call_at(self._free_at_s, self._paced)
        return False

    def _paced(self) -> None:
        self._pace = None
        self._pump()

    def _pump(self) -> None:
        """Send what waits, as far as the line is free."""
        while self._connection is not None and (self._waiting or self._waiting_for_dead):
            now_s = self._now()
            if not self._may_send(now_s):
                return
            job = self._next_job()
            if job.future.done():
                continue  # its caller has just gone
            if job.deadline_s <= now_s:
                job.fail(_too_late(job))
            else:
                self._send(job, now_s)

    def _next_job(self) -> Job:
        living, dead = self._waiting.first(), self._waiting_for_dead.first()
        if dead is None:
            return self._waiting.pop()
        # A dead unit's shed goes before the others' polls, but not before their sheds, and never twice in a row.
        if living is not None and (self._dead_had_its_turn or living < dead or living == dead == Priority.SHED):
            self._dead_had_its_turn = False
            return self._waiting.pop()
        self._dead_had_its_turn = True
        return self._waiting_for_dead.pop()

    def _send(self, job: Job, now_s: float) -> None:
        assert self._connection is not None  # noqa: S101 -- every caller looked; this tells the type checker
        job.sent_at_s = now_s
        job.due_s = now_s + self.bus.timeout_s
        if job.priority is Priority.SHED:
            job.unit.shed_at_s = now_s
        self._in_flight[job] = None
        if self._delay_between_s:
            self._free_at_s = now_s + self._delay_between_s
        self._connection.send(job)
        self._arm(min(job.due_s, job.deadline_s))

    def _settled(self, job: Job, outcome: Outcome) -> None:
        """Take what became of a job from the connection."""
        now_s = self._now()
        del self._in_flight[job]
        if self._delay_between_s:
            self._free_at_s = now_s + self._delay_between_s
        if isinstance(outcome, tuple):
            job.unit.answered(now_s)
            if not job.future.done():
                job.future.set_result(outcome)
        else:
            if isinstance(outcome, Refused) and outcome.exception_code != GATEWAY_PATH_UNAVAILABLE:
                job.unit.answered(now_s)
            elif not isinstance(outcome, ConnectionLost):
                self._failed(job, now_s)
            job.fail(outcome)
        self._pump()

    def _failed(self, job: Job, now_s: float) -> None:
        """Note that a unit did not answer as it should; set its waiting jobs apart once it must be taken for dead."""
        unit = job.unit
        unit.failed(now_s if job.sent_at_s is None else job.sent_at_s, now_s)
        if not unit.dead(now_s):
            return
        self._dead_had_its_turn = True
        for waiting in [other for other in self._waiting if other.unit is unit]:
            self._waiting.discard(waiting)
            if waiting.priority is Priority.SHED:
                self._wait(waiting, self._waiting_for_dead)
            else:
                waiting.fail(
                    Unreachable(f"{waiting.request}: not asked, for it has not answered {unit.failures} times")
                )

    def _ended(self) -> None:
        """Take the end of a connection from it, before it settles what was in flight."""
        self._connection = None
        if not self._hang_up_on_silence:
            return
        now_s = self._now()
        # With nothing in flight the reply that came was someone's all the same: then none may be under way any more.
        late_s = [self._late_until_s(job, now_s) for job in self._in_flight] or [now_s + self.bus.gateway_timeout_s]
        self._quiet_until_s = max(self._quiet_until_s, *late_s)

    def _late_until_s(self, job: Job, now_s: float) -> float:
        """Return until when a job's reply may still come, were there a connection."""
        sent_at_s = now_s if job.sent_at_s is None else job.sent_at_s
        return sent_at_s + self.bus.gateway_timeout_s + self._line_s(job.request)

    def _line_s(self, request: Request) -> float:
        """Return how long request and reply take on their way, the unit's own time left out."""
        if self.bus.baud_rate is None:
            return _NETWORK_S
        request_bytes, reply_bytes = len(request.pdu), request.reply_bytes
        frames = (request_bytes + RTU_FRAMING_BYTES, reply_bytes + RTU_FRAMING_BYTES)
        return _NETWORK_S + transaction_s(self.bus.baud_rate, *frames, turnaround_s=0.0)

    def _timed_out(self, job: Job, now_s: float) -> None:
        connection = self._connection
        assert connection is not None  # noqa: S101 -- a connection that ends settles what is in flight
        if connection.heard:
            self._silent_requests = 0
        # Of several that were in flight together, one counts: they met the same silence.
        if self._silent_requests == 0 or (job.sent_at_s or 0.0) >= self._silence_noted_at_s:
            self._silent_requests += 1
            self._silence_noted_at_s = now_s
        connection.heard = False
        said = f"{job.request}: no reply within {self.bus.timeout_s:g} s"
        connection.forget(job)
        if self._hang_up_on_silence:
            connection.close(said)  # `_ended` sees the job still in flight, and so knows how late a reply may come
        elif self._silent_requests >= SILENT_REQUESTS:
            connection.close(f"{self._silent_requests} requests in a row went unanswered")
        elif connection.worn_out:
            connection.close("too many requests went unanswered")
        del self._in_flight[job]
        self._failed(job, now_s)
        job.fail(NoAnswer(said, may_have_happened=job.request.writes))

    def _arm(self, when_s: float) -> None:
        """See to it that `_tick` runs at that time at the latest: one timer for all jobs, seldom moved."""
        if self._timer is not None:
            if when_s >= self._timer_at_s:
                return
            self._timer.cancel()
        self._timer_at_s = when_s
        self._timer = asyncio.get_running_loop().call_at(when_s, self._tick)

    def _tick(self) -> None:
        """Give up replies that are overdue, and jobs whose deadline has passed."""
        self._timer = None
        now_s = self._now()
        for job in list(self._in_flight):
            if job not in self._in_flight:
                continue  # the connection was hung up on meanwhile
            if job.due_s <= now_s:
                self._timed_out(job, now_s)
            elif job.deadline_s <= now_s:
                said = f"{job.request}: no reply before the job’s deadline"
                job.fail(NoAnswer(said, may_have_happened=job.request.writes))
        for waiting in (self._waiting, self._waiting_for_dead):
            for job in list(waiting):
                if job.deadline_s <= now_s:
                    waiting.discard(job)
                    job.fail(_too_late(job))
        self._pump()
        jobs = (*self._in_flight, *self._waiting, *self._waiting_for_dead)
        if jobs:
            self._arm(min(job.next_event_s for job in jobs))

    def _refuse(self, problem: str) -> None:
        """Refuse the jobs that wait, and all that come until a connection stands."""
        self._problem = problem
        for waiting in (self._waiting, self._waiting_for_dead):
            for job in list(waiting):
                waiting.discard(job)
                job.fail(Unreachable(f"{job.request}: {problem}"))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _shed_at_s(job: Job) -> float:
    return job.unit.shed_at_s


def _too_late(job: Job) -> DeadlinePassed:
    return DeadlinePassed(f"{job.request}: its deadline passed while it waited for the bus; nothing was sent")
