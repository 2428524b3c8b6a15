# SPDX-License-Identifier: Apache-2.0
"""A device on a Modbus bus: polled, limited, kept from falling back, and configured, as its profile says.

Three things go on at once, each on a schedule of its own: control's points are read each second, and the rest at a
slower pace; the watchdog is fed; setpoints are written as they come. What may never happen shapes them:

- An old limit is never written after a newer one. Before a setpoint is written, whatever else is still to be written to
  the same limit is withdrawn, be it an earlier setpoint or the watchdog's repetition of one.
- A limit that nobody renews does not stand for ever. The watchdog is fed only while a setpoint is valid; a device that
  takes any request for a sign of life is told its own fallback instead, where that is lower.
- A write of which no reply came is read back and never sent again. The watchdog's next beat is a write of its own, with
  the value that is wanted then.
- What is old is not shown as new: a reading turns stale by the clock, not by the next failure.
"""

from __future__ import annotations

import contextlib
import math
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import TypeAlias

import anyio

from derms_agent.drivers.configured_device import ConfiguredDevice
from derms_agent.drivers.errors import BusError, Refused
from derms_agent.drivers.interface import Pending, Priority, SetpointBus
from derms_agent.drivers.reads import Block
from derms_agent.drivers.register_map import ModbusMap, RegisterMap, Words, same, stem, suffix
from derms_agent.drivers.settings import ABSENT_CODES
from derms_agent.drivers.unit import Clock, Found
from derms_agent.drivers.writes import Forbidden
from derms_agent.model import Device, Evse, Proof, ProofKind, Quality, Reading, Setpoint, Value
from derms_agent.profiles.point import OutOfRange, Point
from derms_agent.profiles.profile import Profile, Quantity, Refresh, Switch, Zero

PHASE_VOLTAGE_V = 230.0
"""Between a line and neutral, where the depot file says nothing else."""
WATCHDOG_SHARE = 4
"""Beats per time-out: one may be lost and another be late, and the gap is still less than the time-out."""
UNKNOWN_WATCHDOG_S = 5.0
"""Taken for a time-out that is neither declared nor readable; the shortest that any profile here tells of."""
SHORTEST_BEAT_S = 0.2
TOGETHER_S = 0.05
"""What devices do within so long of each other they do together, and the process wakes up for all of them at once.

Hundreds of devices with moments of their own cost more in waking up than in what is done then.
"""
IDENTITY = frozenset({"manufacturer", "model_name", "serial_number", "firmware"})
MISSED_PACES = 2.5
"""How many times its pace a slowly read value may be old before it is left out of the reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often things are done, and how long they may take, in s.

    `poll_s`: the profile's `poll` points; `slow_s`: other values; `settings_s`: settings and identity. `freshness_s`:
    the age at which a reading turns stale. `shed_s` is what one write of a setpoint may take; a read-back that shows
    more than was asked for is tried again for `verify_s`. `configure_s` is what one transaction for a setting may take,
    and `configure_verify_s` how long the device may take until it shows the setting.
    """

    poll_s: float = 1.0
    slow_s: float = 10.0
    settings_s: float = 60.0
    freshness_s: float = 2.5
    shed_s: float = 3.0
    verify_s: float = 1.0
    verify_every_s: float = 0.2
    configure_s: float = 10.0
    configure_verify_s: float = 3.0


_Finding: TypeAlias = "tuple[ProofKind, float | None, str]"


CONFIGURED = 1
"""Which of a device's groups of values has the settings, once its map is known."""


