# SPDX-License-Identifier: Apache-2.0
"""A bus into a twin whose time passes with its transactions, and what a test may have go wrong on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import anyio.lowlevel
import pytest

from derms_agent import profiles
from derms_agent.device_state.der.converge import Pace
from derms_agent.drivers.errors import BusError, NoAnswer, Refused
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.unit import Unit
from derms_agent.model import Bus, Circuit, Connection, Depot, Device, DeviceKind, Site, Transport
from derms_agent.profiles.point import Table
from derms_agent.twin import Arrivals, Refusal, Rehearsal, Scenario
from derms_agent.twin.rehearsal import Silence

NAME = "icu-1"
NOBODY = Scenario(arrivals=Arrivals.NONE)
QUICK = Pace(deadline_s=1.0, verify_s=1.0, adopt_s=3.0, every_s=0.001)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True)
class Asked:
    """A transaction as the bus gets it; `words` is empty for a read."""

    address: int
    words: tuple[int, ...] = ()


Fault = Callable[[Asked], "BusError | None"]
"""What goes wrong with a request. Where the error says that it may have happened, a write has been executed."""


@dataclass
class TwinBus:
    """Implements RegisterBus over a rehearsal, whose time moves on by `takes_s` with each transaction."""

    twin: Rehearsal
    bus: str = "bus-1"
    takes_s: float = 0.05
    fault: Fault | None = None
    reads: int = 0
    priorities: set[Priority] = field(default_factory=set)

    async def read(
        self, unit_id: int, table: Table, address: int, count: int, *, priority: Priority, deadline_s: float
    ) -> tuple[int, ...]:
        del deadline_s
        self.reads += 1
        await self._passes(priority)
        failure = None if self.fault is None else self.fault(Asked(address))
        if failure is not None:
            raise failure
        try:
            return self.twin.read(self.bus, unit_id, table, address, count)
        except Refusal as refusal:
            raise Refused(str(refusal), refusal.code) from refusal
        except Silence:
            raise NoAnswer("found no answer") from None

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
        del deadline_s
        await self._passes(priority)
        failure = None if self.fault is None else self.fault(Asked(address, tuple(values)))
        if failure is not None and not failure.may_have_happened:
            raise failure
        try:
            self.twin.write(self.bus, unit_id, table, address, tuple(values), function=function)
        except Refusal as refusal:
            raise Refused(str(refusal), refusal.code) from refusal
        except Silence:
            raise NoAnswer("found no answer", may_have_happened=True) from None
        if failure is not None:
            raise failure

    async def _passes(self, priority: Priority) -> None:
        self.priorities.add(priority)
        await anyio.lowlevel.checkpoint()
        self.twin.advance(self.takes_s)


@dataclass
class Bench:
    """A twin with one inverter, the bus to it, and the unit that asks it."""

    twin: Rehearsal
    bus: TwinBus
    unit: Unit

    @property
    def image(self):  # type: ignore[no-untyped-def]
        return self.twin.inverters[NAME].image

    def written(self) -> list[tuple[int, str]]:
        """Return every point that a write has touched, in order."""
        image = self.image
        at = {field.address + offset: key for key, field in image.fields.items() for offset in range(field.size)}
        found: list[tuple[int, str]] = []
        for write in self.twin.writes:
            found += dict.fromkeys(at[write.address + offset] for offset in range(len(write.words)))
        return found


def depot(models: Sequence[int] | None = None) -> tuple[Depot, dict[str, profiles.Profile]]:
    """Return a depot with one inverter, which may have fewer models than the built-in profile says."""
    profile = profiles.load("sunspec_der")
    if models is not None:
        points = {name: each for name, each in profile.sunspec_points.items() if each.model in models}
        control = profile.control if "power_setpoint" in points else None
        profile = replace(profile, models=tuple(models), sunspec_points=points, control=control, fallback=None, poll=())
    bus = Bus(name="bus-1", gateway="gateway-1", transport=Transport.TCP, host="203.0.113.1")
    device = Device(
        name=NAME, kind=DeviceKind.INVERTER, bus="bus-1", unit_id=1, profile="sunspec_der", settings={}, circuit="main"
    )
    main = Circuit(
        name="main", parent=None, connection=Connection.WYE, voltage_v=400, rating_a=(250,) * 3, base_load_a=(0.0,) * 3
    )
    made = Depot(
        name="small",
        region=None,
        utility=None,
        site=Site(limit_va=160_000),
        gateways={},
        buses={"bus-1": bus},
        devices={NAME: device},
        circuits={"main": main},
        meters={},
    )
    return made, {"sunspec_der": profile}


def make_bench(models: Sequence[int] | None = None, max_read: int = 125) -> Bench:
    made, known = depot(models)
    twin = Rehearsal(made, scenario=NOBODY, profiles=known)
    bus = TwinBus(twin)
    profile = known["sunspec_der"]
    profile = replace(profile, wire=replace(profile.wire, max_read=max_read))
    return Bench(twin, bus, Unit(bus, 1, profile, clock=lambda: twin.now_s))


@pytest.fixture
def bench() -> Bench:
    return make_bench()


@dataclass(frozen=True)
class Kit:
    """What tests build benches from, without importing this file."""

    bench: Callable[..., Bench] = make_bench
    pace: Pace = QUICK
    name: str = NAME
    depot: Callable[..., tuple[Depot, dict[str, profiles.Profile]]] = depot


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()
