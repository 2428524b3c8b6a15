# SPDX-License-Identifier: Apache-2.0
"""A day of a depot before there is hardware: the twin's devices under the agent's own drivers and control. Pure.

From midnight to midnight, or for a part of that, vehicles come and go by the twin's seeded schedule, the base load
follows the hour of the day up to its declared worst, and in the evening the grid asks the site to come down to half of
what it then draws. What physically flows is held against every rating once a second, whatever registers claim.

What differs from the service: a request takes no time, so lines are never busy; drivers and control work once a second
while anything changes, and every `CALM_S` otherwise; what a reading calls for at once waits for the next second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import anyio

from derms_agent.control import ledger as book
from derms_agent.control.cycle import State
from derms_agent.control.guard import Purpose, Write
from derms_agent.drivers.errors import NoAnswer, Refused
from derms_agent.drivers.factory import open_devices
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.modbus_device import ModbusDevice, Pace
from derms_agent.model import Depot, Phase, Rank, Reading, Setpoint
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.controller import Controller, Policy
from derms_agent.orchestrator.engine import INFORMED_S, LEASE_S, PERIOD_S, SHED_S, watts_of
from derms_agent.orchestrator.site import site_of
from derms_agent.profiles.point import Table
from derms_agent.twin import network, pdu, physics, virtual_time
from derms_agent.twin.actions import SetBaseLoad
from derms_agent.twin.physics import LONGEST_LAG_S, PILOT_HOLD_S, Outlet, OutletInputs, OutletState, VehicleType
from derms_agent.twin.rehearsal import Rehearsal, Silence
from derms_agent.twin.scenario import Event, Scenario

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
STEP_S = 1.0
CALM_S, STIRRED_S = 2.0, 20.0
"""How often devices are polled and control works where nothing changes, and for how long something that changed keeps
both at once a second. Readings are still believed then: they are for 2.5 s."""
FOLLOWED_S = PILOT_HOLD_S + LONGEST_LAG_S + 2 * PERIOD_S
"""What a decrease takes: a cycle until it is known, one to be decided and written, a pilot, a vehicle. For so long a
rise that nobody could foresee may stand above a rating, which no breaker minds."""
SATISFIED = 0.9
"""The share of what a session could have been given at most, from which on it counts as satisfied."""
_BASE_SHARES = (
    *(0.35, 0.35, 0.35, 0.35, 0.4, 0.5),
    *(0.7, 0.85, 0.8, 0.7, 0.65, 0.65),
    *(0.7, 0.7, 0.65, 0.65, 0.75, 0.9),
    *(1.0, 0.95, 0.8, 0.6, 0.5, 0.4),
)
"""Of each circuit's worst base load, hour by hour."""
_NEAR = 1.003
_REACHED_W = 200.0
_AMBIENT_C, _COARSE_S = 20.0, 10.0
_BRISK, _CALM = Pace(poll_s=STEP_S, shed_s=SHED_S), Pace(poll_s=CALM_S, shed_s=SHED_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shed:
    """A grid event: from `at_s` on, for `for_s`, the site is to draw no more than `share` of what it drew before.

    Times of the day are in s from midnight, here and below.
    """

    at_s: float = 18.5 * HOUR_S
    for_s: float = HOUR_S
    share: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of a circuit, or a circuit's or the site's apparent power (`line` is None), held against its rating.

    `highest` and `rating` are in A, or VA for power; `over_s` is the longest that it stood above its rating at a time.
    """

    name: str
    line: Phase | None
    rating: float
    highest: float = 0.0
    over_s: float = 0.0
    at_s: float = 0.0

    @property
    def held(self) -> bool:
        """Whether it was above its rating for no longer than a decrease takes."""
        return self.over_s <= FOLLOWED_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ShedCourse:
    """What became of a shed, at the trees of one gateway: W at its root, and how many s until it was down.

    `reached_s` is None where it was not; `reachable_w` is what control said it can be brought to.
    """

    gateway: str
    before_w: float
    target_w: float
    reachable_w: float
    after_w: float
    reached_s: float | None
    over_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A vehicle's stay: what it was given and the most that it could have been given, in Wh on the AC side."""

    evse: str
    arrived_s: float
    left_s: float
    energy_wh: float
    possible_wh: float

    @property
    def satisfied(self) -> bool:
        """Whether it left with nearly all that its battery, its charger and its time allowed."""
        return self.energy_wh >= SATISFIED * self.possible_wh


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a day came to."""

    begins_s: float
    ends_s: float
    rows: tuple[Row, ...]
    sheds: tuple[ShedCourse, ...]
    visits: tuple[Visit, ...]
    energy_wh: float
    writes: int
    proven: int

    @property
    def held(self) -> bool:
        """Whether every rating held, and every shed was obeyed as far as control said that it can be."""
        return all(row.held for row in self.rows) and all(shed.reached_s is not None for shed in self.sheds)


def play(
    depot: Depot,
    seed: int = 0,
    *,
    shed: Shed | None = None,
    begins_s: float = 0.0,
    ends_s: float = DAY_S,
    hour: Callable[[int], None] = lambda _: None,
) -> Course:
    """Play a day of a depot, or a part of it, and return what it came to; `hour` is called at each full hour.

    :raises ValueError: a gateway shares out no tree of circuits, or a profile cannot limit its EVSEs
    """
    return virtual_time.run(_Day(depot, seed, shed or Shed(), (begins_s, ends_s), hour).run)


# The wire


class _Sent:
    """A write that was carried out when it was handed over."""

    def __init__(self, failure: Exception | None) -> None:
        self._failure = failure

    def __await__(self) -> Generator[object, None, object]:
        if self._failure is not None:
            raise self._failure
        yield from ()
        return None

    def withdraw(self) -> None:
        """Nothing is left to withdraw."""


class _Wire:
    """A bus of the twin, without a wire: a request takes no time. Implements `drivers.interface.SetpointBus`."""

    def __init__(self, twin: Rehearsal, bus: str) -> None:
        self._twin, self._bus = twin, bus

    async def read(
        self, unit_id: int, table: Table, address: int, count: int, *, priority: Priority, deadline_s: float
    ) -> tuple[int, ...]:
        del priority
        try:
            return self._twin.read(self._bus, unit_id, table, address, count)
        except pdu.Refusal as refusal:
            raise Refused(str(refusal), refusal.code) from None
        except Silence:
            await anyio.sleep(deadline_s)
            raise NoAnswer(f"no answer within {deadline_s:g} s") from None

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
        await self.submit_write(
            unit_id, table, address, values, priority=priority, deadline_s=deadline_s, function=function
        )

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
    ) -> _Sent:
        del priority
        try:
            self._twin.write(self._bus, unit_id, table, address, tuple(values), function=function)
        except pdu.Refusal as refusal:
            return _Sent(Refused(str(refusal), refusal.code))
        except Silence:
            return _Sent(NoAnswer(f"no answer within {deadline_s:g} s", may_have_happened=True))
        return _Sent(None)


# Control


@dataclass(slots=True, eq=False)
class _Gateway:
    """One gateway's control with its drivers, without disk, socket or broker."""

    controller: Controller
    devices: Mapping[str, ModbusDevice]
    stirred_until_s: float = STIRRED_S
    cycled_s: float = -math.inf
    writes: int = 0
    proven: int = 0

    def take(self, name: str) -> Callable[[Reading], None]:
        """Return what takes a device's readings in."""

        def publish(reading: Reading) -> None:
            now_s = anyio.current_time()
            if self.controller.take(name, reading, now_s):
                self.stirred_until_s = now_s + STIRRED_S

        return publish

    def work(self, now_s: float) -> tuple[Write, ...]:
        """Return what is to be written now; nothing where it is not yet time for a cycle."""
        if self.cycled_s == -math.inf and now_s < INFORMED_S and not self.controller.informed():
            return ()
        calm = now_s >= self.stirred_until_s
        for device in self.devices.values():
            device.pace = _CALM if calm else _BRISK
        return () if calm and now_s - self.cycled_s < CALM_S else self.cycle(now_s)

    def cycle(self, now_s: float) -> tuple[Write, ...]:
        """Return what one cycle comes to."""
        self.cycled_s = now_s
        writes = tuple(self.controller.cycle(now_s).writes)
        if any(write.purpose is not Purpose.REFRESH for write in writes):
            self.stirred_until_s = now_s + STIRRED_S
        for evse in self.controller.site.evses:
            device = self.devices.get(evse.device)
            if device is not None:
                device.renew(evse.name, LEASE_S)
        return writes

    async def carry_out(self, write: Write) -> None:
        """Let a write's device have it, and control know what became of it."""
        site = self.controller.site
        evse = site.evses[site.network.place[write.evse]]
        device = self.devices.get(evse.device)
        self.writes += 1
        proof = None
        if device is not None:
            setpoint = Setpoint(evse=evse.name, p_w=watts_of(site, evse, device.profile, write), valid_for_s=LEASE_S)
            with anyio.move_on_after(SHED_S):
                proof = await device.apply(setpoint)
        self.proven += proof is not None and proof.in_force is not None
        self.controller.proved(write.evse, write.id, proof, anyio.current_time())


def _gateway(twin: Rehearsal, name: str) -> _Gateway:
    site = site_of(twin.depot, name, shed_s=SHED_S)
    declared = site.depot.site
    policy = Policy(
        limit_va=declared.limit_va,
        default_limit_w=declared.default_limit_w,
        soc_reserve_percent=declared.soc_reserve_percent,
    )
    devices = open_devices(
        site.depot,
        {bus.name: _Wire(twin, bus.name) for bus in site.depot.buses.values() if bus.gateway == name},
        pace=_BRISK,
        clock=anyio.current_time,
        repeats_limits=False,
        reads_back=False,
    )
    state = State(book.started(site.stations.values(), anyio.current_time()))
    return _Gateway(Controller(site=site, policy=policy, state=state), devices)


# What is looked at


@dataclass(slots=True)
class _Watched:
    """A row and how it stands."""

    name: str
    line: Phase | None
    rating: float
    flow: Callable[[], float]
    highest: float = 0.0
    at_s: float = 0.0
    over_s: float = 0.0
    longest_s: float = 0.0

    def look(self, now_s: float) -> None:
        """Hold what flows against the rating."""
        found = self.flow()
        if found > self.highest:
            self.highest, self.at_s = found, now_s
        self.over_s = self.over_s + STEP_S if found > self.rating * _NEAR else 0.0
        self.longest_s = max(self.longest_s, self.over_s)

    def row(self) -> Row:
        """Return what became of it."""
        return Row(
            name=self.name,
            line=self.line,
            rating=self.rating,
            highest=self.highest,
            over_s=self.longest_s,
            at_s=self.at_s,
        )


def _watched(twin: Rehearsal) -> Iterator[_Watched]:
    circuits = twin.depot.circuits

    def va(name: str) -> float:
        active, reactive = network.powers(circuits[name], twin.currents[name])
        return math.hypot(sum(active), sum(reactive))

    for name, circuit in circuits.items():
        for index, phase in enumerate(Phase):
            if circuit.rating_a[index]:
                yield _Watched(name, phase, circuit.rating_a[index], lambda n=name, i=index: abs(twin.currents[n][i]))  # type: ignore[misc]
        if circuit.rating_kva is not None:
            yield _Watched(name, None, circuit.rating_kva * 1000, lambda n=name: va(n))  # type: ignore[misc]
    roots = [name for name, circuit in circuits.items() if circuit.parent is None]
    yield _Watched("site", None, twin.depot.site.limit_va, lambda: sum(va(name) for name in roots))


@dataclass(slots=True)
class _Stay:
    """A vehicle that is there."""

    vehicle: VehicleType
    soc: float
    arrived_s: float
    session_wh: float = 0.0


@dataclass(slots=True)
class _Shedding:
    """A shed at one gateway's root."""

    gateway: _Gateway
    root: str
    before_w: float
    target_w: float
    reachable_w: float
    after_w: float = math.nan
    reached_s: float | None = None
    over_s: float = 0.0


class _Day:
    def __init__(
        self, depot: Depot, seed: int, shed: Shed, span: tuple[float, float], hour: Callable[[int], None]
    ) -> None:
        self.depot, self.shed, self.hour = depot, shed, hour
        self.begins_s, self.ends_s = span
        self.twin = Rehearsal(depot, seed, scenario=Scenario(events=tuple(_base_loads(depot, *span))))
        self.watched = tuple(_watched(self.twin))
        self.stays: dict[str, _Stay] = {}
        self.visits: list[Visit] = []
        self.shedding: list[_Shedding] = []

    async def run(self) -> Course:
        gateways = [_gateway(self.twin, name) for name in self.depot.gateways if _shares_out(self.depot, name)]
        async with anyio.create_task_group() as tasks:
            for one in gateways:
                for name, device in one.devices.items():
                    tasks.start_soon(device.run, one.take(name))
            while self.time_s < self.ends_s:
                await anyio.sleep_until(self.twin.now_s + STEP_S)
                self.twin.advance(STEP_S)
                now_s = self.twin.now_s
                begins = not self.shedding and self.time_s >= self.shed.at_s
                for one in gateways:
                    writes = self._begin(one, now_s) if begins else one.work(now_s)
                    for write in writes:
                        tasks.start_soon(one.carry_out, write)
                self._look()
                if self.time_s % HOUR_S == 0:
                    self.hour(round(self.time_s / HOUR_S))
            tasks.cancel_scope.cancel()
        for name in [*self.stays]:
            self._left(name)
        return Course(
            begins_s=self.begins_s,
            ends_s=self.ends_s,
            rows=tuple(one.row() for one in self.watched),
            sheds=tuple(map(_shed_course, self.shedding)),
            visits=tuple(self.visits),
            energy_wh=sum(self.twin.outlet(evse.name).energy_wh for evse in self.depot.places()),
            writes=sum(one.writes for one in gateways),
            proven=sum(one.proven for one in gateways),
        )

    @property
    def time_s(self) -> float:
        """The time of the day, in s."""
        return self.begins_s + self.twin.now_s

    # The shed

    def _begin(self, one: _Gateway, now_s: float) -> tuple[Write, ...]:
        writes = one.cycle(now_s)  # so that what is known is of this moment
        root = one.controller.site.root.name
        before_w = self._power_w(root)
        ask = Ask(
            id="rehearsed shed",
            source="rehearsed shed",
            rank=Rank.GRID,
            high_w=before_w * self.shed.share,
            start_s=now_s,
            end_s=now_s + self.shed.for_s,
        )
        reachable_w = one.controller.honour(ask, now_s).reachable_w
        self.shedding.append(_Shedding(one, root, before_w, ask.high_w, reachable_w))
        one.stirred_until_s = now_s + STIRRED_S
        one.controller.put(ask)
        return (*writes, *one.controller.shed(now_s))

    def _power_w(self, circuit: str) -> float:
        active, _ = network.powers(self.depot.circuits[circuit], self.twin.currents[circuit])
        return sum(active)

    # What is seen

    def _look(self) -> None:
        for one in self.watched:
            one.look(self.time_s)
        since_s = self.time_s - self.shed.at_s
        if 0 < since_s < self.shed.for_s:
            for shedding in self.shedding:
                power_w = self._power_w(shedding.root)
                shedding.after_w = power_w
                if power_w <= max(shedding.target_w, shedding.reachable_w) + _REACHED_W:
                    shedding.reached_s = since_s if shedding.reached_s is None else shedding.reached_s
                elif shedding.reached_s is not None:
                    shedding.over_s += STEP_S
        for evse in self.depot.places():
            self._see(evse.name, self.twin.outlet(evse.name))

    def _see(self, name: str, state: OutletState) -> None:
        stay = self.stays.get(name)
        if stay is not None and state.vehicle_type is not stay.vehicle:
            self._left(name)
            stay = None
        if state.vehicle_type is None or state.vehicle is None:
            return
        if stay is None:
            stay = self.stays[name] = _Stay(state.vehicle_type, state.vehicle.soc, self.time_s)
        stay.session_wh = state.session_wh

    def _left(self, name: str) -> None:
        stay = self.stays.pop(name)
        outlet = self.twin.outlet_of(name)
        self.visits.append(
            Visit(
                evse=name,
                arrived_s=stay.arrived_s,
                left_s=self.time_s,
                energy_wh=stay.session_wh,
                possible_wh=_alone_wh(outlet, stay.vehicle, stay.soc, self.time_s - stay.arrived_s),
            )
        )


def _alone_wh(outlet: Outlet, vehicle: VehicleType, soc: float, stays_s: float) -> float:
    """Return what a vehicle would be given in its time by a charger that nothing holds back."""
    state = physics.plug_in(OutletState(), vehicle, soc, _AMBIENT_C)
    inputs = OutletInputs(limit_a=outlet.rating_a)
    for _ in range(round(stays_s / _COARSE_S)):
        state = physics.step(outlet, state, inputs, _COARSE_S)
    return state.session_wh


def _base_loads(depot: Depot, begins_s: float, ends_s: float) -> Iterator[Event]:
    for hour in range(math.floor(begins_s / HOUR_S), math.ceil(ends_s / HOUR_S)):
        share = _BASE_SHARES[hour % len(_BASE_SHARES)]
        for name, circuit in depot.circuits.items():
            one, two, three = circuit.base_load_a
            at_s = max(0.0, hour * HOUR_S - begins_s)
            yield Event(at_s, SetBaseLoad(name, (one * share, two * share, three * share)))


def _shares_out(depot: Depot, gateway: str) -> bool:
    return any(circuit.allocator == gateway for circuit in depot.circuits.values())


def _shed_course(one: _Shedding) -> ShedCourse:
    return ShedCourse(
        gateway=one.gateway.controller.site.gateway,
        before_w=one.before_w,
        target_w=one.target_w,
        reachable_w=one.reachable_w,
        after_w=one.after_w,
        reached_s=one.reached_s,
        over_s=one.over_s,
    )
