# SPDX-License-Identifier: Apache-2.0
"""A device's settings: read, compared as the device would hold them, written where they differ, and verified.

Everything is validated before the first write. A write that may or may not have happened is read back and never sent
again. What can only be written is never called changed, for nothing shows that it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from derms_agent.drivers.errors import BusError, NotAllowed, Refused
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.reads import Block
from derms_agent.drivers.register_map import RegisterMap, same, stem
from derms_agent.drivers.unit import Unit
from derms_agent.drivers.writes import Forbidden, Write
from derms_agent.model import Value
from derms_agent.profiles.point import OutOfRange, Table
from derms_agent.profiles.profile import nearest

LEDGER_S = 30.0
"""What a write may wait at the least: an agent lets a fallback rise only once no circuit could be over with it.

One that has just begun counts every charger at its rating until it was told less, and until whoever charges has
followed, 12 s later (`derms_agent.control.ledger.Station.follow_s`).
"""
VERIFY_READS = 12
"""Reads within the time in which a setting has to show."""
ABSENT_CODES = frozenset({1, 2, 3})
"""Modbus exceptions that mean that the device has no such registers, or not together."""


class Outcome(str, Enum):
    """What became of a setting."""

    OK = "ok"
    CHANGED = "changed"
    WOULD_CHANGE = "would_change"
    VERIFY_FAILED = "verify_failed"
    INDETERMINATE = "indeterminate"
    REFUSED = "refused"
    UNKNOWN = "unknown"


Alike = Callable[[str, "Value | None", "Value | None"], bool]
"""Whether two values of the named setting count as one."""


def alike(name: str, found: Value | None, wanted: Value | None) -> bool:  # noqa: ARG001
    """Whether two values are one, whatever the setting."""
    return same(found, wanted)


@dataclass(frozen=True, slots=True)
class Registers:
    """Words from a PDU address of a table on."""

    table: Table
    address: int
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingResult:
    """What became of one setting. Values are in the point's unit; those of a secret point are None.

    `registers_before` are what the value was read from, None where it was not; `registers_wanted` what is written.
    `shown`: the device has registers that show what it holds; where it has none, nobody can tell.
    """

    name: str
    outcome: Outcome
    wanted: Value | None = None
    before: Value | None = None
    after: Value | None = None
    detail: str = ""
    unit: str = ""
    registers_before: Registers | None = None
    registers_wanted: Registers | None = None
    shown: bool = True


@dataclass(frozen=True, slots=True)
class _Change:
    """A setting that is to hold a value: what it holds, what it will, and the request that sees to it."""

    name: str
    value: Value
    held: Value
    before: Value | None
    known: bool
    secret: bool
    write: Write
    unit: str
    read: Registers | None


class Settings:
    """The settings of one device, at the bus's lowest priority.

    `deadline_s` is what one transaction may take, waiting behind everything else on its bus included, and a write
    `LEDGER_S` at the least; a setting that does not show what was written is read again for `verify_s`. `unverified`
    are those that are not read back after a write, unless it is in doubt.
    """

    def __init__(
        self,
        unit: Unit,
        registers: RegisterMap,
        *,
        deadline_s: float,
        verify_s: float,
        alike: Alike = alike,
        unverified: Collection[str] = (),
    ) -> None:
        self._unit = unit
        self._alike = alike
        self._unverified = unverified
        self._deadline_s = deadline_s
        self._write_s = max(deadline_s, LEDGER_S)
        self._verify_s = verify_s
        self._registers = registers
        self._profile = unit.profile

    async def read(self, points: Collection[str] | None = None) -> dict[str, Value]:
        """Return every setting that can be read and that the device has, or what it has of these points.

        Secret ones are left out. Raises BusError.
        """
        names = [
            name
            for name in self._registers.names
            if (self._is_setting(name) if points is None else stem(name) in points) and not self._is_secret(name)
        ]
        words = await self.words(names)
        return {name: value for name in names if (value := self._value(name, words)) is not None}

    async def write(self, changes: Mapping[str, Value], *, check: bool = False) -> tuple[SettingResult, ...]:
        """See to it that settings hold values, and say what became of each, in the order given.

        A name without a connector stands for all of them. With one invalid change nothing is written. `check` reads
        everything and writes nothing. Raises BusError when the device cannot be read; nothing was written then.
        """
        wanted, refused = self._named(changes)
        words = await self.words(list(wanted), writing=True) if wanted else {}
        planned: list[_Change] = []
        for name, value in wanted.items():
            change = self._planned(name, value, words)
            if isinstance(change, _Change):
                planned.append(change)
            else:
                refused.append(change)
        if refused:
            names = ", ".join(result.name for result in refused)
            return (*refused, *(_untried(change, f"not tried, because of {names}") for change in planned))
        if check:
            return tuple(self._predicted(change) for change in planned)
        results: list[SettingResult] = []
        lost = ""
        for change in planned:
            results.append(_untried(change, lost) if lost else await self._converge(change))
            if results[-1].outcome is Outcome.INDETERMINATE:
                lost = f"not tried, because the write of {change.name} is in doubt"
        return tuple(results)

    def _named(self, changes: Mapping[str, Value]) -> tuple[dict[str, Value], list[SettingResult]]:
        wanted: dict[str, Value] = {}
        refused: list[SettingResult] = []
        known = _called(self._registers.names, self._profile.settings)
        for name, value in changes.items():
            found = known.get(name, ())
            wanted |= dict.fromkeys(found, value)
            if not found:
                hint = nearest(name, self._profile.settings)
                detail = f"found {name}, expected a setting of a {self._profile.title}"
                detail += f" (did you mean {hint}?)" if hint else ""
                refused.append(SettingResult(name=name, outcome=Outcome.REFUSED, wanted=value, detail=detail))
        return wanted, refused

    def _planned(self, name: str, value: Value, words: Mapping[str, tuple[int, ...]]) -> _Change | SettingResult:
        point = self._profile.point(stem(name))
        secret = bool(getattr(point, "secret", False))
        shown = None if secret else value
        readable = self._registers.readable(name)
        spans = self._registers.spans(name)
        needed = (*self._registers.before_write(name), *(spans if readable else ()))
        missing = dict.fromkeys([span.name for span in needed if span.name not in words])
        if missing:
            # What it says it has not, and what no reading would ever show to be written, is not written.
            detail = f"the device refuses to show {', '.join(missing)}, without which it cannot be written"
            return SettingResult(name=name, outcome=Outcome.REFUSED, wanted=shown, detail=detail)
        try:
            held = self._registers.held(name, value, words)
            write = self._registers.write(name, value, words)
        except (OutOfRange, Forbidden) as problem:
            detail = f"{name}: found a value that it cannot hold" if secret else str(problem)
            return SettingResult(name=name, outcome=Outcome.REFUSED, wanted=shown, detail=detail)
        before = self._registers.value(name, words) if readable else None
        span = spans[0]
        read = Registers(span.table, span.address, words[span.name]) if readable else None
        return _Change(
            name,
            value,
            held,
            before,
            readable,
            secret,
            write,
            unit=point.unit,
            read=read,
        )

    async def _converge(self, change: _Change) -> SettingResult:
        if change.known and self._alike(change.name, change.before, change.held):
            return _result(change, Outcome.OK, after=change.before)
        doubt: BusError | None = None
        try:
            write = await self._current(change)
            await self._unit.write(write, priority=Priority.CONFIGURATION, deadline_s=self._write_s)
        except BusError as failure:
            if failure.may_have_happened:
                doubt = failure
            elif isinstance(failure, Refused | NotAllowed):
                return _result(change, Outcome.REFUSED, after=change.before, detail=str(failure))
            else:
                return _result(change, Outcome.UNKNOWN, after=change.before, detail=f"nothing was written: {failure}")
        return await self._written(change, doubt)

    async def _written(self, change: _Change, doubt: BusError | None) -> SettingResult:
        if not self._registers.readable(change.name):
            if doubt is not None:
                return _result(change, Outcome.INDETERMINATE, detail=str(doubt))
            return _result(change, Outcome.UNKNOWN, detail="written; the device does not show what it holds")
        if doubt is None and change.name in self._unverified:
            return _result(change, Outcome.CHANGED, after=change.held, detail="not read back, as declared")
        return await self._verified(change, doubt)

    async def _current(self, change: _Change) -> Write:
        """Return the request as of now: other bits of the same registers may have changed since they were read."""
        shared = self._registers.plan([change.name], writing=True)
        if not shared:
            return change.write
        words = await self._unit.read_all(shared, priority=Priority.CONFIGURATION, deadline_s=self._deadline_s)
        return self._registers.write(change.name, change.value, words)

    async def _verified(self, change: _Change, doubt: BusError | None) -> SettingResult:
        found = await self._unit.read_until(
            self._registers,
            change.name,
            lambda value: self._alike(change.name, value, change.held),
            priority=Priority.CONFIGURATION,
            within_s=self._verify_s if doubt is None else self._deadline_s,
            every_s=self._verify_s / VERIFY_READS,
        )
        if found.failure is not None:
            detail = f"written, then it could not be read back: {found.failure}" if doubt is None else str(doubt)
            return _result(change, Outcome.INDETERMINATE, detail=detail)
        if self._alike(change.name, found.value, change.held):
            return _result(
                change, Outcome.CHANGED, after=found.value, detail="" if doubt is None else f"read back after: {doubt}"
            )
        if doubt is not None:
            return _result(change, Outcome.INDETERMINATE, after=found.value, detail=str(doubt))
        shown = "another value" if change.secret else f"{found.value}, expected {change.held}"
        return _result(
            change, Outcome.VERIFY_FAILED, after=found.value, detail=f"the device took the write and shows {shown}"
        )

    async def words(self, names: Collection[str], *, writing: bool = False) -> dict[str, tuple[int, ...]]:
        """Return what the named values lie in, by the names of their spans; `writing`: also what writing them needs.

        What the device says it has not is left out. Raises BusError.
        """
        readable = [name for name in names if self._registers.readable(name)]
        blocks = [*self._registers.plan(readable), *(self._registers.plan(names, writing=True) if writing else ())]
        words: dict[str, tuple[int, ...]] = {}
        for block in blocks:
            words |= await self._read_if_there(block)
        return words

    async def _read_if_there(self, block: Block) -> dict[str, tuple[int, ...]]:
        """Read a block, or where the device refuses it its spans one by one."""
        try:
            return await self._unit.read(block, priority=Priority.CONFIGURATION, deadline_s=self._deadline_s)
        except Refused as refusal:
            if refusal.exception_code not in ABSENT_CODES:
                raise
        words: dict[str, tuple[int, ...]] = {}
        for part in block.apart() if len(block.spans) > 1 else ():
            words |= await self._read_if_there(part)
        return words

    def _predicted(self, change: _Change) -> SettingResult:
        if not change.known:
            return _result(change, Outcome.UNKNOWN, detail="the device does not show what it holds")
        if self._alike(change.name, change.before, change.held):
            return _result(change, Outcome.OK, after=change.before)
        return _result(change, Outcome.WOULD_CHANGE, after=change.held)

    def _value(self, name: str, words: Mapping[str, tuple[int, ...]]) -> Value | None:
        if not self._registers.readable(name) or any(span.name not in words for span in self._registers.spans(name)):
            return None
        return self._registers.value(name, words)

    def _is_setting(self, name: str) -> bool:
        return self._profile.point(stem(name)).setting

    def _is_secret(self, name: str) -> bool:
        return bool(getattr(self._profile.point(stem(name)), "secret", False))


@lru_cache(maxsize=64)  # the devices of a profile have the same
def _called(names: tuple[str, ...], settings: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """Return which of some values are meant by a setting's name, with its connector or without."""
    known: dict[str, tuple[str, ...]] = {}
    for name in names:
        if stem(name) in settings:
            for called in {name, stem(name)}:
                known[called] = (*known.get(called, ()), name)
    return known


def _result(change: _Change, outcome: Outcome, *, after: Value | None = None, detail: str = "") -> SettingResult:
    if change.secret:
        return SettingResult(name=change.name, outcome=outcome, detail=detail, shown=change.known)
    return SettingResult(
        name=change.name,
        outcome=outcome,
        wanted=change.held,
        before=change.before,
        after=after,
        detail=detail,
        unit=change.unit,
        registers_before=change.read,
        registers_wanted=Registers(change.write.table, change.write.address, change.write.words),
        shown=change.known,
    )


def _untried(change: _Change, why: str) -> SettingResult:
    return _result(change, Outcome.UNKNOWN, after=change.before, detail=why)