@dataclass(slots=True, eq=False)
class _Group:
    """Values that are read at one pace, and what was last read of them."""

    names: tuple[str, ...]
    pace_s: float
    due_s: float = -math.inf
    planned_at_s: float = -math.inf
    blocks: tuple[Block, ...] = ()
    refused: frozenset[Block] = frozenset()
    read_at_s: float | None = None
    asked_at_s: float = -math.inf
    answered_at_s: float = -math.inf
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Writing:
    """What is being written to a limit. Once withdrawn, nothing of it is sent any more."""

    withdrawn: bool = False
    pending: Pending | None = None
    scope: anyio.CancelScope | None = None

    def withdraw(self) -> None:
        """Let nothing of it be sent after this; what was sent stays so."""
        self.withdrawn = True
        if self.pending is not None:
            self.pending.withdraw()
        if self.scope is not None:
            self.scope.cancel()

    def until_withdrawn(self) -> anyio.CancelScope:
        """Return the scope that ends when it is withdrawn, were that before now."""
        self.scope = anyio.CancelScope()
        if self.withdrawn:
            self.scope.cancel()
        return self.scope

    async def answered(self) -> None:
        """Wait for the reply to what was handed over last. Raises BusError."""
        if self.pending is not None:
            try:
                await self.pending
            finally:
                self.pending.withdraw()  # where whoever waits is cancelled


@dataclass(slots=True, eq=False)
class _Limit:
    """What an EVSE is limited by: the value's name, that of its switch where zero is one, and the setpoint in force.

    `in_force`: what is written after the value, each time, so that it holds.
    """

    evse: Evse
    name: str
    switch: tuple[str, Switch] | None
    phase_voltage_v: float
    in_force: tuple[tuple[str, Value], ...] = ()
    wanted: float | None = None
    valid_until_s: float = -math.inf
    writing: _Writing | None = None

    def over(self, writing: _Writing) -> None:
        """Note that a write has ended, unless another has begun."""
        if self.writing is writing:
            self.writing = None

    def steps(self, value: float) -> tuple[tuple[str, Value], ...]:
        """Return what is written for a limit, in this order; what comes first shows whether it holds."""
        if self.switch is None:
            return ((self.name, value), *self.in_force)
        name, switch = self.switch
        return ((name, switch.off),) if value == 0 else ((self.name, value), (name, switch.on))


@dataclass(slots=True, eq=False)
class _Change:
    """A setpoint that is being written: the value, what an operator should know about it, and the one before.

    `shown`: what the device will show of the first step, where that was handed over at once.
    """

    limit: _Limit
    value: float
    remark: str
    before: float | None
    within_s: float
    writing: _Writing = field(default_factory=_Writing)
    shown: Value | None = None


Begun: TypeAlias = "_Change | Proof"
"""What `ModbusDevice.begin` hands to `ModbusDevice.finish`; a proof where there is nothing to write."""


