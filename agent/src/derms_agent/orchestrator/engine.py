# SPDX-License-Identifier: Apache-2.0
"""The loop: readings wake it, a cycle decides, the ledger is stored, writes leave, and what became of them comes back.

A disk that takes nothing, or does not answer, ends no control: decreases leave all the same, for what is on the disk
counts more than they leave in force, and nothing is raised until it takes the ledger again.

One task works the cycle. Writes that were decided together are handed to their buses one right after the other, and
then each is seen through in a task of its own, so that no slow device keeps another's decrease waiting. A write that
was not sent by its deadline is given up and never sent later: the ledger counts on that.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_process
import anyio.to_thread

from derms_agent.control import journal
from derms_agent.control import ledger as book
from derms_agent.control.cycle import Outcome
from derms_agent.control.guard import Purpose, Write
from derms_agent.document_store import Store
from derms_agent.drivers.modbus import ModbusBus
from derms_agent.drivers.modbus_device import Begun, ModbusDevice
from derms_agent.model import Evse, Proof, ProofKind, Reading, Setpoint
from derms_agent.orchestrator import planning
from derms_agent.orchestrator.controller import Controller
from derms_agent.orchestrator.site import Site
from derms_agent.orchestrator.store import JOURNAL, LEDGER
from derms_agent.profiles.profile import Profile, Quantity

logger = logging.getLogger("derms.orchestrator")

PERIOD_S = 1.0
CALMEST_S = 0.1
"""Readings alone wake the cycle no more often than this; an ask always does."""
HOLD_S = 0.5
"""For how long decreases hold the next cycle back while they are under way: it would take the time that they need."""
DISK_S = 1.0
"""For how long a cycle, and so whatever decreases come, waits for the disk: flash that wears out stalls for seconds."""
LAST_DISK_S = 10.0
"""How long the disk may take for the last ledger, which nothing waits for but the service's end."""
BREATH_S = 0.001
"""How long a cycle pauses between its long parts: whoever has asked for something meanwhile has a turn."""
LEASE_S = 10.0
"""For how long a device's heartbeat goes on, and a setpoint is valid, once no cycle renews it."""
SHED_S = 2.0
"""How long the write of a setpoint may take, waiting for disk and bus included."""
INFORMED_S = 4.0
"""How long the first cycle waits for devices and meters to have answered; those that are dead do not hold it up."""
CHECKPOINT_S = 10.0
"""How often the ledger is stored though nothing is written: a successor knows then what was measured meanwhile."""
PLAN_EVERY_S, PLAN_AGAIN_S = 300.0, 5.0
_TIMES = 600


