# SPDX-License-Identifier: Apache-2.0
"""See to it that DERs hold their profiles, over their units, at the bus's lowest priority.

Of one device everything is validated before its first write. A write that may or may not have happened is read back
and never sent again. What fails stops the rest of that device, not the other devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import anyio

from derms_agent.device_state.capability import Capability, capability_of
from derms_agent.device_state.der.adoption import Shown, Verdict, judge
from derms_agent.device_state.der.plan import Adoption, FunctionPlan, Unfit, plan_function, shown
from derms_agent.device_state.der.registers import ModelRegisters
from derms_agent.device_state.der.results import DerResult, FunctionResult
from derms_agent.device_state.each import each
from derms_agent.device_state.identity import another
from derms_agent.device_state.results import Status
from derms_agent.drivers.errors import (
    BusError,
    ConnectionLost,
    DeadlinePassed,
    NoAnswer,
    NotAllowed,
    Refused,
    Unreachable,
)
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.reads import Span, plan_reads
from derms_agent.drivers.settings import LEDGER_S, Outcome
from derms_agent.drivers.sunspec import FoundMap, NotSunSpec, SunSpecMap, discover
from derms_agent.drivers.unit import Unit
from derms_agent.drivers.writes import Write
from derms_agent.grid_code.functions import DerProfile, Function

_SILENT = (Unreachable, NoAnswer, ConnectionLost, DeadlinePassed)
_WELL = (Status.OK, Status.CHANGED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long to wait, in s, and how often to look.

    `deadline_s` is for one transaction behind all others of its bus, `verify_s` for what was written to show, `adopt_s`
    for an adoption to end.
    """

    deadline_s: float = 10.0
    verify_s: float = 3.0
    adopt_s: float = 30.0
    every_s: float = 0.25


@dataclass(frozen=True, slots=True)
class Der:
    """One device: its name, the bus it is on, the unit to ask, what it must hold, and which one is meant, if said."""

    name: str
    bus: str
    unit: Unit
    profile: DerProfile
    serial_number: str | None = None