class ModbusDevice(ConfiguredDevice):
    """One unit on a bus, whose values lie where its profile says. Implements `derms_agent.drivers.interface.Driver`.

    `phase_voltage_v` is the nominal voltage to neutral, by EVSE: what W are divided by for a device that is limited in
    A. The declared settings stand for those not read yet. `repeats_limits`: it writes a limit again by itself where
    that is what feeds the watchdog; whoever keeps a ledger of writes repeats them itself. `reads_back`: it
    reads each limit back once it is written; whoever looks at what polls show of it need not have that as well, and the
    bus carries half of what it would. `registers` is the map of such a device, where another one's is at hand.
    """

    def __init__(
        self,
        device: Device,
        profile: Profile,
        bus: SetpointBus,
        *,
        phase_voltage_v: Mapping[str, float] | None = None,
        pace: Pace | None = None,
        clock: Clock = time.monotonic,
        repeats_limits: bool = True,
        reads_back: bool = True,
        registers: ModbusMap | None = None,
    ) -> None:
        self.pace = Pace() if pace is None else pace
        super().__init__(
            device,
            profile,
            bus,
            configure_s=self.pace.configure_s,
            verify_s=self.pace.configure_verify_s,
            clock=clock,
            registers=registers,
        )
        self._bus = bus
        self._repeats_limits = repeats_limits
        self._reads_back = reads_back
        self.freshness_s = self.pace.freshness_s
        self._groups: tuple[_Group, ...] = (_Group((), self.pace.poll_s),)
        self._absent: tuple[str, ...] = ()
        self._limits = _limits(device, profile, phase_voltage_v or {})
        self._answered_at_s = -math.inf
        self._heartbeat_at_s = -math.inf
        self._fed_at_s = -math.inf
        self._poll_problem: str | None = None
        self._watchdog_problem: str | None = None
        self._shared_registers = anyio.Lock()

    async def _discover(self) -> RegisterMap:
        registers = await super()._discover()
        self._groups = _groups(registers, self.profile, self.pace)
        there = {stem(name) for name in registers.names}
        self._absent = tuple(name for name in self.profile.poll if name not in there)
        return registers

    async def run(self, publish: Callable[[Reading], None]) -> None:
        """Poll and feed the watchdog until cancelled; publish each reading, failed ones with their problem."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._poll, publish)
            tasks.start_soon(self._declare_stale, publish)
            if self._limits:
                tasks.start_soon(self._keep_watchdog)

    # Reading

    async def _poll(self, publish: Callable[[Reading], None]) -> None:
        await anyio.sleep(self._share * self.pace.poll_s)
        due_s = self._clock()
        while True:
            await self._poll_once(publish)
            # A bus that cannot keep up skips beats; it never has to catch up. Backing off a device that does not answer
            # is the bus's affair, which knows of all who ask.
            now_s = self._clock()
            due_s = max(due_s + self.pace.poll_s, now_s)
            await self._wake_with_others(due_s)

    async def _wake_with_others(self, at_s: float) -> None:
        """Sleep until a time of the clock, and on until others wake up as well."""
        every_s = min(TOGETHER_S, self.pace.poll_s / 4)
        await anyio.sleep(max(0.0, math.ceil(at_s / every_s) * every_s - self._clock()))

    async def _poll_once(self, publish: Callable[[Reading], None]) -> None:
        try:
            registers = await self.find_map()
            for group in self._groups:
                now_s = self._clock()
                if group.due_s > now_s + self.pace.poll_s / 2:
                    continue
                first = group.read_at_s is None
                with self._finding_anew():
                    await self._read(group, registers)
                # After the first round the devices of a bus drift apart, so that their slow reads do not coincide.
                group.due_s = now_s + group.pace_s * (self._share if first else 1.0)
                if group is self._groups[0]:
                    self._poll_problem = self._missing()
                    publish(self.reading())
        except BusError as failure:
            self._poll_problem = str(failure)
            publish(self.reading())

    async def _read(self, group: _Group, registers: RegisterMap) -> None:
        """Read a group. Where a device refuses points together they are asked one by one, and left out if need be."""
        now_s = self._clock()
        if now_s - group.planned_at_s >= self.pace.settings_s:
            group.blocks = registers.plan(group.names)
            group.refused = frozenset()
            group.planned_at_s = now_s
        words: dict[str, tuple[int, ...]] = {}
        read_at_s: float | None = None
        waiting = [block for block in reversed(group.blocks) if block not in group.refused]
        while waiting:
            block = waiting.pop()
            try:
                words |= await self._unit.read(block, priority=Priority.POLL, deadline_s=self.pace.freshness_s)
            except Refused as refusal:
                if refusal.exception_code not in ABSENT_CODES:
                    raise
                parts = block.apart()
                if len(parts) > 1:
                    at = group.blocks.index(block)
                    group.blocks = (*group.blocks[:at], *parts, *group.blocks[at + 1 :])
                    waiting.extend(reversed(parts))
                else:
                    group.refused |= {block}
            self._answered_at_s = self._clock()
            read_at_s = self._answered_at_s if read_at_s is None else read_at_s
        if words:
            group.values = _values(group.names, registers, words)
            group.read_at_s = read_at_s
            group.asked_at_s, group.answered_at_s = now_s, self._answered_at_s

    async def _declare_stale(self, publish: Callable[[Reading], None]) -> None:
        """Publish that the image is stale when it becomes so, whatever the bus is waiting for."""
        declared: float | None = None
        while True:
            read_at_s = self._groups[0].read_at_s
            if read_at_s is not None and self._clock() - read_at_s <= self.freshness_s:
                await self._wake_with_others(read_at_s + self.freshness_s + 0.001)
                continue
            if read_at_s is not None and read_at_s != declared:
                declared = read_at_s
                publish(self.reading())
            await anyio.sleep(self.freshness_s)

    def reading(self) -> Reading:
        """Return the image as it is now. Its age is that of the polled points; others are as old as their pace."""
        now_s = self._clock()
        control, *slower = self._groups
        values: dict[str, Value] = {}
        for group in slower:
            if group.read_at_s is not None and now_s - group.read_at_s <= MISSED_PACES * group.pace_s:
                values |= group.values
        values |= control.values
        quality = Quality.BAD
        if control.read_at_s is not None:
            quality = Quality.GOOD if now_s - control.read_at_s <= self.freshness_s else Quality.STALE
        problems = "; ".join(filter(None, (self._poll_problem, self._watchdog_problem)))
        read_at_s = -math.inf if control.read_at_s is None else control.read_at_s
        configured = slower[0] if slower else None
        return Reading(
            self.device.name,
            values,
            read_at_s,
            quality,
            problems or None,
            asked_at_s=control.asked_at_s,
            answered_at_s=control.answered_at_s,
            settings_asked_at_s=None if configured is None or configured.read_at_s is None else configured.asked_at_s,
            fed_at_s=None if self._fed_at_s == -math.inf else self._fed_at_s,
        )

    def read_settings_soon(self) -> None:
        """Have the settings read with the next poll, for somebody has written one."""
        self._groups[CONFIGURED if len(self._groups) > CONFIGURED else 0].due_s = -math.inf

    def _missing(self) -> str | None:
        """Return which points the device does not have that control polls, or that it refused, in words."""
        refused = [span.name for group in self._groups for block in group.refused for span in block.spans]
        missing = (*self._absent, *refused)
        return f"the device has no {', '.join(missing)}" if missing else None

    @property
    def _share(self) -> float:
        """A number between 0 and 1 that is this device's own, so that devices do not beat in step."""
        return zlib.crc32(self.device.name.encode()) / 2**32

    # The watchdog

    def known_settings(self, evse: Evse | None = None) -> dict[str, Value]:
        """Return the settings and fallback values as far as they are known: declared ones, then those read.

        With an EVSE, its own of those that each has are under the points' names.
        """
        own = "" if evse is None else suffix(self.device, evse)
        known = dict(self.device.settings)
        for group in self._groups:
            for name, value in group.values.items():
                known[name.removesuffix(own) if own else name] = value
        return known

    def watchdog_s(self) -> float | None:
        """Return the time-out of the device's watchdog, in s, the shortest of several; None where none is on."""
        fallback = self.profile.fallback
        if fallback is None or fallback.refreshed_by is Refresh.NONE:
            return None
        found: list[float] = []
        for evse in self.device.evses or (None,):
            known = self.known_settings(evse)
            timeout_s = self.profile.watchdog_s(known)
            if timeout_s is not None:
                found.append(timeout_s)
            elif fallback.timeout is None or fallback.timeout not in known:
                found.append(UNKNOWN_WATCHDOG_S)
        return min(found, default=None)

    def beat_s(self) -> float:
        """Return how often the watchdog is fed, in s: at most a third of its time-out."""
        timeout_s = self.watchdog_s()
        beats = [self.pace.slow_s if timeout_s is None else timeout_s / WATCHDOG_SHARE]
        if self.profile.fallback is not None and self.profile.fallback.heartbeat is not None:
            beats.append(self.profile.fallback.heartbeat.every_s)
        return max(SHORTEST_BEAT_S, min(beats))

    async def _keep_watchdog(self) -> None:
        due_s = self._clock()
        while True:
            beat_s = min(self.beat_s(), self.pace.slow_s)
            self._watchdog_problem = None
            await self._feed(beat_s)
            due_s = max(due_s + beat_s, self._clock())
            await self._wake_with_others(due_s - TOGETHER_S)  # rather sooner than later

    async def _feed(self, beat_s: float) -> None:
        """Do what keeps the device from falling back, or where nobody renewed a setpoint what lets it."""
        refreshed_by = Refresh.NONE if self.profile.fallback is None else self.profile.fallback.refreshed_by
        now_s = self._clock()
        valid = [limit for limit in self._limits.values() if limit.valid_until_s > now_s]
        if refreshed_by is Refresh.WRITE:
            for limit in valid if self._repeats_limits else ():
                if limit.wanted is not None:
                    await self._rewrite(limit, limit.wanted, beat_s)
        elif refreshed_by is Refresh.HEARTBEAT and valid:
            await self._beat(Priority.WATCHDOG, beat_s)
        elif refreshed_by is Refresh.REQUEST:
            if valid and now_s - self._answered_at_s > beat_s / 2:
                await self._ask(beat_s)
            for limit in self._limits.values():
                if limit not in valid:
                    await self._let_fall_back(limit, beat_s)

    async def _rewrite(self, limit: _Limit, value: float, within_s: float) -> bool:
        """Write a limit without being asked to, unless a setpoint is being written or comes meanwhile.

        Return whether it was written.
        """
        if limit.writing is not None:
            return False
        writing = limit.writing = _Writing()
        written = False
        try:
            with writing.until_withdrawn():
                for name, step in limit.steps(value):
                    await self._write(writing, name, step, Priority.WATCHDOG, within_s)
                written = True
        except (BusError, OutOfRange, Forbidden) as failure:
            if not writing.withdrawn:
                self._unfed(failure)
        finally:
            limit.over(writing)
        return written

    def _unfed(self, failure: Exception) -> None:
        self._watchdog_problem = f"the watchdog was not fed: {failure}"

    @property
    def _has_heartbeat(self) -> bool:
        return self.profile.fallback is not None and self.profile.fallback.heartbeat is not None

    async def _beat(self, priority: Priority, within_s: float) -> None:
        heartbeat = None if self.profile.fallback is None else self.profile.fallback.heartbeat
        if heartbeat is None:
            return
        began_s = self._clock()
        try:
            for name in (await self.find_map()).names:
                if stem(name) == heartbeat.point:
                    await self._write(_Writing(), name, heartbeat.value, priority, within_s)
        except (BusError, OutOfRange, Forbidden) as failure:
            self._unfed(failure)
        else:
            self._heartbeat_at_s = self._clock()
            self._fed_at_s = began_s

    async def _ask(self, within_s: float) -> None:
        blocks = [block for block in self._groups[0].blocks if block not in self._groups[0].refused]
        try:
            for block in blocks[:1]:
                await self._unit.read(block, priority=Priority.WATCHDOG, deadline_s=within_s)
                self._answered_at_s = self._clock()
        except BusError as failure:
            self._unfed(failure)

    async def _let_fall_back(self, limit: _Limit, within_s: float) -> None:
        """Write the device's own fallback where nobody renewed a setpoint, and polls keep the device from falling back.

        It is only ever lowered by this.
        """
        fallback_value = self._fallback_value(limit)
        if fallback_value is None or limit.wanted is None:
            return
        if fallback_value >= limit.wanted or await self._rewrite(limit, fallback_value, within_s):
            limit.wanted = None

    def _fallback_value(self, limit: _Limit) -> float | None:
        fallback, control = self.profile.fallback, self.profile.control
        if fallback is None or control is None:
            return None
        if fallback.fixed is not None:
            return fallback.fixed
        name = fallback.current if control.quantity is Quantity.CURRENT else fallback.power
        value = None if name is None else self.known_settings(limit.evse).get(name)
        if value is None or isinstance(value, str) or value == fallback.off:
            return None
        return float(value)

    # Setpoints

    async def apply(self, setpoint: Setpoint) -> Proof:
        """Write a setpoint at shed priority and say what became of it. Never raises a `BusError`.

        `asked` and `in_force` are in the control's quantity, A per conductor or W. Never more than the setpoint, the
        EVSE's rating or its cable is written: between two steps it is the lower one, and below the device's minimum
        zero, even where that ends a session, which `detail` then says. A newer setpoint for the same EVSE makes an
        earlier one that is still under way end as indeterminate.
        """
        return await self.finish(self.begin(setpoint))

    def begin(self, setpoint: Setpoint, within_s: float = math.inf) -> Begun:
        """Begin to apply a setpoint; `finish` says what became of it, and is to be called at once.

        Nothing is waited for, so that many devices are told one right after the other. Where nothing has to be read or
        written before, the limit has been handed to the bus when this returns, and left if that was free. What has not
        left `within_s`, or within the pace's `shed_s`, never does.
        """
        limit = self._limits.get(setpoint.evse)
        if limit is None:
            detail = f"{self.device.name} has no limit that can be written for {setpoint.evse}"
            return Proof(evse=setpoint.evse, kind=ProofKind.REFUSED, asked=setpoint.p_w, in_force=None, detail=detail)
        if not math.isfinite(setpoint.p_w) or not setpoint.valid_for_s > 0:
            detail = f"found {setpoint.p_w} W for {setpoint.valid_for_s} s, expected finite power and time left"
            return Proof(evse=setpoint.evse, kind=ProofKind.REFUSED, asked=setpoint.p_w, in_force=None, detail=detail)
        value, remark = _value_asked(setpoint, limit, self.profile)
        before = limit.wanted
        if limit.writing is not None:
            limit.writing.withdraw()
        within_s = min(within_s, self.pace.shed_s, setpoint.valid_for_s)
        change = _Change(limit, value, remark, before, within_s)
        limit.writing = change.writing
        limit.wanted = value if before is None else _no_more(before, value)
        limit.valid_until_s = self._clock() + setpoint.valid_for_s
        self._hand_over(change)
        return change

    def _hand_over(self, change: _Change) -> None:
        """Hand the first step of a change to the bus, if nothing has to go before it.

        What refuses it now refuses it in `finish` as well, and is told there.
        """
        registers = self._map
        name, step = change.limit.steps(change.value)[0]
        if registers is None or self._heartbeat_is_due() or registers.before_write(name):
            return
        with contextlib.suppress(BusError, OutOfRange, Forbidden):
            change.shown = self._submit(change.writing, registers, name, step, {}, Priority.SHED, change.within_s)

    def _heartbeat_is_due(self) -> bool:
        """Whether the device may have fallen back, and so takes no limit before it is fed."""
        return self._has_heartbeat and self._clock() - self._heartbeat_at_s > 2 * self.beat_s()

    async def finish(self, begun: Begun) -> Proof:
        """Write what is left to be written of a setpoint, and say what became of it; see `apply`."""
        if isinstance(begun, Proof):
            return begun
        limit, writing = begun.limit, begun.writing
        finding: _Finding = ProofKind.INDETERMINATE, None, "a newer setpoint came while it was written"
        try:
            with writing.until_withdrawn():
                if begun.shown is None and self._heartbeat_is_due():
                    await self._beat(Priority.SHED, self.pace.shed_s)
                finding = await self._written(begun)
                # What did not get there is not brought there by the watchdog's next beat, unless it is lower.
                if writing.withdrawn:
                    pass
                elif finding[0] not in {ProofKind.UNSENT, ProofKind.REFUSED}:
                    limit.wanted = begun.value
                elif begun.before is None:
                    limit.wanted = None
        finally:
            limit.over(writing)
        kind, in_force, detail = finding
        detail = "; ".join(filter(None, (detail, begun.remark)))
        return Proof(evse=limit.evse.name, kind=kind, asked=begun.value, in_force=in_force, detail=detail)

    def renew(self, evse: str, valid_for_s: float) -> None:
        """Let an EVSE's setpoint stand for so much longer from now, without writing it. Raises KeyError."""
        limit = self._limits[evse]
        if limit.wanted is not None:
            limit.valid_until_s = self._clock() + valid_for_s

    async def _written(self, change: _Change) -> _Finding:
        limit, value = change.limit, change.value
        steps = limit.steps(value)
        held: list[Value] = []
        doubt: BusError | None = None
        try:
            if change.shown is not None:
                await change.writing.answered()
                held.append(change.shown)
            for name, step in steps[len(held) :]:
                held.append(await self._write(change.writing, name, step, Priority.SHED, change.within_s))
        except (OutOfRange, Forbidden) as problem:
            return ProofKind.REFUSED, None, str(problem)
        except BusError as failure:
            if not failure.may_have_happened and not held:
                return ProofKind.REFUSED if isinstance(failure, Refused) else ProofKind.UNSENT, None, str(failure)
            doubt = failure
        registers = await self.find_map()
        name, step = steps[0]
        # What shows the limit in force follows a write in its own time: that is waited for here.
        polled = not (self._reads_back or self.profile.shows_in_force) and name in self._groups[0].values
        if not registers.readable(name) or (polled and doubt is None):
            if doubt is not None:
                return ProofKind.INDETERMINATE, None, str(doubt)
            return ProofKind.ACKNOWLEDGED, _amount(held[0]) if name == limit.name else value, ""
        shown = held[0] if held else step
        found = await self._unit.read_until(
            registers,
            name,
            lambda found: _obeys(found, shown),
            priority=Priority.WATCHDOG,  # after every other limit is written
            within_s=self.pace.verify_s if doubt is None else self.pace.shed_s,
            every_s=self.pace.verify_every_s,
        )
        if len(held) < len(steps) and held:
            return ProofKind.INDETERMINATE, None, f"written in part: {doubt}"
        return _judged(found, shown, value, doubt)

    async def _write(self, writing: _Writing, name: str, value: Value, priority: Priority, within_s: float) -> Value:
        """Write a value once and return what the device will show of it. Raises BusError, OutOfRange and Forbidden."""
        registers = await self._known_map()
        shared = registers.plan([name], writing=True)
        async with self._shared_registers if shared else contextlib.nullcontext():
            try:
                words = await self._unit.read_all(shared, priority=priority, deadline_s=within_s)
            except BusError as failure:
                raise _NotWritten(str(failure)) from failure
            held = self._submit(writing, registers, name, value, words, priority, within_s)
            await writing.answered()
        return held

    def _submit(  # noqa: PLR0917 - what a write is made of
        self,
        writing: _Writing,
        registers: RegisterMap,
        name: str,
        value: Value,
        words: Words,
        priority: Priority,
        within_s: float,
    ) -> Value:
        """Hand the write of a value to the bus, and return what the device will show of it.

        Raises BusError, OutOfRange and Forbidden.
        """
        if writing.withdrawn:
            raise _NotWritten("a newer setpoint came before it was written")
        with self._finding_anew():
            held = registers.held(name, value, words)
            write = registers.write(name, value, words)
        writing.pending = self._bus.submit_write(
            self.device.unit_id,
            write.table,
            write.address,
            write.words,
            priority=priority,
            deadline_s=within_s,
            function=write.function,
        )
        return held

    async def _known_map(self) -> RegisterMap:
        try:
            return await self.find_map()
        except BusError as failure:
            raise _NotWritten(str(failure)) from failure


