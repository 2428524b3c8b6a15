# SPDX-License-Identifier: Apache-2.0
"""A bus whose units are tables in memory: they answer, refuse or keep silent as a test wants, and record everything."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from derms_agent.drivers.errors import BusError, NoAnswer, Refused, Withdrawn
from derms_agent.drivers.interface import Priority
from derms_agent.model import Device, DeviceKind, Evse, Phase, Value
from derms_agent.profiles.point import Table

ILLEGAL_ADDRESS = 2
WIRED = (Phase.L1, Phase.L2, Phase.L3)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True)
class Request:
    """A transaction as the unit gets it; `words` is empty for a read."""

    unit_id: int
    table: Table
    address: int
    count: int
    priority: Priority
    words: tuple[int, ...] = ()
    function: int | None = None


Fault = Callable[[Request], BusError | None]
"""What goes wrong with a request. Where the error says that it may have happened, a write has been executed."""


@dataclass(eq=False)
class Submitted:
    """Implements Pending: a write in a task of its own, which goes on whoever waits for it."""

    sent: bool = False

    def carry_out(self, work: Callable[[], Awaitable[None]]) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self._carry_out(work))

    async def _carry_out(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except BusError as failure:
            self._end(failure)
        else:
            self._end(None)

    def _end(self, failure: BusError | None) -> None:
        if self._future.done():
            return
        if failure is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(failure)

    def __await__(self) -> Generator[Any, None, None]:
        return self._future.__await__()

    def withdraw(self) -> None:
        if self.sent:
            return
        self._task.cancel()
        if not self._future.done():
            self._end(Withdrawn("withdrawn while it waited"))
            self._future.exception()


@dataclass
class MemoryBus:
    """Implements SetpointBus: one transaction at a time, by priority, each taking `takes_s`, and until `held`."""

    holding: dict[int, int] = field(default_factory=dict)
    input: dict[int, int] = field(default_factory=dict)
    strict: bool = True
    takes_s: float = 0.0
    fault: Fault | None = None
    held: anyio.Event | None = None
    requests: list[Request] = field(default_factory=list)
    mirrors: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._waiting: list[tuple[Priority, int, anyio.Event]] = []
        self._order = itertools.count()
        self._busy = False

    @property
    def writes(self) -> list[Request]:
        return [request for request in self.requests if request.words]

    @property
    def reads(self) -> list[Request]:
        return [request for request in self.requests if not request.words]

    def put(self, address: int, *words: int, table: Table = Table.HOLDING) -> None:
        self._cells(table).update(zip(itertools.count(address), words, strict=False))

    async def read(
        self, unit_id: int, table: Table, address: int, count: int, *, priority: Priority, deadline_s: float
    ) -> tuple[int, ...]:
        await self._turn(Request(unit_id, table, address, count, priority), deadline_s)
        cells = self._cells(table)
        if self.strict and any(at not in cells for at in range(address, address + count)):
            raise Refused(f"no registers {address} × {count}", ILLEGAL_ADDRESS)
        return tuple(cells.get(at, 0) for at in range(address, address + count))

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
        request = Request(unit_id, table, address, len(values), priority, tuple(values), function)
        await self._written(request, deadline_s, Submitted())

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
    ) -> Submitted:
        request = Request(unit_id, table, address, len(values), priority, tuple(values), function)
        submitted = Submitted(sent=not self._busy)  # an idle bus sends it at once
        self._busy = True
        submitted.carry_out(lambda: self._written(request, deadline_s, submitted))
        return submitted

    async def _written(self, request: Request, deadline_s: float, submitted: Submitted) -> None:
        try:
            await self._turn(request, deadline_s, submitted)
        except BusError as failure:
            if failure.may_have_happened:
                self._execute(request)
            raise
        self._execute(request)

    def _execute(self, request: Request) -> None:
        self.put(request.address, *request.words, table=request.table)
        for source, target in self.mirrors.items():
            if request.address <= source < request.address + request.count:
                self.put(target, request.words[source - request.address])

    def _cells(self, table: Table) -> dict[int, int]:
        return self.holding if table is Table.HOLDING else self.input

    async def _turn(self, request: Request, deadline_s: float, submitted: Submitted | None = None) -> None:
        await anyio.lowlevel.checkpoint()
        if submitted is None or not submitted.sent:
            await self._line(request, deadline_s)
        if submitted is not None:
            submitted.sent = True
        try:
            with anyio.CancelScope(shield=True):  # what was sent keeps its place on the line
                await anyio.sleep(self.takes_s)
                if self.held is not None:
                    await self.held.wait()
            self.requests.append(request)
            failure = None if self.fault is None else self.fault(request)
        finally:
            self._busy = False
            if self._waiting:
                heapq.heappop(self._waiting)[2].set()
        if failure is not None:
            raise failure

    async def _line(self, request: Request, deadline_s: float) -> None:
        """Wait for the line, and take it."""
        if deadline_s <= 0:
            raise NoAnswer("found no time left")
        while self._busy:
            event = anyio.Event()
            waits = (request.priority, next(self._order), event)
            heapq.heappush(self._waiting, waits)
            try:
                await event.wait()
            finally:
                if waits in self._waiting:
                    self._waiting.remove(waits)
                    heapq.heapify(self._waiting)
        self._busy = True


def device(
    profile: str,
    *,
    evses: int = 1,
    name: str = "charger-1",
    rating_a: float = 32.0,
    cable_a: float | None = None,
    phases: tuple[Phase, ...] = WIRED,
    settings: dict[str, Value] | None = None,
) -> Device:
    """Return a device with so many EVSEs, named as a depot file names them."""
    names = [name] if evses == 1 else [f"{name}/{number + 1}" for number in range(evses)]
    return Device(
        name=name,
        kind=DeviceKind.CHARGER,
        bus="bus",
        unit_id=1,
        profile=profile,
        settings=settings or {},
        evses=tuple(
            Evse(
                name=evse,
                device=name,
                connector=number + 1,
                circuit="main",
                phases=phases,
                rating_a=rating_a,
                cable_a=cable_a,
            )
            for number, evse in enumerate(names)
        ),
    )


@dataclass(frozen=True)
class Kit:
    """What tests build devices from, without importing this file."""

    bus: type[MemoryBus] = MemoryBus
    device: Callable[..., Device] = device


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()
