# SPDX-License-Identifier: Apache-2.0
"""What happens in an episode, and when: drawn from a seed, plain data.

Cars come and go, the base load steps, the site's limit moves; and one to four times something breaks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from derms_agent.model import DeviceKind, PerPhase
from derms_agent.twin.campaign.link import Odds
from derms_agent.twin.campaign.scene import STORAGE, Scene
from derms_agent.twin.faults import Fault, FaultKind

SHORTEST_S, LONGEST_S = 300.0, 600.0
_SETTLED_S = 60.0
_ON_WIRES = ("silent", "silents", "slow", "exception", "disconnect", "lossy")
_IN_DEVICES = ("reboot", "frozen", "sensor", "meter")
_FAILURES = (*_ON_WIRES, *_IN_DEVICES, "kill", "kill", "boot", "blackout")


@dataclass(frozen=True, slots=True)
class Break:
    """A device fails."""

    device: str
    fault: Fault


@dataclass(frozen=True, slots=True)
class Lossy:
    """Requests and answers are lost for a while."""

    odds: Odds


@dataclass(frozen=True, slots=True)
class Kill:
    """The agent is killed, and started again `after_s` later.

    `raising`: not at once, but when its next raises have left and none is answered. `boot`: with another boot id, for
    the gateway itself was off. `clock_s` is added to its clock then.
    """

    after_s: float
    raising: bool = False
    boot: bool = False
    clock_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Blackout:
    """No power on the site for `dark_s`: chargers come up first, the gateway `gateway_s` after them."""

    dark_s: float
    gateway_s: float


@dataclass(frozen=True, slots=True)
class LimitSite:
    """The grid asks for no more than `watts` from the site, base load included; infinity: it asks for nothing."""

    watts: float


@dataclass(frozen=True, slots=True)
class StepBase:
    """The base load of a circuit becomes this."""

    circuit: str
    amperes: PerPhase


@dataclass(frozen=True, slots=True)
class Plug:
    """A car comes. `soc` is a fraction."""

    evse: str
    soc: float


@dataclass(frozen=True, slots=True)
class Leave:
    """A car leaves."""

    evse: str


Happening: TypeAlias = "Break | Lossy | Kill | Blackout | LimitSite | StepBase | Plug | Leave"


@dataclass(frozen=True, slots=True)
class Course:
    """What happens, in the order of time, and how long the episode is."""

    length_s: float
    happenings: tuple[tuple[float, Happening], ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """What broke, for the tables."""
        return tuple(dict.fromkeys(kind_of(what) for _at_s, what in self.happenings))


def kind_of(what: Happening) -> str:  # noqa: PLR0911 - one for each
    """Return the name under which a happening is counted."""
    match what:
        case Break(device, fault):
            return "stale meter" if device.startswith("meter") else fault.kind.value.replace("_", " ")
        case Lossy():
            return "indeterminate writes"
        case Kill(boot=True):
            return "gateway restarted, clock stepped"
        case Kill(raising=True):
            return "agent killed with raises on the wire"
        case Kill():
            return "agent killed"
        case Blackout():
            return "blackout"
        case LimitSite():
            return "limit moved"
        case StepBase():
            return "base load stepped"
        case Plug() | Leave():
            return "cars"


def draw(rng: Random, scene: Scene) -> Course:
    """Return the course that comes next from a generator of chance."""
    length_s = SHORTEST_S + (LONGEST_S - SHORTEST_S) * rng.random() ** 3  # most are short, for more of them
    happenings = [*_cars(rng, scene, length_s), *_loads(rng, scene, length_s)]
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        happenings.extend(_failure(rng, scene, rng.uniform(_SETTLED_S, length_s - _SETTLED_S)))
    return Course(length_s, tuple(sorted(happenings, key=lambda entry: entry[0])))


def _cars(rng: Random, scene: Scene, length_s: float) -> Iterator[tuple[float, Happening]]:
    for evse in scene.vehicles:
        if rng.random() < 0.9:  # noqa: PLR2004 - most EVSEs are taken
            at_s = 0.0 if rng.random() < 0.7 else rng.uniform(0, length_s)  # noqa: PLR2004
            yield at_s, Plug(evse, rng.uniform(0.1, 0.7))
            if rng.random() < 0.2:  # noqa: PLR2004 - some leave
                yield rng.uniform(at_s, length_s), Leave(evse)


def _loads(rng: Random, scene: Scene, length_s: float) -> Iterator[tuple[float, Happening]]:
    for name, circuit in scene.depot.circuits.items():
        yield 0.0, StepBase(name, _base(rng, circuit.base_load_a))
        for _ in range(rng.randrange(4)):
            yield rng.uniform(0, length_s), StepBase(name, _base(rng, circuit.base_load_a))
    if rng.random() < 0.5:  # noqa: PLR2004 - half of the episodes
        at_s = rng.uniform(_SETTLED_S, length_s)
        yield at_s, LimitSite(scene.depot.site.limit_va * rng.uniform(0.3, 0.9))
        if rng.random() < 0.5:  # noqa: PLR2004
            yield rng.uniform(at_s, length_s), LimitSite(math.inf)


def _base(rng: Random, worst: PerPhase) -> PerPhase:
    share = rng.choice((0.0, 0.3, 0.6, 1.0, rng.random()))
    return (worst[0] * share, worst[1] * share * rng.uniform(0.5, 1), worst[2] * share * rng.uniform(0.5, 1))


def _failure(rng: Random, scene: Scene, at_s: float) -> Iterator[tuple[float, Happening]]:  # noqa: C901, PLR0912 - one branch for each kind
    chargers = [name for name, device in scene.depot.devices.items() if device.kind is DeviceKind.CHARGER]
    meters = [name for name, device in scene.depot.devices.items() if device.kind is DeviceKind.METER]
    device = rng.choice([*chargers, STORAGE] if scene.storage else chargers)
    for_s = rng.choice((rng.uniform(2, 20), rng.uniform(10, 120)))
    match rng.choice(_FAILURES):
        case "silent":
            yield at_s, Break(device, Fault(kind=FaultKind.SILENT, for_s=for_s))
        case "silents":
            for each in rng.sample(chargers, rng.randint(2, len(chargers))):
                yield at_s, Break(each, Fault(kind=FaultKind.SILENT, for_s=for_s))
        case "slow":
            yield at_s, Break(device, Fault(kind=FaultKind.SLOW, ms=rng.choice((300, 700, 2000)), for_s=for_s))
        case "exception":
            yield at_s, Break(device, Fault(kind=FaultKind.EXCEPTION, for_s=for_s))
        case "disconnect":
            yield at_s, Break(device, Fault(kind=FaultKind.DISCONNECT, for_s=for_s))
        case "reboot":
            yield at_s, Break(device, Fault(kind=FaultKind.REBOOT, for_s=rng.uniform(6, 30)))
        case "frozen":
            yield at_s, Break(rng.choice(chargers), Fault(kind=FaultKind.FROZEN_DUTY, for_s=for_s))
        case "sensor":
            yield at_s, Break(device, Fault(kind=FaultKind.SENSOR_LOST, for_s=for_s))
        case "meter":
            meter = rng.choice(meters)
            yield at_s, Break(meter, Fault(kind=FaultKind.SILENT, for_s=for_s))
            circuit = scene.depot.circuits[str(scene.depot.devices[meter].circuit)]
            if rng.random() < 0.7:  # noqa: PLR2004 - mostly, what it would show changes
                yield at_s - rng.uniform(1, 30), StepBase(circuit.name, (0.0, 0.0, 0.0))
                yield at_s + rng.uniform(0, for_s), StepBase(circuit.name, circuit.base_load_a)
        case "lossy":
            odds = Odds(rng.choice((0.0, 0.1, 0.3)), rng.choice((0.1, 0.3, 0.5)), rng.choice((0.0, 0.1, 0.2)))
            yield at_s, Lossy(odds)
            yield at_s + for_s, Lossy(Odds())
        case "kill":
            # By a chance of its own, so that a course without such deaths stays as it is.
            raising = Random(f"raising {at_s}").random() < 0.5  # noqa: PLR2004, S311
            yield at_s, Kill(rng.choice((rng.uniform(1, 10), rng.uniform(5, 90))), raising)
        case "boot":
            yield at_s, Kill(rng.uniform(20, 90), boot=True, clock_s=rng.choice((-1e6, -50.0, 50.0, 1e6)))
        case _:
            yield at_s, Blackout(rng.uniform(6, 40), rng.uniform(10, 60))