class _NotWritten(BusError):
    """What had to be read before a write could not be; nothing was written."""


def _values(names: tuple[str, ...], registers: RegisterMap, words: Mapping[str, tuple[int, ...]]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name in names:
        if all(span.name in words for span in registers.spans(name)):
            value = registers.value(name, words)
            if value is not None:
                values[name] = value
    return values


def _groups(registers: RegisterMap, profile: Profile, pace: Pace) -> tuple[_Group, ...]:
    """Return what is read at which pace; control's points first."""
    fallback = () if profile.fallback is None else profile.fallback.points
    polled: list[str] = []
    slow: list[str] = []
    configured: list[str] = []
    for name in registers.names:
        point = stem(name)
        if not registers.readable(name):
            continue
        if point in profile.poll:
            polled.append(name)
        elif profile.point(point).setting or point in IDENTITY or point in fallback:
            configured.append(name)
        else:
            slow.append(name)
    return (
        _Group(tuple(polled), pace.poll_s),
        _Group(tuple(configured), pace.settings_s),
        _Group(tuple(slow), pace.slow_s),
    )


def _limits(device: Device, profile: Profile, phase_voltage_v: Mapping[str, float]) -> dict[str, _Limit]:
    if profile.control is None:
        return {}
    control = profile.control
    if len(device.evses) > 1 and not _strides(profile, control.point):
        raise ValueError(
            f"{device.name}: found {len(device.evses)} EVSEs, expected one: a {profile.title} has one limit"
        )

    def name_of(point: str, evse: Evse) -> str:
        return point + suffix(device, evse) if _strides(profile, point) else point

    return {
        evse.name: _Limit(
            evse,
            name_of(control.point, evse),
            None if control.switch is None else (name_of(control.switch.point, evse), control.switch),
            phase_voltage_v.get(evse.name, PHASE_VOLTAGE_V),
            tuple((name_of(point, evse), held) for point, held in control.in_force.items()),
        )
        for evse in device.evses
    }


def _strides(profile: Profile, name: str) -> bool:
    point = profile.point(name)
    return isinstance(point, Point) and point.stride != 0


def _value_asked(setpoint: Setpoint, limit: _Limit, profile: Profile) -> tuple[float, str]:
    """Return what to write for a setpoint, in the control's quantity, and what an operator should know about it."""
    control = profile.control
    if control is None:
        raise ValueError(f"found {profile.name}, expected a profile with a control")
    point = profile.point(control.point)
    all_phases_v = limit.phase_voltage_v * len(limit.evse.phases)
    in_current = control.quantity is Quantity.CURRENT
    per_a = 1.0 if in_current else all_phases_v
    most, least = limit.evse.limit_a * per_a, limit.evse.lowest_a * per_a if control.gives_back else 0.0
    if point.minimum is not None:
        least = max(least, min(0.0, point.minimum))
    asked = setpoint.p_w / all_phases_v if in_current else setpoint.p_w
    value = _nearer(max(least, min(asked, most, math.inf if point.maximum is None else point.maximum)), control.step)
    remarks = []
    if asked < least:
        remarks.append(f"found {setpoint.p_w:g} W, the least that it can be limited to is {least:g}")
    if setpoint.q_var:
        remarks.append("its reactive power cannot be set")
    if abs(value) < control.minimum or value == 0:
        value = 0.0
        if control.zero is Zero.ENDS_SESSION:
            remarks.append("a limit of zero ends the session")
    return value, "; ".join(remarks)


@lru_cache(maxsize=4096)  # a shed has few values for many devices, and exact fractions are slow
def _nearer(value: float, step: float) -> float:
    """Return the step at a value, or the next one towards zero; what doubles leave over does not cost a step."""
    exact, steps = Fraction(repr(step)), abs(value) / step
    whole = float(math.floor(steps + 1e-9 * max(1.0, steps)) * exact)
    return -whole if value < 0 else whole


def _no_more(before: float, value: float) -> float:
    """Return the most that is more than neither of two limits: of two on different sides of zero, nothing."""
    return min(before, value, key=abs) if before * value > 0 else 0.0


def _obeys(found: Value | None, shown: Value) -> bool:
    """Whether a device that shows `found` draws, or gives back, no more than one that shows `shown` may."""
    if isinstance(found, int | float) and isinstance(shown, int | float):
        return same(found, shown) or (found * shown >= 0 and abs(found) < abs(shown))
    return same(found, shown)


def _judged(found: Found, shown: Value, value: float, doubt: BusError | None) -> _Finding:
    """Return what a read-back proves about the write of `value`, after which the device was to show `shown`."""
    if found.failure is not None or found.value is None:
        why = doubt or found.failure or "the device shows no value"
        return ProofKind.INDETERMINATE, None, f"not read back: {why}"
    in_force = _amount(found.value)
    if same(found.value, shown):
        return ProofKind.READ_BACK, value if in_force is None else in_force, ""
    if doubt is not None:
        return ProofKind.INDETERMINATE, in_force, str(doubt)
    if _obeys(found.value, shown):
        return ProofKind.READ_BACK, in_force, f"the device shows {found.value}, less than {shown}"
    return ProofKind.REFUSED, in_force, f"the device took the write of {shown} and shows {found.value}"


def _amount(value: Value) -> float | None:
    return None if isinstance(value, str) else float(value)