def boottime_s() -> float:
    """Return the time of the clock that no step moves and that goes on through suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def watts_of(site: Site, evse: Evse, profile: Profile, write: Write) -> float:
    """Return a write's current in W as its driver turns them back: by the circuit's voltage to neutral."""
    if profile.control is not None and profile.control.quantity is Quantity.POWER:
        return write.amount.active_a * float(site.network.watts_per_a[site.network.place[evse.name]])
    return write.amount.active_a * site.depot.circuits[evse.circuit].neutral_voltage_v * len(evse.phases)


@dataclass(slots=True, eq=False)
class Engine:
    """A controller with its devices. `told` is called with each cycle's outcome."""

    controller: Controller
    devices: Mapping[str, ModbusDevice]
    buses: Mapping[str, ModbusBus]
    store: Store
    boot_id: str
    began_s: float
    told: Callable[[Outcome], None] = lambda _: None
    clock: Callable[[], float] = boottime_s
    wall: Callable[[], float] = time.time
    cycles: int = 0
    cycle_times_s: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES))
    first_cycle: anyio.Event = field(default_factory=anyio.Event)
    _wake: anyio.Event = field(default_factory=anyio.Event)
    _urgent: bool = False
    _changed: bool = False
    _held_until_s: float = -math.inf
    _under_way: int = 0
    unkept: str = ""
    """Why the ledger cannot be stored; empty where it can."""
    _stored_s: float = -math.inf
    _disk: threading.Lock = field(default_factory=threading.Lock)
    _sessions_seen: frozenset[str] = frozenset()
    _plan_wanted: anyio.Event = field(default_factory=anyio.Event)
    _plan_failures: set[type[Exception]] = field(default_factory=set)

    async def run(self) -> None:
        """Run until cancelled. What is in force then stays in force, and the ledger on disk says what that is."""
        try:
            async with anyio.create_task_group() as tasks:
                for bus in self.buses.values():
                    tasks.start_soon(bus.run)
                for name, device in self.devices.items():
                    tasks.start_soon(device.run, self._published(name))
                tasks.start_soon(self._plan)
                await self._work(tasks)
        finally:
            with anyio.CancelScope(shield=True):
                await self._kept(partial(self.save_ledger, LAST_DISK_S, LAST_DISK_S))

    def wake(self) -> None:
        """Work at once: something was asked."""
        self._urgent = True
        self._wake.set()

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Begin no cycle while somebody who asked for decreases is answered, for `HOLD_S` at the most; then work."""
        if not self._under_way:  # else those who ask one after the other could put a cycle off for ever
            self._held_until_s = self.clock() + HOLD_S
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self.wake()

    def work_soon(self) -> None:
        """Have a cycle at the next calm moment: something has changed."""
        self._changed = True
        self._wake.set()

    def _published(self, name: str) -> Callable[[Reading], None]:
        def publish(reading: Reading) -> None:
            if self.controller.take(name, reading, self.clock()):
                self.work_soon()

        return publish

    async def _work(self, tasks: anyio.abc.TaskGroup) -> None:
        # What a predecessor left stands meanwhile, and it was safe.
        with anyio.move_on_after(INFORMED_S):
            while not self.controller.informed():
                await anyio.sleep(CALMEST_S)
        due_s = self.clock()
        last_s = -PERIOD_S
        while True:
            await self._due(due_s, last_s + CALMEST_S)
            urgent, self._urgent = self._urgent, False
            last_s = self.clock()
            # However often limits come, a cycle that is overdue is put off no further.
            ahead = urgent and last_s < due_s + PERIOD_S
            if ahead and (decreases := self.controller.shed(last_s)):
                self._changed = True  # the cycle has all else to see to, once these are through
                await self._let_out(tasks, decreases, last_s)
                continue
            self._changed = False
            await self._cycle(tasks, last_s)
            due_s = max(due_s + PERIOD_S, self.clock()) if last_s >= due_s else due_s

    async def _due(self, due_s: float, calm_until_s: float) -> None:
        """Wait until something is asked, or it is time for a cycle: by the clock, or for a change.

        Neither holds while decreases are asked for or under way; a change alone has to wait for a calm moment.
        """
        while not self._urgent:
            now_s = self.clock()
            at_s = min(due_s, calm_until_s) if self._changed else due_s
            if self._under_way:
                at_s = max(at_s, self._held_until_s)
            if at_s <= now_s:
                return
            self._wake = anyio.Event()
            with anyio.move_on_after(at_s - now_s):
                await self._wake.wait()
        # Whoever asked is answered before this goes on.
        await anyio.lowlevel.checkpoint()

    async def decreases_gone(self) -> None:
        """Wait while decreases are asked for or under way, as long as they hold a cycle back: they need the time."""
        now_s = self.clock()
        until_s = now_s + HOLD_S if self._urgent else self._held_until_s if self._under_way else now_s
        if until_s > now_s:
            await anyio.sleep(until_s - now_s)

    async def _cycle(self, tasks: anyio.abc.TaskGroup, now_s: float) -> None:
        outcome = self.controller.cycle(now_s, self.wall() - self.clock())
        self.cycles += 1
        self.cycle_times_s.append(self.clock() - now_s)
        await self._let_out(tasks, outcome.writes, now_s)
        self._renew()
        await anyio.sleep(BREATH_S)
        if now_s - self._stored_s >= CHECKPOINT_S:
            await self._kept(self.save_ledger)
            gc.collect()  # which does not run by itself: it would in the middle of a shed
            await anyio.sleep(BREATH_S)
        seen = frozenset(self.controller.sessions)
        if seen != self._sessions_seen:
            self._sessions_seen = seen
            self._plan_wanted.set()
        self.told(outcome)
        self.first_cycle.set()

    async def _let_out(self, tasks: anyio.abc.TaskGroup, writes: Sequence[Write], now_s: float) -> None:
        """Store writes that were issued at a time, and then hand them all to their buses."""
        kept = True
        lowers = any(write.purpose is Purpose.LOWER for write in writes)
        if self._stored_s == -math.inf:
            kept = await self._kept(self.save_ledger)  # which a journal then follows
        elif writes:
            append = partial(self.store.append, JOURNAL, journal.record(writes, now_s))
            kept = await self._kept(partial(self._on_disk, append, DISK_S))
        if not kept:
            writes = self._without_raises(writes)
        if writes:
            if lowers:
                self._held_until_s = now_s + HOLD_S
            self._under_way += 1
            # Nothing else has a turn between the first and the last: what comes back meanwhile can wait.
            # From its issue on a write has so long to be sent, and the disk's time is part of that.
            left_s = SHED_S - (self.clock() - now_s)
            tasks.start_soon(self._finish, [(write, *self._begun(write, left_s)) for write in writes], max(left_s, 0.0))

    async def _kept(self, store: Callable[[], Awaitable[object]]) -> bool:
        """Store something of the ledger; return whether it is on the disk. Why it is not is said once."""
        try:
            await store()
        except OSError as problem:
            self._stored_s = -math.inf  # half a record may be left, which nothing may follow
            if not self.unkept:
                logger.error("The ledger cannot be kept, so nothing is raised until it can: %s", problem)
            self.unkept = str(problem)
            return False
        if self.unkept:
            logger.info("The ledger is kept again")
            self.unkept = ""
        return True

    def _without_raises(self, writes: Sequence[Write]) -> tuple[Write, ...]:
        """Return the writes that leave no more in force than what a successor would count; the others never leave."""
        for write in writes:
            if write.purpose is Purpose.RAISE:
                unsent = Proof(evse=write.evse, kind=ProofKind.UNSENT, asked=write.amount.active_a, in_force=None)
                self.controller.proved(write.evse, write.id, unsent, self.clock())
        return tuple(write for write in writes if write.purpose is not Purpose.RAISE)

    async def save_ledger(self, within_s: float = DISK_S, behind_s: float = 0.0) -> None:
        """Store the ledger; it is on disk when this returns. Raises OSError."""
        now_s = self.clock()
        document = book.to_json(self.controller.state.ledger, self.boot_id, now_s)
        await self._on_disk(partial(self._save_ledger, document), within_s, behind_s)
        self._stored_s = now_s

    async def _on_disk(self, store: Callable[[], object], within_s: float, behind_s: float = 0.0) -> None:
        """Have something of the ledger stored. Raises OSError, of which TimeoutError is one.

        What takes too long goes on by itself, and until it has ended nothing else is stored: two would mix. `behind_s`
        is how long to wait for that.
        """

        def alone() -> None:
            if not self._disk.acquire(timeout=behind_s):
                raise TimeoutError("the disk does not answer")
            try:
                store()
            finally:
                self._disk.release()

        with anyio.move_on_after(within_s):
            await anyio.to_thread.run_sync(alone, abandon_on_cancel=True)
            return
        raise TimeoutError(f"the disk did not answer within {within_s:g} s")

    def _save_ledger(self, document: Mapping[str, Any]) -> None:
        self.store.save(LEDGER, document)
        self.store.begin(JOURNAL)

    def _renew(self) -> None:
        """Say that control is alive: what nobody renews, devices are let fall back from."""
        for evse in self.controller.site.evses:
            device = self.devices.get(evse.device)
            if device is not None:
                device.renew(evse.name, LEASE_S)

    def _begun(self, write: Write, within_s: float) -> tuple[ModbusDevice, Begun] | tuple[None, None]:
        """Hand a write to its device, which hands it to its bus; not where its time is over."""
        evse = self._evse(write.evse)
        device = self.devices.get(evse.device)
        if device is None or within_s <= 0:
            return None, None
        setpoint = Setpoint(
            evse=evse.name, p_w=watts_of(self.controller.site, evse, device.profile, write), valid_for_s=LEASE_S
        )
        return device, device.begin(setpoint, within_s)

    async def _finish(self, begun: Sequence[tuple[Write, ModbusDevice | None, Begun | None]], within_s: float) -> None:
        """See writes through that were begun together, each in a task of its own; what has no answer then has none."""
        with anyio.move_on_after(within_s):
            async with anyio.create_task_group() as tasks:
                for write, device, change in begun:
                    tasks.start_soon(self._prove, write, device, change)
        self._under_way -= 1
        self._wake.set()

    async def _prove(self, write: Write, device: ModbusDevice | None, begun: Begun | None) -> None:
        proof = None
        try:
            if device is not None and begun is not None:
                proof = await device.finish(begun)
        finally:
            self.controller.proved(write.evse, write.id, proof, self.clock())

    def _evse(self, name: str) -> Evse:
        site = self.controller.site
        return site.evses[site.network.place[name]]

    async def _plan(self) -> None:
        """Plan beside the cycle, in a process of its own, when sessions came or went and every few minutes."""
        while True:
            with anyio.move_on_after(PLAN_EVERY_S):
                await self._plan_wanted.wait()
            self._plan_wanted = anyio.Event()
            needs = self.controller.needs()
            if needs and self.controller.outcome is not None:
                await self._plan_once(planning.question(self.controller, needs, self.clock()))
            await anyio.sleep(PLAN_AGAIN_S)

    async def _plan_once(self, question: planning.Question) -> None:
        """Take a new plan in. Where none can be made, the last one stays: control works without.

        The process may lack memory and be killed, or raise anything; the next time another one is begun.
        """
        call: Awaitable[object] = anyio.to_process.run_sync(planning.answer, question, cancellable=True)
        try:
            found = await call
        except Exception as problem:
            if type(problem) not in self._plan_failures:
                logger.exception("No plan could be made; the last one stays, and it is tried again")
            self._plan_failures.add(type(problem))
            return
        if self._plan_failures:
            logger.info("Plans can be made again")
            self._plan_failures.clear()
        if isinstance(found, planning.Plan):
            self.controller.plan = found

    def plan_soon(self) -> None:
        """Plan again: a departure or a need was told."""
        self._plan_wanted.set()