class _Stopped(Exception):
    """A function went no further."""

    def __init__(self, status: Status, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


async def converge_all(
    ders: Iterable[Der], *, check: bool, pace: Pace = Pace(), until_s: float = math.inf
) -> dict[str, DerResult]:
    """Converge devices, those of one bus one after the other, and return what became of each, by name.

    After `until_s`, on the event loop's clock, no further device is asked.
    """

    async def one(der: Der) -> DerResult:
        if anyio.current_time() >= until_s:
            late = "not come to before the deadline"
            return DerResult(name=der.name, status=Status.UNKNOWN, detail=late)
        return await converge(der.name, der.unit, der.profile, check=check, serial_number=der.serial_number, pace=pace)

    return await each({der.name: der for der in ders}, lambda der: der.bus, one)


async def converge_in_turn(
    ders: Iterable[Der], *, check: bool, pace: Pace = Pace(), until_s: float = math.inf
) -> dict[str, DerResult]:
    """Converge devices, those whose limits rise after all others, and only if no other's limits are in doubt by then.

    So what the limits of all allow together is never more than before and afterwards; see `depot.der_loads`.
    """
    every = {der.name: der for der in ders}
    limited = {name: der for name, der in every.items() if der.profile.limits is not None}
    if check or len(limited) == 1:
        return await converge_all(every.values(), check=check, pace=pace, until_s=until_s)
    foreseen = await converge_all(limited.values(), check=True, pace=pace, until_s=until_s)
    rising = [name for name, result in foreseen.items() if _limits_rise(result)]
    first = [der for name, der in every.items() if name not in rising]
    results = await converge_all(first, check=False, pace=pace, until_s=until_s)
    doubtful = [der.name for der in first if der.name in limited and results[der.name].status not in _WELL]
    if doubtful:
        why = f"nothing was written: limits are not raised while it is not known what {', '.join(doubtful)} hold"
        return results | {name: DerResult(name=name, status=Status.REFUSED, detail=why) for name in rising}
    then = [every[name] for name in rising]
    return results | await converge_all(then, check=False, pace=pace, until_s=until_s)


def _limits_rise(result: DerResult) -> bool:
    for function in result.functions:
        if function.function == "limits" and function.after is not None:
            before = function.before
            return any(before.get(key) is None or value > before[key] for key, value in function.after.items())
    return False


async def converge(
    name: str,
    unit: Unit,
    profile: DerProfile,
    *,
    check: bool,
    serial_number: str | None = None,
    pace: Pace = Pace(),
) -> DerResult:
    """See to it that one device holds its profile. `check` reads everything, writes nothing, and predicts.

    Where a serial number is given and another device answers, nothing is written to that.
    """
    try:
        found = await discover(unit, Priority.CONFIGURATION, pace.deadline_s)
    except BusError as failure:
        return DerResult(name=name, status=_unread(failure), detail=f"nothing was written: {failure}")
    capability = capability_of(found)
    if why := another(serial_number, SunSpecMap(unit.profile, found).found("serial_number")):
        return DerResult(name=name, status=Status.REFUSED, capability=capability, detail=f"nothing was written: {why}")
    planned, problems = _planned(unit, profile, found, capability)
    if problems:
        return _refused(name, profile, planned, problems, capability)
    if check:
        functions = [_predicted(plan) for plan in planned.values()]
    else:
        functions = await _Device(unit, pace).apply_all(planned)
    return _result(name, functions, capability)


def _unread(failure: BusError) -> Status:
    if isinstance(failure, _SILENT):
        return Status.UNREACHABLE
    return Status.REFUSED if isinstance(failure, Refused | NotAllowed | NotSunSpec) else Status.UNKNOWN


def _planned(
    unit: Unit, profile: DerProfile, found: FoundMap, capability: Capability
) -> tuple[dict[str, FunctionPlan], dict[str, tuple[str, ...]]]:
    """Return what has to be written, by function, and what is wrong, by function."""
    models: dict[int, ModelRegisters] = {}
    for model in found.models:
        models.setdefault(model.id, ModelRegisters.of(model))  # of several, the first
    plans: dict[str, FunctionPlan] = {}
    problems: dict[str, tuple[str, ...]] = {}
    for name, function in profile.functions():
        if function.model not in models:
            problems[name] = (f"{name}: found no SunSpec model {function.model}; the controller {capability.detail}",)
            continue
        try:
            plans[name] = plan_function(name, function, models[function.model], unit.profile)
        except Unfit as unfit:
            problems[name] = unfit.problems
    return plans, problems


def _refused(
    name: str,
    profile: DerProfile,
    planned: Mapping[str, FunctionPlan],
    problems: Mapping[str, tuple[str, ...]],
    capability: Capability,
) -> DerResult:
    functions: list[FunctionResult] = []
    for key, function in profile.functions():
        if key in problems:
            detail = "; ".join(problems[key])
            functions.append(FunctionResult(function=key, model=function.model, status=Status.REFUSED, detail=detail))
        else:
            functions.append(_untried(planned[key], f"not tried, because of {', '.join(problems)}"))
    details = "; ".join(problem for each in problems.values() for problem in each)
    return DerResult(
        name=name,
        status=Status.REFUSED,
        functions=tuple(functions),
        capability=capability,
        detail=f"nothing was written: {details}",
    )


def _result(name: str, functions: Sequence[FunctionResult], capability: Capability) -> DerResult:
    worst = next((each for each in functions if each.status not in _WELL), None)
    changed = any(each.status is Status.CHANGED for each in functions)
    status = worst.status if worst else Status.CHANGED if changed else Status.OK
    detail = f"{worst.function}: {worst.detail}" if worst else ""
    return DerResult(name=name, status=status, functions=tuple(functions), capability=capability, detail=detail)


def _predicted(plan: FunctionPlan) -> FunctionResult:
    status = Status.CHANGED if plan.changes else Status.OK
    return _outcome(plan, status, plan.predicted(), reached=Outcome.WOULD_CHANGE)


def _untried(plan: FunctionPlan, why: str) -> FunctionResult:
    return _outcome(plan, Status.UNKNOWN, plan.registers, why)


def _outcome(
    plan: FunctionPlan,
    status: Status,
    after: ModelRegisters | None,
    detail: str = "",
    *,
    reached: Outcome = Outcome.CHANGED,
) -> FunctionResult:
    return FunctionResult(
        function=plan.name,
        model=plan.function.model,
        status=status,
        settings=plan.states(after, reached, Outcome(status.value)),
        before=shown(plan.function, plan.registers),
        after=None if after is None else shown(plan.function, after),
        detail=detail,
    )


class _Device:
    """One device while it is written to."""

    def __init__(self, unit: Unit, pace: Pace) -> None:
        self._unit = unit
        self._pace = pace

    async def apply_all(self, planned: Mapping[str, FunctionPlan]) -> list[FunctionResult]:
        """Apply functions one after the other; after one that does not end well the others are left."""
        results: list[FunctionResult] = []
        failed = ""
        for name, plan in planned.items():
            if failed:
                results.append(_untried(plan, f"not tried, because {failed} did not end well"))
                continue
            results.append(await self._apply(plan))
            if results[-1].status not in _WELL:
                failed = name
        return results

    async def _apply(self, planned: FunctionPlan) -> FunctionResult:
        if not planned.changes:
            return _outcome(planned, Status.OK, planned.registers)
        plan = planned
        try:
            plan = self._anew(planned.name, planned.function, await self._read(planned.registers))
            await self._carry_out(plan)
        except _Stopped as stopped:
            return _outcome(plan, stopped.status, await self._as_it_is(plan), stopped.detail)
        after = await self._as_it_is(plan)
        if after is None:
            return _outcome(plan, Status.INDETERMINATE, None, "all was written, then it could not be read")
        if any(after.words(each.path) != each.words for each in plan.wanted):
            return _outcome(plan, Status.VERIFY_FAILED, after, "all was taken, then the device shows something else")
        return _outcome(plan, Status.CHANGED if plan.changes else Status.OK, after)

    def _anew(self, name: str, function: Function, registers: ModelRegisters) -> FunctionPlan:
        """Return the plan by what the device holds now: its layout and its first set may have changed meanwhile."""
        try:
            return plan_function(name, function, registers, self._unit.profile)
        except Unfit as unfit:
            raise _Stopped(Status.REFUSED, f"nothing was written: {unfit}") from None

    async def _carry_out(self, plan: FunctionPlan) -> None:
        if plan.adoption is not None:
            await self._write(plan.adoption.staged, "nothing was adopted")
            await self._adopt(plan, plan.adoption)
        await self._write(plan.values, "not all was written")
        for switch in plan.switches:  # one by one: the function is complete before it is enabled
            await self._write((switch,), "it is not switched")

    async def _write(self, writes: Sequence[Write], so: str) -> None:
        """Write once each, and see that it shows. Raises _Stopped."""
        for write in writes:
            await self._write_once(write, so)
        if not writes:
            return
        shows, unread = await self._shows(writes, self._pace.verify_s)
        if unread is not None:
            raise _Stopped(Status.INDETERMINATE, f"{so}: written, then it could not be read back: {unread}")
        if not shows:
            names = ", ".join(write.name for write in writes)
            raise _Stopped(Status.VERIFY_FAILED, f"{so}: the device took {names} and shows something else")

    async def _write_once(self, write: Write, so: str) -> None:
        """Write, and where nobody knows whether it arrived look whether it shows. Raises _Stopped where it does not."""
        doubt = await self._sent(write, so)
        if doubt is not None and not (await self._shows((write,), self._pace.deadline_s))[0]:
            raise _Stopped(Status.INDETERMINATE, f"{so}: {write.name}: {doubt}")

    async def _sent(self, write: Write, so: str) -> BusError | None:
        """Send a write once; return why nobody knows whether it arrived. Raises _Stopped where it did not."""
        try:
            deadline_s = max(self._pace.deadline_s, LEDGER_S)
            await self._unit.write(write, priority=Priority.CONFIGURATION, deadline_s=deadline_s)
        except BusError as failure:
            if failure.may_have_happened:
                return failure
            status = Status.REFUSED if isinstance(failure, Refused | NotAllowed) else Status.UNKNOWN
            raise _Stopped(status, f"{so}: {write.name}: {failure}") from failure
        return None

    async def _shows(self, writes: Sequence[Write], within_s: float) -> tuple[bool, BusError | None]:
        """Read registers until they are as written or the time is up: whether they are, and what the last try met."""
        spans = {Span(write.name, write.table, write.address, len(write.words)): write.words for write in writes}
        blocks = plan_reads(spans, self._unit.profile.wire)
        until = self._unit.clock() + within_s
        while True:
            failure: BusError | None = None
            try:
                words = await self._unit.read_all(
                    blocks, priority=Priority.CONFIGURATION, deadline_s=self._pace.deadline_s
                )
                if all(tuple(words[span.name]) == expected for span, expected in spans.items()):
                    return True, None
            except BusError as met:
                failure = met
            if self._unit.clock() + self._pace.every_s >= until:
                return False, failure
            await anyio.sleep(self._pace.every_s)

    async def _adopt(self, plan: FunctionPlan, adoption: Adoption) -> None:
        """Ask once for a set's adoption, and look until the first set is what was asked. Raises _Stopped."""
        before = plan.registers.number_of_enum(adoption.result)
        doubt = await self._sent(adoption.request, "nothing was adopted")
        until = self._unit.clock() + self._pace.adopt_s
        while True:
            looked = await self._look(plan.registers, adoption)
            last = self._unit.clock() + self._pace.every_s >= until
            verdict = judge(looked, before, doubtful=doubt is not None, last=last)
            if verdict is not None:
                break
            await anyio.sleep(self._pace.every_s)
        self._accept(verdict, doubt)

    @staticmethod
    def _accept(verdict: Verdict, doubt: BusError | None) -> None:
        if verdict.status is not Status.CHANGED:
            raise _Stopped(verdict.status, verdict.detail if doubt is None else f"{verdict.detail}: {doubt}")

    async def _look(self, registers: ModelRegisters, adoption: Adoption) -> Shown | None:
        try:
            now = await self._read(registers, (adoption.result, *adoption.target))
        except _Stopped:
            return None
        adopted = all(now.words(path) == words for path, words in adoption.target.items())
        return Shown(adopted, now.number_of_enum(adoption.result))

    async def _read(self, registers: ModelRegisters, paths: Iterable[str] | None = None) -> ModelRegisters:
        """Read a model anew, or some of its points. Raises _Stopped."""
        try:
            words = await self._unit.read_all(
                registers.reads(self._unit.profile.wire, paths),
                priority=Priority.CONFIGURATION,
                deadline_s=self._pace.deadline_s,
            )
            return registers.updated(words)
        except BusError as failure:
            raise _Stopped(Status.UNKNOWN, f"nothing was written: {failure}") from failure

    async def _as_it_is(self, plan: FunctionPlan) -> ModelRegisters | None:
        try:
            return await self._read(plan.registers)
        except _Stopped:
            return None
